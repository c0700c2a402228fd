"""Each exercise: the reference and the printed solution pass, the stub and every planted mistake fail with its hint."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from gemma_np.tutorial import check
from gemma_np.tutorial.exercise import NOT_WRITTEN, Exercise, known
from gemma_np.tutorial.exercises import rms_norm

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "tutorials/sources").glob("*.py"))


def exercises_of(source):
    """(name of the exercise, its object, name of the reader's function), as the tutorial's `check` calls have them."""
    tree = ast.parse(source.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "check"]
    [module] = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "gemma_np.tutorial.exercises"
        for alias in node.names
        if alias.asname == "exercises"
    }
    found = importlib.import_module(f"gemma_np.tutorial.exercises.{module}")
    for call in calls:
        function, exercise = map(ast.unparse, call.args)
        yield exercise.removeprefix("exercises."), getattr(found, exercise.removeprefix("exercises.")), function


ALL = [
    pytest.param(source, exercise, function, id=f"{source.stem}-{name}")
    for source in SOURCES
    for name, exercise, function in exercises_of(source)
]
MISTAKES = [
    pytest.param(exercise, hint, id=f"{source.stem}-{name}: {hint}")
    for source in SOURCES
    for name, exercise, _ in exercises_of(source)
    for hint in exercise.mistakes
]


def stub_of(source, name):
    [stub] = (
        node for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == name
    )
    namespace = {"np": np}
    exec(compile(ast.Module([stub], []), source, "exec"), namespace)
    return namespace[name]


def solution_of(source, name):
    spec = importlib.util.spec_from_file_location("solution", ROOT / "tutorials/solutions" / source.name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_each_tutorial_has_two_or_three_exercises(source):
    assert 2 <= len(list(exercises_of(source))) <= 3


@pytest.mark.parametrize(("source", "exercise", "function"), ALL)
def test_the_reference_and_the_solution_pass(source, exercise, function):
    for seed in range(3):
        assert check(exercise.reference, exercise, seed).right
        verdict = check(solution_of(source, function), exercise, seed)
        assert verdict.right, verdict


@pytest.mark.parametrize(("source", "exercise", "function"), ALL)
def test_the_stub_says_its_shapes_and_a_hint_and_is_not_right(source, exercise, function):
    stub = stub_of(source, function)
    assert "->" in stub.__doc__
    assert "Hint:" in stub.__doc__
    assert check(stub, exercise) == (False, NOT_WRITTEN)
    assert len(exercise.mistakes) >= 3


@pytest.mark.parametrize(("exercise", "hint"), MISTAKES)
def test_a_planted_mistake_gets_its_hint(exercise, hint):
    for seed in range(3):
        verdict = check(exercise.mistakes[hint], exercise, seed)
        assert not verdict.right
        assert verdict.words.endswith(hint)


EXERCISE = rms_norm.NORM


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x, weight, eps: np.zeros(3), "wrong for one vector: shape (3,), expected (6,)"),
        (lambda x, weight, eps: 1 / 0, "raises ZeroDivisionError: division by zero"),
        (lambda x, weight, eps: x * np.nan, "NaN or infinity"),
        (lambda x, weight, eps: EXERCISE.reference(x.astype(float), weight, eps), "float32: dtype float64, expected"),
        (lambda x, weight, eps: EXERCISE.reference(x, weight, eps) + 0.01, "(the largest error)"),
        (lambda x, weight, eps: np.add(x, 1, out=x), "changes what it is given"),
        (lambda x, weight, eps: x > 0, "dtype bool, expected float64"),
        (lambda x, weight: x, "raises TypeError"),
    ],
)
def test_what_is_wrong_is_said_in_words(answer, said):
    verdict = check(answer, EXERCISE)
    assert not verdict.right
    assert said in verdict.words


def test_what_was_right_before_is_said_too():
    right_for_one = check(lambda x, weight, eps: EXERCISE.reference(x, 0 * weight, eps), EXERCISE)
    assert right_for_one.words.startswith("right for one vector; wrong for a weight that is not zero: ")
    assert repr(check(EXERCISE.reference, EXERCISE)).startswith("✓ right: one vector, ")


def test_lists_numbers_and_tuples_are_compared_too():
    pair = Exercise(lambda n: (n, [n, n]), lambda generator: {"three": (3,)}, {})
    assert check(lambda n: (n, [n, n]), pair).right
    assert check(lambda n: n, pair).words == "wrong for three: returns int, expected a tuple of 2"
    assert check(lambda n: (n, [n]), pair).words.startswith("wrong for three: part 1 of what it returns: shape (1,)")
    half = Exercise(lambda n: n / 2, lambda generator: {"three": (3,)}, {})
    assert check(lambda n: n, half).words == "wrong for three: 3, expected 1.5"


def test_infinity_and_nan_are_compared_by_their_places():
    values = np.array([1.0, -np.inf, np.nan])
    exercise = Exercise(
        lambda: values, lambda generator: {"none": ()}, {"one is missing": lambda: np.array([1, 2, np.nan])}
    )
    assert check(lambda: values.copy(), exercise).right
    assert check(lambda: np.array([1, 2, np.nan]), exercise).words == "wrong for none: one is missing"
    assert not check(lambda: -values, exercise).right


def test_a_hint_of_the_catalogue():
    assert known("norm-no-plus1") == "the norm multiplies by w; multiply by 1 + w"
    with pytest.raises(ValueError, match="not enough values"):
        known("no-such-mistake")
