"""Texts of others on a terminal: what a model or a stranger wrote is not to clear a screen or to rename a window."""

_STEERING = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def plain(text: str) -> str:
    """The text with what a terminal would act on spelled out; tabs and ends of lines stay."""
    return text.translate(_STEERING)
