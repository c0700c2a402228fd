"""Read JSON that comes from outside, strictly: limited in size and depth, no name twice, finite numbers, whole text.

A schema says what a value must be. An error names the place of the first wrong value, the value and what was expected:

    config.json: rope_parameters.full_attention.rope_theta: "x", expected a positive number

It is written here because the libraries for it (msgspec, pydantic) keep the last of two equal names without a word, and
their messages do not show the wrong value.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gemma_np.errors import GemmaError, quoted
from gemma_np.input_files import decode_utf8, read_bytes, read_text

_LARGEST = 10**8  # bytes of a JSON text; the index of a model has some 10^5
_DEEPEST = 50
_LARGEST_WHOLE = 2**63 - 1


class Schema(NamedTuple):
    """What a JSON value must be."""

    expected: str  # in the words of an error
    fits: Callable[[Any], bool]  # whether a value is of this kind; its parts have their own schemas
    fields: Mapping[str, "Schema"] = {}  # of an object
    others: "Schema | None" = None  # of the items of a list, or of the other fields of an object; None: anything
    is_optional: bool = False  # whether a field may be missing or null


NUMBER = Schema("a number", lambda value: _is_number(value, (int, float)) and abs(value) <= sys.float_info.max)
POSITIVE = Schema("a positive number", lambda value: NUMBER.fits(value) and value > 0)
TEXT = Schema("text", lambda value: isinstance(value, str))
BOOLEAN = Schema("true or false", lambda value: isinstance(value, bool))


def whole_number(low: int, high: int = _LARGEST_WHOLE) -> Schema:
    """Return the schema of a whole number in a range."""
    bounds = f"from {low} to {high}" if high < _LARGEST_WHOLE else f"of at least {low}"
    return Schema(f"a whole number {bounds}", lambda value: _is_number(value, int) and low <= value <= high)


def one_of(*choices: str) -> Schema:
    """Return the schema of a text that is one of these."""
    listed = " or ".join(filter(None, (", ".join(map(repr, choices[:-1])), repr(choices[-1]))))
    return Schema(listed, lambda value: isinstance(value, str) and value in choices)


def list_of(items: Schema) -> Schema:
    """Return the schema of a list."""
    return Schema("a list", lambda value: isinstance(value, list | tuple), others=items)


def object_of(fields: Mapping[str, Schema], others: Schema | None = None) -> Schema:
    """Return the schema of an object with these fields and others."""
    return Schema("a JSON object", lambda value: isinstance(value, dict), fields, others)


def optional(schema: Schema) -> Schema:
    """Return the schema of a field that may be missing or null."""
    return schema._replace(is_optional=True)


_ANYTHING = optional(Schema("any value", lambda value: True))


def read_json(path: Path, schema: Schema, expected: str = "a JSON file") -> Any:
    """Return the value of a JSON file. Raises GemmaError, with its path, when it cannot be read or is not valid.

    expected: what the file should be, for the error.
    """
    return parse_json(read_text(path, expected, _LARGEST), schema, path)


def read_json_lines(path: Path, schema: Schema, expected: str) -> Iterator[tuple[str, Any]]:
    """Yield the place (path and number) and the value of each line that is not blank.

    Only a newline ends a line: other separators, such as U+2028, may stand in a JSON string. Raises GemmaError, with
    the place, for a line that is not valid.
    """
    text = decode_utf8(read_bytes(path, expected), path, expected)
    for line_number, line in enumerate(text.split("\n"), start=1):
        if line.strip(" \t\r"):
            source = f"{path}, line {line_number}"
            yield source, parse_json(line, schema, source)


def parse_json(text: str, schema: Schema, source: str | Path) -> Any:
    """Return the value of a JSON text. Raises GemmaError, with its source, when it is not valid."""
    if len(text) > _LARGEST:
        raise GemmaError(f"{source}: {len(text)} characters, expected at most {_LARGEST}")
    try:
        value = json.loads(text, object_pairs_hook=_unique_names)
        check_json(value, schema)
    except GemmaError as error:
        raise GemmaError(f"{source}: {error}") from None
    except RecursionError:
        raise GemmaError(f"{source}: nested too deeply, expected at most {_DEEPEST} levels") from None
    except ValueError as error:
        raise GemmaError(f"{source}: not JSON ({error}), expected {schema.expected}") from None
    return value


def check_json(value: Any, schema: Schema, place: tuple[str | int, ...] = ()) -> None:
    """Check a value of dicts, lists, text and numbers. Raises GemmaError, with the place of the first wrong part."""
    if value is None and schema.is_optional:
        return
    if len(place) > _DEEPEST:
        raise GemmaError(f"nested too deeply, expected at most {_DEEPEST} levels")
    if not schema.fits(value):
        raise GemmaError(f"{_name(place)}{quoted(value)}, expected {schema.expected}")
    if isinstance(value, float) and not math.isfinite(value):
        raise GemmaError(f"{_name(place)}{value}, expected a finite number")
    if isinstance(value, str):
        _check_text(value, place)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            check_json(item, schema.others or _ANYTHING, (*place, position))
    elif isinstance(value, dict):
        for name, part in schema.fields.items():
            if name not in value and not part.is_optional:
                raise GemmaError(f"{_name((*place, name))}missing, expected {part.expected}")
        for name, item in value.items():
            _check_text(str(name), place)
            check_json(item, schema.fields.get(name, schema.others or _ANYTHING), (*place, name))


def _is_number(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in values if names.count(name) > 1)
        raise GemmaError(f"{quoted(twice)}: twice in one object, expected each name once")
    return values


def _check_text(text: str, place: tuple[str | int, ...]) -> None:
    """Check that a text has no lone surrogates, halves of a character that UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise GemmaError(f"{_name(place)}{quoted(text)}, expected text without lone surrogates") from None


def _name(place: tuple[str | int, ...]) -> str:
    """Return a place as `messages[0].role: `; nothing for the whole value."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    name = "".join(parts).removeprefix(".")
    return f"{name}: " if name else ""
