"""The one exception of this package, and how its messages quote values."""

import json
from typing import Any

_LONGEST_VALUE = 60


class GemmaError(ValueError):
    """Bad input, in one line: the thing, what was found, what was expected."""


def quoted(value: Any) -> str:
    """Return a value for a message: as JSON in ASCII, at most 60 characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 4]} ..."
