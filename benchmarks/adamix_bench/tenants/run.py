"""`adamix bench tenants`: puts a run together, and keeps what there is when it is cut short."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from adamix.cli import stderr
from adamix.errors import InvalidConfig
from adamix_bench import machine
from adamix_bench.tenants import flows
from adamix_bench.tenants.proof import Proof, attempt
from adamix_bench.tenants.report import Report, plot
from adamix_bench.tenants.settings import PARTS, Settings
from adamix_bench.tenants.simulation.hardware import Hardware
from adamix_bench.tenants.simulation.stage import SimulatedStage

_NEEDS_SERVER = "needs a server: leave --simulate out"
_STARTED = time.monotonic()


def run(settings: Settings, *, rates: Path | None, out: Path, command: Sequence[str], quiet: bool) -> dict[str, Any]:
    """Measure or simulate, write document, page and picture to `out`, print the table unless `quiet`.

    Args:
        rates: the document of a run, whose machine is simulated.

    Returns:
        The JSON document; `complete` is False after Ctrl-C or when a part failed, and then it holds what was measured.

    Raises:
        InvalidConfig: a setting cannot work.
        AdamixError: the server did not start.
        OSError: `out` cannot be written.
    """
    hardware = _hardware(settings, rates)
    out.mkdir(parents=True, exist_ok=True)
    described = machine.describe(settings.threads)
    stem = "tenants-simulated" if settings.simulate else "tenants"
    report = Report(out, stem, {**asdict(settings), "sizes": asdict(settings.sizes)}, described, command)
    if not settings.simulate and described["load_average"] > described["cores"] / 4:
        _say(f"this machine is busy (load {described['load_average']:.1f}): do not trust these numbers")
    try:
        if settings.simulate:
            _simulate(settings, hardware, report)
        else:
            # Loads torch.
            from adamix_bench.tenants import measured

            measured.measure(settings, report, _say)
        report.complete = not report.failures
    except KeyboardInterrupt:
        _say("interrupted: what follows is what had been measured")
    document = report.save()
    written = [report.path(".json"), report.save_text()]
    if (picture := plot(report)) is not None:
        written.append(picture)
    if not quiet:
        report.print()
    _say(", ".join(map(str, written)))
    return document


def _simulate(settings: Settings, hardware: Hardware, report: Report) -> None:
    stage = SimulatedStage(hardware, settings.seed)
    report.facts["simulated"] = True
    report.facts["knee_tokens_per_s"] = stage.knee
    report.facts["rates_of_machine"] = {"batch_s": hardware.batch_s, "token_s": hardware.token_s}
    proof = Proof(stage, settings.sizes, report, _say)
    parts: dict[str, Callable[[], None]] = proof.parts() | {
        "cost": lambda: report.add(
            "cost.front-end", "identity, right, quota and fairness", None, 60, at_least=False, note=_NEEDS_SERVER
        ),
        "rates": lambda: flows.simulate(settings.sizes.rate_s, report, settings.seed),
        "revocation": lambda: report.add(
            "revocation", "answers after RevokeKey", None, 0, at_least=False, note=_NEEDS_SERVER
        ),
    }
    for part in PARTS:
        if settings.wants(part):
            attempt(report, part, parts[part], _say)


def _hardware(settings: Settings, rates: Path | None) -> Hardware:
    if rates is not None and not settings.simulate:
        raise InvalidConfig("--rates are of a simulated device: say --simulate", field="rates")
    base = Hardware() if rates is None else Hardware.measured(rates)
    batch_s = base.batch_s if settings.batch_ms is None else settings.batch_ms / 1e3
    token_s = base.token_s if settings.token_us is None else settings.token_us / 1e6
    return Hardware(batch_s=batch_s, token_s=token_s)


def _say(text: str) -> None:
    stderr.print(f"[dim]{time.monotonic() - _STARTED:4.0f} s[/]  {escape(text)}", soft_wrap=True)
