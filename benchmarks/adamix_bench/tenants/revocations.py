"""Does a revoked key still get an answer? Some callers ask in tight loops while their key is revoked."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from adamix_bench.tenants import administration
from adamix_bench.tenants.report import Report
from adamix_bench.tenants.stage import Running, Texts
from adamix_client.connection import channel_options
from adamix_server.access import api_keys

REVOKED = "revoked"
KEYS = 2
_METHOD = "/adamix.v1.InferenceService/Predict"
# Each with a connection of its own, and so with some front end.
_CALLERS = 6
_BEFORE_S, _AFTER_S, _TIMEOUT_S = 0.5, 0.7, 10.0


@dataclass
class _Loop:
    """One caller: when each call that was answered was begun, and how many were refused."""

    answered: list[float] = field(default_factory=list)
    refused: int = 0
    others: list[str] = field(default_factory=list)


def measure(server: Running, texts: Texts, report: Report, say: Callable[[str], None]) -> None:
    """Raises AdamixError when keys cannot be revoked here."""
    if server.keys is None:
        return
    payload = texts.payload(REVOKED, ((0, 8),))
    answered = refused = before = 0
    for number, secret in enumerate(server.keys.of[REVOKED]):
        say(f"revocation: key {number + 1} of {KEYS}")
        loops, returned = _revoke(server, secret, payload)
        for loop in loops:
            before += sum(began <= returned for began in loop.answered)
            answered += sum(began > returned for began in loop.answered)
            refused += loop.refused
        if others := [code for loop in loops for code in loop.others]:
            report.facts.setdefault("revocation_codes", []).extend(others)
    report.add(
        "revocation",
        "answers to calls that began after RevokeKey had returned",
        answered,
        0,
        at_least=False,
        note=f"{before} answers before, {refused} refusals",
    )
    report.parts["revocation"] = {"answered_after": answered, "answered_before": before, "refused": refused}


def _revoke(server: Running, secret: str, payload: bytes) -> tuple[list[_Loop], float]:
    """What became of the loops of one key, and when its revocation had returned."""
    if server.keys is None or (key := api_keys.parse(secret)) is None:
        raise ValueError("this is no key")
    stop = threading.Event()
    loops = [_Loop() for _ in range(_CALLERS)]
    threads = [threading.Thread(target=_ask, args=(server.address, secret, payload, loop, stop)) for loop in loops]
    for thread in threads:
        thread.start()
    try:
        time.sleep(_BEFORE_S)
        administration.revoke(server.address, server.keys.operator, key.id)
        returned = time.monotonic()
        time.sleep(_AFTER_S)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return loops, returned


def _ask(address: str, secret: str, payload: bytes, loop: _Loop, stop: threading.Event) -> None:
    metadata = (("authorization", f"Bearer {secret}"),)
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        make: Callable[..., Any] = channel.unary_unary
        ask = make(_METHOD)
        while not stop.is_set():
            began = time.monotonic()
            try:
                ask(payload, timeout=_TIMEOUT_S, metadata=metadata)
                loop.answered.append(began)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    loop.refused += 1
                else:
                    loop.others.append(error.code().name)
