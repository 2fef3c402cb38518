"""Who makes a call: what it shows is read here, and judged by what it is.

Every failure is answered in the same words; what was wrong, metrics and the audit are told (`on_refused`). Asks the
newest snapshot and no database. Knows no method and no right.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from adamix.errors import InvalidConfig
from adamix_server.access.principal import Principal
from adamix_server.access.refusal import Refusal, RefusalKind, unauthenticated
from adamix_server.catalog.access import Access
from adamix_server.config import AccessSettings
from adamix_server.frontend.boundary.identity.certificates import Certificates
from adamix_server.frontend.boundary.identity.keys import PREFIX, Keys
from adamix_server.frontend.boundary.identity.networks import caller_address
from adamix_server.frontend.boundary.identity.tokens import Tokens
from adamix_server.frontend.boundary.rooms import Network
from adamix_server.limits.messages import MAX_CREDENTIAL_BYTES
from adamix_server.trust.files import Watch
from adamix_server.trust.jwks import read_jwks

log = logging.getLogger(__name__)

CREDENTIAL_KEY = "authorization"
_SCHEME = "bearer "
# Between two looks at the file of an issuer's keys.
_LOOK_S = 1.0

# grpc.aio.ServicerContext: generic in grpc-stubs, but not when it runs.
Context = Any
# The cause, and the public name of what was shown (`Refusal.name`). The call is `call.current()`.
OnRefused = Callable[[RefusalKind, str], None]


class Identity:
    """Recognises callers. Belongs to one event loop.

    Args:
        access: the newest that the catalog says of keys and tenants.
        proxies: networks whose addresses stand for many callers.
        on_refused: told of every refusal.
        clock: seconds since 1970 UTC.

    Raises:
        InvalidConfig: the file of an issuer's keys cannot be used.
    """

    def __init__(
        self,
        settings: AccessSettings,
        access: Callable[[], Access],
        *,
        proxies: Sequence[Network] = (),
        on_refused: OnRefused,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._access = access
        self._proxies = tuple(proxies)
        self._on_refused = on_refused
        self._clock = clock
        self._keys = Keys() if "keys" in settings.auth else None
        # With mtls every connection shows a certificate; what is sent as well then decides.
        self._certificates = Certificates() if settings.auth == ("mtls",) else None
        self._jwks = settings.jwt_jwks
        self._tokens: Tokens | None = None
        if self._jwks is not None:
            self._watch = Watch([self._jwks])
            self._tokens = Tokens(settings, read_jwks(self._jwks))

    def __call__(self, context: Context) -> Principal:
        """Who makes a call. Raises Unauthenticated (`KEY_INVALID`)."""
        try:
            return self._principal(context)
        except Refusal as refusal:
            self._on_refused(refusal.kind, refusal.name)
        except Exception as error:  # noqa: BLE001 - libraries read what strangers write: nobody comes in by their errors
            # By its kind alone: its words may hold what was sent.
            log.error("a credential could not be judged", extra={"error": type(error).__name__})  # noqa: TRY400
            self._on_refused("malformed", "")
        raise unauthenticated()

    def basis(self) -> tuple[object, object]:
        """By which everybody is recognised. Once one of these is another object, somebody may be so no more."""
        return self._access(), self._tokens and self._tokens.keys

    async def keep_fresh(self) -> None:
        """Read the file of an issuer's keys again whenever it changes; one that cannot be used changes nothing."""
        if (path := self._jwks) is None or (tokens := self._tokens) is None:
            return
        while True:
            await asyncio.sleep(_LOOK_S)
            if not await asyncio.to_thread(self._watch.is_due):
                continue
            try:
                tokens.keys = await asyncio.to_thread(read_jwks, path)
            except InvalidConfig as error:
                if self._watch.failed(error.message):
                    log.error("the issuer's keys stay as they were: %s", error.message)  # noqa: TRY400 - the trace says nothing
            except Exception as error:
                # The next file may be a better one.
                if self._watch.failed(type(error).__name__):
                    log.exception("the issuer's keys stay as they were")
            else:
                log.info("the issuer's keys were read again", extra={"keys": len(tokens.keys)})

    def _principal(self, context: Context) -> Principal:
        credential = None
        for key, value in context.invocation_metadata() or ():
            if key == CREDENTIAL_KEY:
                if credential is not None:
                    raise Refusal("malformed")
                credential = value
        now_s, address = self._clock(), partial(caller_address, context, self._proxies)
        if credential is None:
            if self._certificates is None:
                raise Refusal("missing")
            return self._certificates.principal_of(context, self._access(), now_s, address)
        text = _bearer(credential)
        if text.startswith(PREFIX):
            if self._keys is not None:
                return self._keys.principal_of(text, self._access(), now_s, address)
        elif self._tokens is not None and text.count(".") == 2:
            return self._tokens.principal_of(text, self._access(), now_s)
        raise Refusal("malformed")


def _bearer(value: str | bytes) -> str:
    """What follows `Bearer`. Raises Refusal."""
    if not isinstance(value, str) or len(value) > MAX_CREDENTIAL_BYTES or not value.isascii():
        raise Refusal("malformed")
    if value[: len(_SCHEME)].lower() != _SCHEME:
        raise Refusal("malformed")
    return value[len(_SCHEME) :]
