"""Adapters registered with a running server: the `Publisher` of `adamix.experiments.release`, over the client.

The one module of the method that knows a server, and it by the client alone. What connects is given: the command reads
credentials from files, a program may have them at hand.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from adamix.config import HeadConfig
from adamix.errors import FailedPrecondition, NotFound
from adamix.experiments.release import Published
from adamix.files.manifest import BackboneSpec, TrainingRecord
from adamix_client.client import Client
from adamix_client.destination import Credentials, from_environment

# Characters of a data set's name that a manifest keeps.
_MAX_DATA_NAME = 400
# Before the names of the metrics in a manifest.
_SPLIT = "validation_"


class _Told(msgspec.Struct, frozen=True):
    """The part of a manifest that is read here; the rest of it may be of another release."""

    training: TrainingRecord


def connecting_with(api_key: str | None) -> Callable[[str], Client]:
    """What connects to an address with this key, or with what the environment has to show."""

    def connect(address: str) -> Client:
        _, told = from_environment()
        shown = Credentials(api_key=api_key).over(told)
        return Client(address, ca=shown.ca, cert=shown.cert, key=shown.key, api_key=shown.api_key)

    return connect


class ServerPublisher:
    """Registers adapters with one server, which is asked at once what it serves.

    Raises:
        InvalidConfig: the address or the credentials cannot be used.
        Unavailable: no server answers.
    """

    def __init__(self, address: str, connect: Callable[[str], Client]) -> None:
        self._address = address
        self._connect = connect
        with connect(address) as client:
            self._served = client.server_info().backbone

    def check(self, task: str, backbone: BackboneSpec, head: HeadConfig) -> None:  # noqa: ARG002 - the protocol's
        """Compare what will be trained with what the server serves.

        Raises:
            FailedPrecondition: the server has another backbone or tokenizer, or serves no such heads.
        """
        if head.cloze is not None:
            raise FailedPrecondition(
                "the server answers with no cloze head: what is trained with one cannot be pushed",
                reason="HEAD_UNSUPPORTED",
            )
        ours = {"fingerprint": backbone.fingerprint, "tokenizer_fingerprint": backbone.tokenizer_fingerprint}
        if head.dense == "backbone":
            ours["pooler_fingerprint"] = backbone.pooler_fingerprint or ""
        for name, value in ours.items():
            if self._served[name] != value:
                part = name.removesuffix("fingerprint").removesuffix("_") or "backbone"
                raise FailedPrecondition(
                    f"the server at {self._address} has another {part} than {backbone.label} (it serves "
                    f"{self._served['name'] or self._served['model_type']}), and could not serve what is trained on it",
                    reason="BACKBONE_MISMATCH",
                )

    def live_metrics(self, task: str, data: str) -> Sequence[Mapping[str, float]]:
        """What the manifests of the live versions say of the validation split; empty if the task is new.

        Raises:
            FailedPrecondition: a live version was measured on other data.
        """
        with self._connect(self._address) as client:
            try:
                live = [version for version in client.versions(task) if version.live]
            except NotFound:
                return ()
        found = []
        for version in live:
            try:
                training = msgspec.convert(version.manifest, _Told).training
            except msgspec.ValidationError:
                training = TrainingRecord(method="unknown")
            # The manifest names the data set and, in brackets, how much of it was trained on, which may differ.
            other = training.data.rpartition(" (")[0] or "nothing that it names"
            if other != data[:_MAX_DATA_NAME]:
                raise FailedPrecondition(
                    f"the live version of {task} was measured on {other}, not on {data}: no-worse cannot compare them",
                    reason="DATA_DIFFER",
                )
            metrics = training.metrics
            found.append({name.removeprefix(_SPLIT): metrics[name] for name in metrics if name.startswith(_SPLIT)})
        return found

    def has(self, task: str, digest: str) -> bool:
        with self._connect(self._address) as client:
            try:
                return any(version.digest == digest for version in client.versions(task))
            except NotFound:
                return False

    def publish(self, task: str, file: Path) -> Published:
        with self._connect(self._address) as client:
            registered = client.register(task, file)
        return Published(registered.version.digest, registered.already_exists)

    def command(self, task: str, file: Path) -> str:
        return shlex.join(["adamix", "register", task, str(file), "--server", self._address])
