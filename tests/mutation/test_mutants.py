"""The machine that changes the source: what it changes, and that its list of equivalent changes is up to date."""

import ast
import json

import pytest

from tests.mutation.__main__ import EQUIVALENT, FILES, every_mutant
from tests.mutation.mutants import mutants

SOURCE = '''
def f(a: int = 3, b=-1.5) -> bool:
    """Return 5 < 6."""
    if a < 4 and not b:
        raise ValueError(f"{a + 1}")
    work(a, b)
    a += 2
    return a[1:] @ b == 0.0 or True
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("3", "4"),
        ("-1.5", "(1.5)"),
        ("1.5", "3.0"),
        ("a < 4 and not b", "(a < 4 or not b)"),
        ("a < 4", "(a <= 4)"),
        ("not b", "(b)"),
        ('raise ValueError(f"{a + 1}")', "pass"),
        ("work(a, b)", "pass"),
        ("work(a, b)", "work(b, a)"),
        ("a += 2", "pass"),
        ("1", "2"),
        ("a[1:] @ b", "(a[1:] * b)"),
        ("a[1:] @ b == 0.0", "(a[1:] @ b != 0.0)"),
        ("0.0", "1.0"),
        ("True", "False"),
    ],
)
def test_what_is_changed(old, new):
    assert (old, new) in {(mutant.old, mutant.new) for mutant in mutants(SOURCE)}


def test_texts_types_and_messages_are_not_changed():
    lines = {(mutant.line, mutant.old) for mutant in mutants(SOURCE)}
    assert 3 not in {line for line, _ in lines}
    assert not {old for line, old in lines if line == 5 and not old.startswith("raise")}


def test_the_negative_size_of_a_reshape_is_not_changed():
    assert {mutant.old for mutant in mutants("x.reshape(3, -1)[-1]")} == {"3", "-1", "1"}
    assert "-1" not in {mutant.old for mutant in mutants("x.reshape(3, -1)")}


@pytest.mark.parametrize("mutant", mutants(SOURCE), ids=lambda mutant: f"{mutant.old}->{mutant.new}")
def test_a_mutant_is_a_program_that_differs_in_one_place(mutant):
    changed = mutant.apply(SOURCE)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(SOURCE))
    before, after = SOURCE[: mutant.start], SOURCE[mutant.start + len(mutant.old) :]
    assert changed.startswith(before)
    assert changed.endswith(after)


def test_every_equivalent_change_is_one_that_can_be_drawn():
    drawn = {
        (file, mutant.text, mutant.old, mutant.new)
        for file, mutant in every_mutant([f"gemma_np/{name}.py" for name in FILES])
    }
    for entry in json.loads(EQUIVALENT.read_text(encoding="utf-8")):
        assert (entry["file"], entry["line"], entry["old"], entry["new"]) in drawn
        assert entry["reason"]
