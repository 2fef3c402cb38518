"""The publisher behind `--push`: the method's own, with the ids, the addresses and the credentials of the commands.

Knows the wire through the client alone, and nothing of training.
"""

from adamix.api.publisher import ServerPublisher
from adamix.config import HeadConfig
from adamix.errors import InvalidConfig, InvalidRequest
from adamix.files.manifest import BackboneSpec
from adamix_server.cli import connecting
from adamix_server.names import check_name


def connect(address: str, task: str | None = None) -> "Push":
    """The publisher that `--push ADDRESS`, with `--task` where there is one, stands for.

    Raises:
        InvalidConfig: the address is not HOST:PORT, the task is no id, or what the environment says cannot be used.
        Unavailable: no server answers.
    """
    if task is not None:
        try:
            check_name(task, "--task")
        except InvalidRequest as error:
            raise InvalidConfig(error.message, field="task") from None
    return Push(address)


class Push(ServerPublisher):
    """Registers adapters with one server, which is asked at once what it serves.

    Raises:
        InvalidConfig: `address` is not HOST:PORT, or what the environment says cannot be used.
        Unavailable: no server answers.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address, connecting.connect)

    def check(self, task: str, backbone: BackboneSpec, head: HeadConfig) -> None:
        """As of any server's publisher. Raises InvalidRequest as well: `task` is no id."""
        check_name(task, "task")
        super().check(task, backbone, head)
