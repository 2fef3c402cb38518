"""One row of a file: what a task is asked about it, or why it cannot be asked. Knows no format and no server."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from adamix.errors import InvalidConfig, InvalidRequest
from adamix.texts import MAX_TEXT_BYTES, cut

TEXT, PAIR = "text", "text_pair"
_SHOWN_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Row:
    """What is asked about one row.

    Attributes:
        where: `FILE:LINE`, or the number of the row where there are no lines.
        pair: the second text; None for a single one.
        problem: why it is not asked about at all.
    """

    where: str
    text: str = ""
    pair: str | None = None
    problem: InvalidRequest | None = None

    @property
    def checksum(self) -> int:
        """By which a row that was answered is known again."""
        both = self.text if self.pair is None else f"{self.text}\0{self.pair}"
        return zlib.crc32(both.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class Choice:
    """What to read of a file.

    Attributes:
        column, pair: as they were asked for; None for `text`, and `text_pair` if the file has one.
        truncate: cut what is longer than a text may be.
    """

    column: str | None = None
    pair: str | None = None
    truncate: bool = False

    def of(self, names: Sequence[str], file: str) -> tuple[str, str | None]:
        """The columns of a file that has those of `names`.

        Raises:
            InvalidConfig: one is not there, or more than once.
        """
        text = _named(self.column or TEXT, names, file, "column")
        pair = self.pair
        if pair is None and self.column is None and PAIR in names:
            pair = PAIR
        return text, None if pair is None else _named(pair, names, file, "pair_column")

    def row(self, where: str, text: object, pair: object = None, *, is_pair: bool) -> Row:
        """A row with these values of its columns, whatever they are."""
        try:
            first = self._checked(text, "text")
            second = self._checked(pair, "second text") if is_pair else None
        except InvalidRequest as error:
            first, second = (value if isinstance(value, str) else "" for value in (text, pair))
            return Row(where, first, second if is_pair else None, error)
        return Row(where, first, second)

    def _checked(self, value: object, what: str) -> str:
        """As the server judges it, which is not asked for nothing. Raises InvalidRequest."""
        if value is None or value == "":
            raise InvalidRequest(f"the {what} is empty", reason="TEXT_EMPTY")
        if not isinstance(value, str):
            raise InvalidRequest(f"the {what} is not a text", reason="TEXT_INVALID")
        if value.isspace():
            raise InvalidRequest(f"the {what} is empty", reason="TEXT_EMPTY")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"the {what} holds half of a surrogate pair", reason="TEXT_INVALID") from None
        beginning = cut(value)
        if beginning is not value and not self.truncate:
            raise InvalidRequest(f"the {what} is over {MAX_TEXT_BYTES >> 10} KiB", reason="TEXT_TOO_LARGE")
        return beginning


def _named(wanted: str, names: Sequence[str], file: str, field: str) -> str:
    if names.count(wanted) == 1:
        return wanted
    if wanted in names:
        raise InvalidConfig(f"{file} has {names.count(wanted)} columns named {wanted!r}", field=field)
    folded = {name.casefold(): name for name in names}
    near = get_close_matches(wanted.casefold(), folded, n=1)
    if near:
        hint = f"did you mean {folded[near[0]]!r}?"
    else:
        shown = ", ".join(map(repr, names[:_SHOWN_COLUMNS])) + (", …" if len(names) > _SHOWN_COLUMNS else "")
        hint = f"it has {shown or 'none'}; name one by --{field.replace('_', '-')}"
    raise InvalidConfig(f"{file} has no column {wanted!r}; {hint}", field=field)
