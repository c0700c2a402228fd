"""Stop strings: the text ends before the first of them, however it comes in pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gemma_np
from gemma_np import GemmaError
from gemma_np.text.stop_strings import before_stop, stop_strings

pieces = st.lists(st.text("ab", max_size=2), min_size=3)
strings = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=2)


@given(pieces, strings)
def test_it_ends_where_the_first_stop_string_of_the_whole_text_begins(pieces, stop):
    """Of an engine that looks after each piece: where several end in the same piece, the first to begin counts."""
    whole, read = "".join(pieces), ""
    expected = whole
    for piece in pieces:
        read += piece
        if found := [read.index(string) for string in stop if string in read]:
            expected = read[: min(found)]
            break
    assert "".join(before_stop(pieces, stop)) == expected
    assert not any(string in expected for string in stop)


@given(pieces, strings)
def test_only_what_may_be_the_start_of_a_stop_string_is_held_back(pieces, stop):
    read, shown = "", ""
    for piece, part in zip(pieces, before_stop(iter(pieces), stop), strict=False):
        read, shown = read + piece, shown + part
        held = read.removeprefix(shown)
        if any(string in read for string in stop):
            break
        assert held == "" or any(string.startswith(held) for string in stop)


def test_without_stop_strings_the_pieces_stay_as_they_are():
    assert list(before_stop(["a", "", "b"], [])) == ["a", "", "b"]


def test_nothing_is_read_after_the_stop_string():
    pieces = iter(["a", "b\n", "\nc", "d"])
    assert "".join(before_stop(pieces, ["\n\n"])) == "ab"
    assert list(pieces) == ["d"]


def test_generation_stops_at_a_text_that_begins_and_ends_within_tokens():
    model = gemma_np.load()
    whole = model.generate("The sea", max_new_tokens=20)
    pieces = list(model.stream("The sea", max_new_tokens=20))
    place = next(n for n in range(2, 18) if len(pieces[n]) > 1 and pieces[n + 1])
    stop = pieces[place][-1] + pieces[place + 1][0]
    expected = whole[: whole.index(stop)]
    assert model.generate("The sea", max_new_tokens=20, stop=[stop, "never"]) == expected
    assert model.generate("The sea", max_new_tokens=20, stop=stop) == expected
    assert model.generate("The sea", max_new_tokens=20, stop=stop, draft="lookup") == expected


@pytest.mark.parametrize("stop", ["", ["a", ""], [3]], ids=repr)
def test_a_stop_string_that_is_none(stop):
    with pytest.raises(GemmaError, match=r"stop: .*expected a text that is not empty"):
        stop_strings(stop)
