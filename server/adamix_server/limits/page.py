"""`docs/limits.md`: the whole table, in the order in which it is read."""

from adamix_server.limits import TABLE

_INTRODUCTION = """\
# Limits

What the server refuses to exceed. They bound the memory and time that one caller or one file can take, so they are constants, not settings, unless a
flag is named. This page is written from `S/limits/` (`python -m adamix_server.limits > docs/limits.md`), which also names the test of each.

| what | limit | beyond it |
|---|---|---|
"""  # noqa: E501 - lines of the page


def page() -> str:
    """`docs/limits.md`."""
    return _INTRODUCTION + "".join(f"| {limit.what} | {limit.text} | {limit.beyond} |\n" for limit in TABLE)
