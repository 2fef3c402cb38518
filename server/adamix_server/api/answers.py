"""What a task answers and how a head's raw output becomes that: `adamix.answers`, which predictions offline share."""

from adamix.answers import PREDICT_HEADS, Head, interpret, read, unpack

__all__ = ["PREDICT_HEADS", "Head", "interpret", "read", "unpack"]
