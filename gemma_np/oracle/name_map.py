"""Write a name map to start from, and propose one for the names in a dump, as `gemma_np.oracle.dump` reads them.

A name is looked up in the table of `gemma_np.oracle.known_names`; the shapes must fit, and choose the layout. What is
unknown or ambiguous is left out, with the reason: a wrong name map costs more time than a missing line.
"""

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError, quoted
from gemma_np.model.records import RECORDS
from gemma_np.oracle.dump import Dump
from gemma_np.oracle.known_names import in_words, known_names, model_kinds

_LAYER = "{layer}"
_NUMBER = re.compile(r"(?:(?<![A-Za-z0-9])|(?<=layer)|(?<=block)|(?<=blk))[0-9]{1,4}(?![A-Za-z0-9])")
_LETTERS = {row.name: row.letters.replace("K", "H") for row in RECORDS}
_LAYOUTS = {"H T h": ("H T h", "T H h", "T H*h"), "H T S": ("H T S", "T H S"), "T H*h": ("T H*h", "T H h", "H T h")}

_NEAR = 0.8  # of what is hinted at

Shapes = Mapping[str, tuple[int, ...]]
Entry = str | dict[str, Any]


class NameMap(NamedTuple):
    """A proposed name map, and what it lacks."""

    names: dict[str, Entry]  # the name map: their names -> ours, some with a layout
    left_out: dict[str, str]  # their names that are not in it, and why
    missing: list[str]  # our records that no name stands for, with `*` for the layer


class _Match(NamedTuple):
    """What one of their names, with {layer} in it, stands for."""

    kinds: tuple[str, ...]
    layout: str
    rank: int


def every_name(config: GemmaConfig) -> dict[str, Entry]:
    """Return a name map from our own names, with every record of a model and its layout, to be edited."""
    kinds = {kind.replace("*", _LAYER): _LETTERS[kind] for kind in model_kinds(config)}
    return {name: {"record": name, "layout": layout} for name, layout in kinds.items()}


def propose_name_map(dump: Dump, config: GemmaConfig) -> NameMap:
    """Return a name map for the names in a dump, which was read without one."""
    names, left_out, given = dict[str, Entry](), dict[str, str](), set[str]()
    for number, shapes in _passes(dump).items():
        prefix = f"pass.{number}." if number else ""
        templates = _templates(shapes)
        lengths = dict(enumerate(map(len, dump.passes or ())))
        tokens = lengths.get(number) or _tokens(templates, shapes, config)
        matches = dict[str, _Match]()
        for template, members in templates.items():
            try:
                matches[template] = _match(template, {name: shapes[name] for name in members}, tokens, config)
            except GemmaError as error:
                left_out[prefix + template] = str(error)
        for template, match in matches.items():
            if rival := _rival(template, matches):
                left_out[prefix + template] = f"is {' and '.join(match.kinds)} as well, like {quoted(prefix + rival)}"
            else:
                names[prefix + template] = _entry(match, prefix)
                given.update(match.kinds)
    return NameMap(names, left_out, [kind for kind in model_kinds(config) if kind not in given])


def name_map_json(names: Mapping[str, Entry]) -> str:
    """Return a name map as JSON, one name in each line."""
    lines = [f"  {json.dumps(theirs)}: {json.dumps(ours)}" for theirs, ours in names.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def _passes(dump: Dump) -> dict[int, dict[str, tuple[int, ...]]]:
    """Return the shapes of the records of each pass, by their names without it."""
    passes: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, record in dump.records.items():
        found = re.match(r"pass\.([1-9][0-9]{0,5})\.", name)
        passes.setdefault(int(found[1]) if found else 0, {})[name[found.end() :] if found else name] = record.shape
    return passes


def _templates(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names with {layer} for the number that varies most, and those that each stands for."""
    options = {
        name: [f"{name[: found.start()]}{_LAYER}{name[found.end() :]}" for found in _NUMBER.finditer(name)] or [name]
        for name in names
    }
    count = Counter(option for several in options.values() for option in several)
    templates: dict[str, list[str]] = {}
    for name, several in options.items():
        templates.setdefault(max(several, key=lambda option: count[option]), []).append(name)
    return templates


def _words(template: str) -> str:
    """Return the words of a name within its layer, empty for that of the layer itself."""
    before, layer, after = re.sub("[./]__call__$", "", template).rpartition(_LAYER)
    if layer and not after:
        return in_words(before)
    return in_words(after) or after


def _tokens(templates: Mapping[str, Sequence[str]], shapes: Shapes, config: GemmaConfig) -> int:
    """Return the number of tokens with which the shapes of most names fit; 0 without any shapes."""
    count = Counter[int]()
    for template, members in templates.items():
        shape = shapes[members[0]]
        options = known_names(config, in_layer=_LAYER in template).get(_words(template), [])
        for size in dict.fromkeys(shape):
            count[size] += any(_fitting(known.kinds, [shape], size, config) for known in options)
    return max(count, key=lambda size: count[size], default=0)


def _match(template: str, shapes: Shapes, tokens: int, config: GemmaConfig) -> _Match:
    """Return what a name stands for. Raises GemmaError, with the reason, when that is unknown or ambiguous."""
    if any(_LAYER in name for name in shapes):
        raise GemmaError(f"has {_LAYER} in it, expected a number")
    words, table = _words(template), known_names(config, in_layer=_LAYER in template)
    if words not in table:
        near = difflib.get_close_matches(words, table, 1, _NEAR)
        hint = f"; the nearest is {' and '.join(table[near[0]][0].kinds)}" if near else ""
        raise GemmaError(f"is not known{hint}")
    before, _, after = template.partition(_LAYER)
    numbers = [int(name[len(before) : len(name) - len(after)]) for name in shapes] if _LAYER in template else [0]
    if max(numbers) >= config.num_hidden_layers:
        raise GemmaError(f"has layer {max(numbers)}, expected 0 to {config.num_hidden_layers - 1}")
    fitting = [
        _Match(known.kinds, layout, known.rank)
        for known in table[words]
        for layout in _fitting(known.kinds, list(shapes.values()), tokens, config)
    ]
    if not fitting:
        kinds = " or ".join(" and ".join(known.kinds) for known in table[words])
        raise GemmaError(f"has the shape {next(iter(shapes.values()))}, which fits no layout of {kinds}")
    if len(fitting) > 1:
        may_be = " or ".join(f"{' and '.join(match.kinds)} as {quoted(match.layout)}" for match in fitting)
        raise GemmaError(f"may be {may_be}")
    return fitting[0]


def _fitting(kinds: Sequence[str], shapes: Iterable[tuple[int, ...]], tokens: int, config: GemmaConfig) -> list[str]:
    """Return the layouts in which arrays of all these shapes may hold the records; without or with a batch axis."""
    letters, shapes = _LETTERS[kinds[0]], list(shapes)
    if len(kinds) > 1:
        layouts: Sequence[str] = [letters.replace("H T h", "T H*h")]
    else:
        layouts = _LAYOUTS.get(letters, (letters, " ".join(reversed(letters.split()))))
    if letters == "T V":  # the logits of the last tokens may stand alone
        shapes = [_of_all_rows(shape, tokens) for shape in shapes]
    widths = [_axes(kinds, layout, tokens, config) for layout in layouts]
    for batch in ((), (1,)):
        found = [
            layout
            for layout, axes in zip(layouts, widths, strict=True)
            if all(_equal(shape, (*batch, *axes)) for shape in shapes)
        ]
        if found:
            has_one_head = "H" in letters and _heads(kinds[0], config) == 1
            return found[:1] if has_one_head else found  # the axis of heads may stand anywhere
    return []


def _of_all_rows(shape: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """Return the shape that the logits of some tokens would have if they were those of all."""
    is_some = len(shape) == 1 or (len(shape) == 2 and shape[0] <= tokens)
    return (tokens, shape[-1]) if is_some else shape


def _axes(kinds: Sequence[str], layout: str, tokens: int, config: GemmaConfig) -> tuple[int, ...]:
    """Return the length of each axis, -1 for any number of keys; several records lie side by side in the last one."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    sizes = {"T": tokens, "S": -1, "D": D, "F": F, "V": V, "h": config.head_dim}
    *first, last = layout.split()
    parts = [sizes | {"H": _heads(kind, config)} for kind in kinds]
    lengths = [math.prod(parts[0][letter] for letter in axis.split("*")) for axis in first]
    return (*lengths, sum(math.prod(part[letter] for letter in last.split("*")) for part in parts))


def _heads(kind: str, config: GemmaConfig) -> int:
    shared = re.search(r"\.self_attn\.[kv]", kind)
    return config.num_key_value_heads if shared else config.num_attention_heads


def _equal(shape: Sequence[int], axes: Sequence[int]) -> bool:
    return len(shape) == len(axes) and all(axis in (size, -1) for size, axis in zip(shape, axes, strict=True))


def _rival(template: str, matches: Mapping[str, _Match]) -> str | None:
    """Return another name, at least as clear, for a record that a name stands for."""
    own = matches[template]
    for other, match in matches.items():
        if other != template and match.rank <= own.rank and not set(match.kinds).isdisjoint(own.kinds):
            return other
    return None


def _entry(match: _Match, prefix: str) -> Entry:
    """Return what a name map says of a name."""
    records = [prefix + kind.replace("*", _LAYER) for kind in match.kinds]
    if len(records) > 1:
        return {"records": records, "layout": match.layout}
    return records[0] if match.layout == _LETTERS[match.kinds[0]] else {"record": records[0], "layout": match.layout}
