"""Whether the hub of Hugging Face answers, asked once and shortly, and what of it lies on this machine already.

Its own client waits for a network that is not there: minutes, with all of its attempts. So it is asked for a name only
when this module has had an answer. Nothing of it is imported here; its variables are read as it reads them
(`HF_ENDPOINT HF_HUB_OFFLINE HF_HOME HF_HUB_CACHE HF_DATASETS_CACHE HF_HUB_ETAG_TIMEOUT`, and those of proxies). Knows
neither backbones nor data.
"""

import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

# Of asking. Whoever has a slow line gives the hub's client more with HF_HUB_ETAG_TIMEOUT, and so this.
WAIT_S = 1.2
_KEPT_S = 30.0
_TRUE = ("1", "ON", "YES", "TRUE")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
# A proxy's, of a hub that it does not reach.
_OF_A_GATEWAY = (502, 503, 504)
_answers: dict[str, tuple[float, str | None]] = {}


def is_name(text: str) -> bool:
    """Whether something can be a name on the hub: `NAME` or `OWNER/NAME`."""
    return _NAME.fullmatch(text) is not None and "--" not in text and ".." not in text


def unreachable() -> str | None:
    """Why the hub cannot be asked; None if it can. Takes up to `WAIT_S`; an answer holds for half a minute."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").upper() in _TRUE:
            return f"{variable} is set"
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    kept = _answers.get(endpoint)
    if kept is None or time.monotonic() - kept[0] > _KEPT_S:
        kept = _answers[endpoint] = (time.monotonic(), _ask(endpoint))
    return kept[1]


def cached_model(name: str) -> Path | None:
    """The directory that the hub's client keeps of a model's main revision; None if it has none."""
    return _snapshot(f"models--{name.replace('/', '--')}")


def has_data(name: str) -> bool:
    """Whether something of a data set lies in the caches of the hub's client, or of the library `datasets`."""
    made = os.environ.get("HF_DATASETS_CACHE")
    directory = Path(os.path.expandvars(made)).expanduser() if made else _home() / "datasets"
    return (directory / name.replace("/", "___")).is_dir() or _snapshot(
        f"datasets--{name.replace('/', '--')}"
    ) is not None


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean trec?)`, or nothing if no name is near."""
    near = get_close_matches(name.lower(), list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def nothing(what: str, name: str, packaged: Iterable[str], of_hub: str) -> str:
    """That nothing has this name, and what was tried.

    Args:
        what: `backbone` or `data`.
        packaged: the names of those that are packages.
        of_hub: why it is not one of the hub's either.
    """
    names = sorted(packaged)
    return (
        f"no {what} {name[:80]!r}{nearest(name, names)}: tried what is here of that name, the packaged "
        f"{', '.join(names)}, and the hub ({of_hub})"
    )


def _ask(endpoint: str) -> str | None:
    parts = urllib.parse.urlsplit(endpoint)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        return f"HF_ENDPOINT is no address: {endpoint[:80]}"
    proxies = urllib.request.getproxies()
    if "all" in proxies and parts.scheme not in proxies:
        return None  # through a proxy of another kind, of which only the hub's client knows
    wait_s = _wait_s()
    said: list[str | None] = []
    # In a thread, because looking a name up has no time limit.
    thread = threading.Thread(target=lambda: said.append(_head(endpoint, wait_s)), daemon=True)
    thread.start()
    thread.join(wait_s)
    return said[0] if said else _too_late(host, wait_s)


def _head(endpoint: str, wait_s: float) -> str | None:
    host = urllib.parse.urlsplit(endpoint).hostname
    try:
        request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 - http or https, as checked
        urllib.request.urlopen(request, timeout=wait_s).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        return f"a gateway answers {error.code} for {host}" if error.code in _OF_A_GATEWAY else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        # Somebody is there; whether to trust them is for the hub's client to say, which has authorities of its own.
        if isinstance(reason, ssl.SSLError):
            return None
        if isinstance(reason, TimeoutError):
            return _too_late(host, wait_s)
        return f"no answer from {host}: {getattr(reason, 'strerror', None) or reason}"
    return None


def _too_late(host: str | None, wait_s: float) -> str:
    return f"no answer from {host} within {wait_s:g} s"


def _wait_s() -> float:
    try:
        return max(0.1, float(os.environ["HF_HUB_ETAG_TIMEOUT"]))
    except (KeyError, ValueError):
        return WAIT_S


def _snapshot(folder: str) -> Path | None:
    made = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    cache = Path(os.path.expandvars(made)).expanduser() if made else _home() / "hub"
    try:
        revision = (cache / folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    directory = cache / folder / "snapshots" / revision
    return directory if revision.isalnum() and directory.is_dir() else None


def _home() -> Path:
    made = os.environ.get("HF_HOME")
    if made:
        return Path(os.path.expandvars(made)).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
