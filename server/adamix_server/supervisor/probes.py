"""What operators' programs ask the server over HTTP: does it live, does it serve, what does it count?

It serves when health says SERVING on each of its front ends that answers calls, and there is one. Knows what front
ends said of themselves; what they mean by it is theirs.
"""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from adamix_server.telemetry.page_server import Page, Request

# A front end says something every second. One that is stopped answers nobody, long before it is replaced for it.
_SILENCE_S = 5.0


class Fitness:
    """Why the server does not serve, if it does not."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, ...]] = {}

    def said(self, name: str, reasons: tuple[str, ...]) -> None:
        """A front end has said why it does not serve; no reasons: it serves."""
        self._said[name] = reasons

    def ended(self, name: str) -> None:
        """What a front end said is no longer so."""
        self._said.pop(name, None)

    def reasons(self, answering: Mapping[str, float]) -> list[str]:
        """Why the server does not serve, a line each; none: it serves.

        Args:
            answering: the front ends that answer calls, and how long each has said nothing, in seconds.
        """
        lines = []
        for name, silent_s in answering.items():
            lines += [f"{name}: {reason}" for reason in self._said.get(name, ("it has not said that it serves",))]
            if silent_s > _SILENCE_S:
                lines.append(f"{name}: nothing was heard of it for {silent_s:.0f} s")
        return lines if answering else ["no front end answers calls"]


class Probes:
    """The pages: `/livez`, `/readyz` (also as `/healthz`) and `/metrics`.

    Args:
        reasons: why the server does not serve now, a line each.
        scrape: makes the page of metrics.
    """

    def __init__(self, reasons: Callable[[], list[str]], scrape: Callable[[Request], Awaitable[Page]]) -> None:
        self._reasons = reasons
        self._scrape = scrape

    async def answer(self, request: Request) -> Page:
        """The page of a request; 404 for one there is none of."""
        match request.path:
            case "/metrics":
                return await self._scrape(request)
            case "/livez":
                # Whoever reads this has been answered by the loop that all of the supervisor runs on.
                return _text(["ok"])
            case "/readyz" | "/healthz":
                reasons = self._reasons()
                return _text(reasons, HTTPStatus.SERVICE_UNAVAILABLE) if reasons else _text(["ok"])
        return _text(["there are /metrics, /livez and /readyz"], HTTPStatus.NOT_FOUND)


def _text(lines: list[str], status: HTTPStatus = HTTPStatus.OK) -> Page:
    return Page("".join(f"{line}\n" for line in lines).encode(), status)
