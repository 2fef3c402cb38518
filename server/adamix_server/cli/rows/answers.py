"""What an answer is in a file: a few plain values by name, the columns they stand in, and the cells. No format."""

import json
import struct
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from adamix.errors import AdamixError, InvalidConfig
from adamix_client.results import Classification, Embedding, MultiLabel, Regression

if TYPE_CHECKING:
    from adamix_client import Prediction

Told = Mapping[str, Any]
# All that an answer may have, in the order of the columns.
NAMES = ("label", "score", "labels", "scores", "embedding", "error")
_RENAMED = "predicted_"
# Columns of a file that can be in the way of those that are added.
OWN = frozenset(NAMES) | {_RENAMED + name for name in NAMES}
_FLOAT = struct.Struct("<f")
_SHORTEST, _LONGEST = 6, 9


def told(prediction: "Prediction") -> Told:
    """One that has no error."""
    match prediction.result:
        case Classification(label=label, scores=scores):
            return {"label": label, "score": _short(max(scores))}
        case MultiLabel(labels=labels, label_ids=ids, scores=scores):
            return {"labels": list(labels), "scores": [_short(scores[index]) for index in ids]}
        case Regression(score=score):
            return {"score": _short(score)}
        case Embedding(values=values):
            return {"embedding": [_short(value) for value in values]}
    raise AdamixError("the server's answer is of a kind this command does not know")


def told_error(error: AdamixError, message: str) -> Told:
    return {"error": {"reason": error.reason, "message": message}}


def columns(used: Set[str], names: Set[str], file: str) -> dict[str, str]:
    """The columns that are added to a file, by what of an answer stands in them.

    Args:
        used: what answers there are have; without any, what those of a classifier would have.
        names: of the columns that the file has; one of the same name is added as `predicted_…`.

    Raises:
        InvalidConfig: that name is taken, too.
    """
    wanted = (used - {"error"} or {"label", "score"}) | {"error"}
    found = {}
    for name in NAMES:
        if name in wanted:
            found[name] = _RENAMED + name if name in names else name
            if found[name] in names:
                raise InvalidConfig(f"{file} has columns {name!r} and {found[name]!r} already: rename one of them")
    return found


def cell(answer: Told, name: str) -> str:
    """What stands in a cell of text; nothing if the answer has no such value."""
    value = answer.get(name)
    if value is None:
        return ""
    if name == "error":
        return error_text(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def error_text(error: Mapping[str, str]) -> str:
    return f"{error['reason']}: {error['message']}"


def flat(answers: Sequence[Told], name: str) -> list[Any]:
    """One column, None where an answer has no such value."""
    found = [answer.get(name) for answer in answers]
    return [None if each is None else error_text(each) for each in found] if name == "error" else found


def _short(value: float) -> float:
    """The float with the fewest digits that is the same in single precision, in which the server answers."""
    for digits in range(_SHORTEST, _LONGEST):
        short = float(f"{value:.{digits}g}")
        if _FLOAT.pack(short) == _FLOAT.pack(value):
            return short
    return float(f"{value:.{_LONGEST}g}")
