"""What a chat template may take: its length, time, memory and text, and the process that renders it."""

import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from adamix.errors import InvalidConfig, InvalidData, Unavailable
from adamix.files.manifest import MAX_CHAT_TEMPLATE_BYTES
from adamix.prompts import chat as chats
from adamix.prompts import sandbox
from adamix.prompts.chat import MAX_OUTPUT_BYTES, ChatRenderer
from adamix.prompts.prompts import Message

CHAT = [Message("user", "Hi")]
# Wall-clock, of a machine that may be busy: without limits all of these take hours, or all memory.
SOON_S = 30.0


@pytest.fixture
def own() -> Iterator[ChatRenderer]:
    """A renderer that a test may lose its child of."""
    renderer = ChatRenderer()
    yield renderer
    renderer.close()


def pid(renderer: ChatRenderer) -> int:
    assert renderer._child is not None
    return renderer._child._process.pid


def test_a_template_of_the_largest_size_is_rendered(renderer: ChatRenderer) -> None:
    text = "\u00e9" * (MAX_CHAT_TEMPLATE_BYTES // 2)
    assert renderer.render(text, CHAT, {}) == text
    with pytest.raises(InvalidConfig, match="the chat template is over 64 KiB"):
        renderer.render(text + ".", CHAT, {})


def test_texts_of_the_largest_size_are_made(renderer: ChatRenderer) -> None:
    message = Message("user", "\u00e9" * 1024)
    template = "{% for i in range(128) %}{{ messages[0].content }}{% endfor %}"
    assert renderer.render(template, [message], {}) == message.content * 128
    assert len(message.content.encode()) * 128 == MAX_OUTPUT_BYTES
    for more in (template + "x", "{{ 'x' * 262145 }}", "{{ '\u00e9' * 131073 }}"):
        with pytest.raises(InvalidData, match="makes more than 256 KiB of text of these messages"):
            renderer.render(more, [message], {})


# Each in turn keeps busy: loops, calls, one call into C, the compiler. All are ended by one limit or another.
TOO_MUCH = {
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops that print": "{% for a in range(99999) %}{% for b in range(99999) %}.{% endfor %}{% endfor %}",
    "a loop in itself": "{% for i in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "macro in itself": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "macro twice in itself": "{% macro f(x) %}{% if x %}{{ f(x-1) }}{{ f(x-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "cycler": "{% set c = cycler(1) %}{% for a in range(99999) %}{% for b in range(99999) %}{{ c.next() }}{% endfor %}"
    "{% endfor %}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "power": "{% set n = 9 %}{% set x = n ** (n ** n) %}",
    "power, by the compiler": "{{ 9 ** (9 ** 9) }}",
    "squares": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "digits": "{% set n = 9 %}{% for i in range(9999) %}{% set x = ('%d' % n ** 999) ~ n ** 4000 %}{% endfor %}",
    "letters": "{% set n = 10**9 %}{{ 'a' * n }}",
    "doubled text": "{% set ns = namespace(x='abc') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubled list": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "lists in lists": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "equal lists": "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "contains": "{% set x = range(99999) | list %}{% for i in x %}{% if -1 in x %}{% endif %}{% endfor %}",
    "sorted": "{% set x = range(99999) | map('string') | list %}{{ (x * 99) | sort | length }}",
    "width": "{{ '%1000000000d' % 1 }}",
    "width of format": "{{ '{:1000000000}'.format(1) }}",
    "width, filtered": "{{ '%1000000000d' | format(1) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "indent": "{{ 'a\n' | indent(10**9, true) }}",
    "indented JSON": "{{ [1] | tojson(indent=10**9) }}",
    "join": "{{ range(99999) | join('a' * 99999) }}",
    "replace": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list | length }}",
    "brackets": "{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}",
    "blocks": "{% if 1 %}" * 3_000 + "{% endif %}" * 3_000,
    "sums": "{{ " + "+".join(["a"] * 30_000) + " }}",
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_what_never_ends_is_ended(what: str, renderer: ChatRenderer) -> None:
    began = time.monotonic()
    with pytest.raises(
        (InvalidData, InvalidConfig), match=r"takes (more than 50 ms|too much memory)|too inv|fails|256 KiB"
    ):
        renderer.render(TOO_MUCH[what], CHAT, {})
    assert time.monotonic() - began < SOON_S
    # And the next one has all that there was.
    assert renderer.render("{{ messages[0].content * 1000 }}", CHAT, {}) == "Hi" * 1000


def test_a_call_that_no_exception_ends_is_ended_with_its_process(own: ChatRenderer) -> None:
    """Comparing two deep lists is one call into C, in which no handler of a signal runs."""
    own.render("", CHAT, {})
    before = pid(own)
    with pytest.raises(InvalidData, match="takes more than 50 ms of CPU time"):
        own.render(TOO_MUCH["equal lists"], CHAT, {})
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)
    assert own.render("a", CHAT, {}) == "a"
    assert pid(own) != before


def test_a_template_that_took_too_long_rests(own: ChatRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    asked: list[object] = []
    ask = own._ask
    monkeypatch.setattr(own, "_ask", lambda order: asked.append(order) or ask(order))
    for _ in range(3):
        with pytest.raises(InvalidData, match="takes more than 50 ms"):
            own.render(slow, CHAT, {})
    assert len(asked) == 1
    # The backbone's own is tried again: the messages of one tenant say nothing of another's.
    with pytest.raises(InvalidData, match="takes more than 50 ms"):
        own.render(slow, CHAT, {}, is_own=True)
    assert len(asked) == 2
    (name,) = own._resting
    # Each time it rests for twice as long, until it is rendered.
    rests = [own._resting[name].until - time.monotonic()]
    for _ in range(9):
        own._resting[name] = msgspec.structs.replace(own._resting[name], until=0.0)
        monkeypatch.setattr(own, "_ask", lambda order: chats._Answer(problem="memory"))
        with pytest.raises(InvalidData, match="takes too much memory"):
            own.render(slow, CHAT, {})
        rests.append(own._resting[name].until - time.monotonic())
    assert [math.ceil(rest) for rest in rests] == [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]
    own._resting[name] = msgspec.structs.replace(own._resting[name], until=0.0)
    monkeypatch.setattr(own, "_ask", lambda order: chats._Answer(text="short"))
    assert own.render(slow, CHAT, {}) == "short"
    assert name not in own._resting


def test_a_template_that_ended_its_process_rests(own: ChatRenderer) -> None:
    """The hash of a deep tuple is one call into C for each of its levels, until there is no more stack."""
    deeper = "{% set ns.x = " + "(" * 60 + "ns.x" + ",)" * 60 + " %}"
    fatal = "{% set ns = namespace(x=()) %}{% for i in range(500) %}" + deeper * 6 + "{% endfor %}{{ {ns.x: 1} }}"
    own.render("", CHAT, {})
    before = pid(own)
    with pytest.raises(InvalidData, match=r"fails on these messages|takes more than 50 ms"):
        own.render(fatal, CHAT, {})
    assert own.render("a", CHAT, {}) == "a"
    after = pid(own)
    assert after != before
    for _ in range(3):
        with pytest.raises(InvalidData, match=r"fails on these messages|takes more than 50 ms"):
            own.render(fatal, CHAT, {})
    assert pid(own) == after, "it was not tried again"


def test_a_template_rests_for_who_asked_alone(own: ChatRenderer) -> None:
    slow_for_some = (
        "{% if messages[0].content == 'x' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
        "{% endfor %}{% endif %}{{ messages[0].content }}"
    )
    with pytest.raises(InvalidData, match="takes more than 50 ms"):
        own.render(slow_for_some, [Message("user", "x")], {}, asker="acme")
    assert own.render(slow_for_some, CHAT, {}, asker="other") == "Hi"
    with pytest.raises(InvalidData, match="takes more than 50 ms"):
        own.render(slow_for_some, CHAT, {}, asker="acme")


def test_only_so_many_templates_rest(own: ChatRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "_ask", lambda order: chats._Answer(problem="time"))
    for index in range(chats.MAX_RESTING + 1):
        with pytest.raises(InvalidData):
            own.render(f"{index}", CHAT, {})
        if index == 0:
            (oldest,) = own._resting
    assert len(own._resting) == chats.MAX_RESTING
    assert oldest not in own._resting


def test_a_child_that_others_ended_is_no_templates_fault(own: ChatRenderer) -> None:
    assert own.render("a", CHAT, {}) == "a"
    os.kill(pid(own), signal.SIGKILL)
    assert own.render("b", CHAT, {}) == "b"


def test_want_of_memory_is_believed_of_a_new_child_alone(own: ChatRenderer) -> None:
    """In an old one it may be others that have left none."""
    own.render("a", CHAT, {})
    old = pid(own)
    asked: list[int] = []
    ask = chats._Child.ask

    def wanting(child: chats._Child, data: bytes, ends_at: float) -> chats._Answer:
        asked.append(child._process.pid)
        return chats._Answer(problem="memory") if asked[-1] == old else ask(child, data, ends_at)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chats._Child, "ask", wanting)
        assert own.render("b", CHAT, {}) == "b"
    assert len(set(asked)) == 2
    with pytest.raises(InvalidData, match="takes too much memory"):
        own.render(TOO_MUCH["letters"], CHAT, {})


def test_without_a_child_nothing_is_rendered(own: ChatRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chats, "_COMMAND", ("/bin/false",))
    with pytest.raises(Unavailable, match="cannot be rendered at the moment") as said:
        own.render("a", CHAT, {})
    assert said.value.retry_after_s


def test_a_child_that_says_what_it_should_not_is_not_believed(
    own: ChatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in ("ÿÿÿÿ", "\\0\\0\\0\\2[]"):
        monkeypatch.setattr(chats, "_COMMAND", ("/bin/sh", "-c", f"printf '{word}'; exec cat"))
        with pytest.raises(Unavailable):
            own.render("a", CHAT, {})


def test_the_child_can_open_nothing_and_knows_nothing(own: ChatRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAMIX_API_KEY", "secret")
    own.render("", CHAT, {})
    process = Path(f"/proc/{pid(own)}")
    limits = (process / "limits").read_text()
    for name in ("Max open files", "Max file size", "Max core file size", "Max processes"):
        line = next(line for line in limits.splitlines() if line.startswith(name))
        assert line.removeprefix(name).split()[:2] == ["0", "0"]
    assert "unlimited" not in next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert b"secret" not in (process / "environ").read_bytes()


def test_templates_that_were_used_last_stay_compiled() -> None:
    limits: sandbox.Limits = {"compile_s": 60.0, "render_s": 60.0, "max_bytes": 1 << 20}
    renderer = sandbox.Renderer(limits)
    for index in range(70):
        renderer.answer({"template": f"{index}", "variables": None})
        renderer.answer({"template": "0", "variables": None})
    assert len(renderer._compiled) == 64
    assert {"0", "7", "69"} <= set(renderer._compiled)
    assert "6" not in renderer._compiled
    # Long ones are fewer: what is compiled takes a multiple of its text.
    for index in range(9):
        renderer.answer({"template": f"{index}" * (MAX_CHAT_TEMPLATE_BYTES - 8), "variables": None})
    assert sum(map(len, renderer._compiled)) <= 256 << 10
    assert len(renderer._compiled) == 4
