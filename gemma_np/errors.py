"""The one exception of this package, its one warning, and how messages quote values."""

import json
import re
from typing import Any

_LONGEST_VALUE = 60
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class GemmaWarning(UserWarning):
    """Something that the user should know, and that does not stop the work."""


class GemmaError(ValueError):
    """Bad input, in one line: the thing, what was found, what was expected. Control characters become escapes."""

    def __init__(self, message: str) -> None:
        super().__init__(_CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), message))


def quoted(value: Any) -> str:
    """Return a value for a message: as JSON in ASCII, at most 60 characters."""
    return shortened(json.dumps(value, default=repr))


def shortened(text: str) -> str:
    """Return a text for a message, at most 60 characters of it."""
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 4]} ..."
