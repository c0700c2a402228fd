"""JSON from outside: what is read is what `json` reads, and each wrong value is named with its place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.json_input import (
    BOOLEAN,
    NUMBER,
    POSITIVE,
    TEXT,
    check_json,
    list_of,
    object_of,
    one_of,
    optional,
    parse_json,
    read_json,
    read_json_lines,
    whole_number,
)

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
PERSON = object_of({"name": TEXT, "age": whole_number(0, 150), "tall": optional(BOOLEAN)})
OBJECT = object_of({})


@given(st.dictionaries(st.text(), VALUES), st.booleans())
def test_valid_json_is_read_as_it_is(values, ascii):
    assert parse_json(json.dumps(values, ensure_ascii=ascii), OBJECT, "a.json") == values


@pytest.mark.parametrize("values", [{"name": "Eve", "age": 0}, {"name": "", "age": 150, "tall": None, "more": [1]}])
def test_values_that_fit(values):
    assert parse_json(json.dumps(values), PERSON, "a.json") == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "Eve"}', "a.json: age: missing, expected a whole number from 0 to 150"),
        ('{"name": "Eve", "age": 151}', "a.json: age: 151, expected a whole number from 0 to 150"),
        ('{"name": "Eve", "age": -1}', "a.json: age: -1, expected a whole number from 0 to 150"),
        ('{"name": "Eve", "age": 1.5}', "a.json: age: 1.5, expected a whole number"),
        ('{"name": "Eve", "age": true}', "a.json: age: true, expected a whole number"),
        ('{"name": null, "age": 1}', "a.json: name: null, expected text"),
        ('{"name": "Eve", "age": 1, "tall": 1}', "a.json: tall: 1, expected true or false"),
        ('{"name": "Eve", "age": 1, "age": 2}', 'a.json: "age": twice in one object, expected each name once'),
        ('{"more": {"a": 1, "a": 1}}', 'a.json: "a": twice in one object'),
        ('[{"name": "Eve"}]', 'a.json: [{"name": "Eve"}], expected a JSON object'),
        ('{"name": "\\ud800", "age": 1}', 'a.json: name: "\\ud800", expected text without lone surrogates'),
        ('{"name": "Eve", "age": 1, "\\udfff": 1}', 'a.json: "\\udfff", expected text without lone surrogates'),
        ('{"name": "Eve", "age": 1, "more": [0, NaN]}', "a.json: more[1]: nan, expected a finite number"),
        ('{"name": "Eve", "age": 1, "more": {"x": 1e999}}', "a.json: more.x: inf, expected a finite number"),
        ('{"name": "Eve", "age": 1, "more": -Infinity}', "a.json: more: -inf, expected a finite number"),
        ("\ufeff{}", "a.json: not JSON (Unexpected UTF-8 BOM"),
        ("", "a.json: not JSON (Expecting value"),
        ("{} {}", "a.json: not JSON (Extra data"),
        ('{"name": ' + "9" * 5000 + "}", "a.json: not JSON (Exceeds the limit"),
        ('{"name": ' + "[" * 49 + "]" * 49 + ', "age": 1}', "a.json: name: [["),
        (
            '{"name": "Eve", "age": 1, "more": ' + "[" * 51 + "]" * 51 + "}",
            "a.json: nested too deeply, expected at most",
        ),
        ("[" * 100_000, "a.json: nested too deeply"),
        ('{"a":' * 100_000, "a.json: nested too deeply"),
    ],
)
def test_values_that_do_not_fit(text, message):
    with pytest.raises(GemmaError) as error:
        parse_json(text, PERSON, "a.json")
    assert str(error.value).startswith(message)
    assert len(str(error.value)) <= 200
    assert str(error.value).isprintable()


def test_the_place_of_a_wrong_value_in_lists_and_objects():
    schema = object_of({"rope": object_of({}, others=object_of({"theta": list_of(POSITIVE)}))})
    with pytest.raises(GemmaError, match=r'^rope\.full\.theta\[1\]: "x", expected a positive number$'):
        check_json({"rope": {"full": {"theta": [1, "x"]}}}, schema)


@pytest.mark.parametrize("value", [0, -1, 10**400, float("nan"), float("inf"), True, "1", None])
def test_numbers_that_are_not_positive(value):
    with pytest.raises(GemmaError, match=r"expected a (positive|finite) number"):
        check_json(value, POSITIVE)


def test_numbers_may_be_whole_and_negative_but_not_larger_than_a_float():
    for value in (-1, 0.5, 10**300):
        check_json(value, NUMBER)
    with pytest.raises(GemmaError, match=r"10000.* \.\.\., expected a number"):
        check_json(10**400, NUMBER)


def test_choices():
    check_json("a", one_of("a", "b"))
    with pytest.raises(GemmaError, match="\"c\", expected 'a', 'b' or 'd'"):
        check_json("c", one_of("a", "b", "d"))
    with pytest.raises(GemmaError, match="\"c\", expected 'a'"):
        check_json("c", one_of("a"))


def test_a_long_wrong_value_is_shortened():
    with pytest.raises(GemmaError) as error:
        check_json({"a": "x" * 10_000}, object_of({"a": BOOLEAN}))
    assert len(str(error.value)) < 120


def test_files_are_limited_in_size(tmp_path, monkeypatch):
    monkeypatch.setattr("gemma_np.json_input._LARGEST", 10)
    (tmp_path / "a.json").write_text('{"a": 123}')
    assert read_json(tmp_path / "a.json", OBJECT) == {"a": 123}
    (tmp_path / "a.json").write_text('{"a": 1234}')
    with pytest.raises(GemmaError, match=r"a\.json: 11 bytes, expected a JSON file of at most 10"):
        read_json(tmp_path / "a.json", OBJECT)
    with pytest.raises(GemmaError, match="metadata: 11 characters, expected at most 10"):
        parse_json('{"a": 1234}', OBJECT, "metadata")


def test_lines_end_with_a_newline_only(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x\u2028y\u0085z"}\n\n {"a": 1}', encoding="utf-8")
    lines = list(read_json_lines(path, OBJECT, "lines"))
    assert lines == [(f"{path}, line 1", {"a": "x\u2028y\u0085z"}), (f"{path}, line 3", {"a": 1})]
    path.write_bytes(b'{"a":\r1}\r\n\t\r\n')
    assert list(read_json_lines(path, OBJECT, "lines")) == [(f"{path}, line 1", {"a": 1})]
    for odd in ("\x1c", "\u2028", "\u00a0"):  # white space for Python, not for JSON
        path.write_text(odd, encoding="utf-8")
        with pytest.raises(GemmaError, match="line 1: not JSON"):
            list(read_json_lines(path, OBJECT, "lines"))
    path.write_text('{"a": 1}\n{"a": }\n')
    with pytest.raises(GemmaError, match=r"a\.jsonl, line 2: not JSON"):
        list(read_json_lines(path, OBJECT, "lines"))
