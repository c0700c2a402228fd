"""Each exercise: the reference and the printed solution pass, the stub and every planted mistake fail with its hint."""

import ast
import importlib
import linecache
import re
from pathlib import Path

import numpy as np
import pytest
from support import check
from support.exercise import NOT_WRITTEN, Exercise, known
from support.exercises import attention, cache_and_generation, rms_norm, speculative_decoding

from gemma_np.model.transformer import lm_head, transformer
from tests.support.by_path import module_at

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "tutorials/sources").glob("*.py"))


def exercises_of(source):
    """(name of the exercise, its object, name of the reader's function), as the tutorial's `check` calls have them."""
    tree = ast.parse(source.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "check"]
    [module] = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "support.exercises"
        for alias in node.names
        if alias.asname == "exercises"
    }
    found = importlib.import_module(f"support.exercises.{module}")
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
    return getattr(module_at(ROOT / "tutorials/solutions" / source.name), name)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_each_tutorial_has_two_to_four_exercises(source):
    assert 2 <= len(list(exercises_of(source))) <= 4


@pytest.mark.parametrize(("source", "exercise", "function"), ALL)
def test_the_reference_and_the_solution_pass(source, exercise, function):
    for seed in range(3):
        assert check(exercise.reference, exercise, seed).right
        verdict = check(solution_of(source, function), exercise, seed)
        assert verdict.right, verdict


@pytest.mark.parametrize(("source", "exercise", "function"), ALL)
def test_the_stub_says_its_shapes_and_is_not_right(source, exercise, function):
    stub = stub_of(source, function)
    assert "->" in stub.__doc__
    assert check(stub, exercise) == (False, NOT_WRITTEN)
    assert len(exercise.mistakes) >= 3


@pytest.mark.parametrize(("source", "exercise", "function"), ALL)
def test_hints_open_one_by_one_before_the_stub_or_one_is_in_it(source, exercise, function):
    before, _ = source.read_text().split(f"\ndef {function}(")
    text = before.split("# %% [markdown]")[-1]
    hints = re.findall(r"#\n# <details><summary>(.+?)</summary>\n#\n(?:# .+\n)+#\n# </details>\n", text)
    assert hints == [f"Hint {n}" for n in range(1, len(hints) + 1)]
    assert len(hints) == text.count("<details>") <= 3
    assert ("Hint:" in stub_of(source, function).__doc__) != bool(hints)


@pytest.mark.parametrize(("exercise", "hint"), MISTAKES)
def test_a_planted_mistake_gets_its_hint(exercise, hint):
    for seed in range(3):
        with np.errstate(all="ignore"):  # some of them overflow
            verdict = check(exercise.mistakes[hint], exercise, seed)
            easiest, *_ = exercise.cases(np.random.default_rng(seed)).values()
            exercise.mistakes[hint](*easiest)  # a mistake may raise an error, but not by mistake
        assert not verdict.right
        assert verdict.message.endswith(hint)


EXERCISE = rms_norm.NORM


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x, weight, eps: np.zeros(3), "wrong for one vector: shape (3,), expected (6,)"),
        (lambda x, weight, eps: 1 / 0, "raises ZeroDivisionError: division by zero"),
        (lambda x, weight, eps: x * np.nan, "NaN or infinity"),
        (lambda x, weight, eps: EXERCISE.reference(x, weight, eps) + 0.01, "(the largest error)"),
        (lambda x, weight, eps: np.add(x, 1, out=x), "changes its arguments"),
        (lambda x, weight, eps: x > 0, "dtype bool, expected float64"),
        (lambda x, weight: x, "raises TypeError"),
        (lambda x, weight, eps: [1, [2, 3]], "a list of parts with different shapes, expected the shape (6,)"),
        (lambda x, weight, eps: (EXERCISE.reference(x, weight, eps),), "shape (1, 6), expected (6,)"),
    ],
)
def test_what_is_wrong_is_said_in_words(answer, said):
    verdict = check(answer, EXERCISE)
    assert not verdict.right
    assert said in verdict.message


def test_what_was_right_before_is_said_too():
    right_for_one = check(lambda x, weight, eps: EXERCISE.reference(x, 0 * weight, eps), EXERCISE)
    assert right_for_one.message.startswith("right for one vector; wrong for a weight that is not zero: ")
    assert repr(check(EXERCISE.reference, EXERCISE)).startswith("✓ right: one vector, ")


def test_lists_numbers_and_tuples_are_compared_too():
    pair = Exercise(lambda n: (n, [n, n]), lambda generator: {"three": (3,)}, {})
    assert check(lambda n: (n, [n, n]), pair).right
    assert check(lambda n: [np.array(n), (n, n)], pair).right
    assert check(lambda n: n, pair).message == "wrong for three: returns int, expected a tuple of 2"
    assert check(lambda n: np.array(n), pair).message == "wrong for three: returns ndarray, expected a tuple of 2"
    said = check(lambda n: (n, [n]), pair).message
    assert said.startswith("wrong for three: part 1 of the returned tuple: shape (1,)")
    half = Exercise(lambda n: n / 2, lambda generator: {"three": (3,)}, {})
    assert check(lambda n: n, half).message == "wrong for three: 3, expected 1.5"


def test_numbers_that_differ_late_are_printed_with_more_digits():
    third = Exercise(lambda: 1 / 3, lambda generator: {"a third": ()}, {})
    assert check(lambda: 0.33333334, third).message == "wrong for a third: 0.33333334, expected 0.33333333"
    thirds = Exercise(lambda: np.array([2.0, 1 / 3]), lambda generator: {"two": ()}, {})
    said = "wrong for two: 0.33333334 at [1], expected 0.33333333 (the largest error)"
    assert check(lambda: np.array([2.0, 0.33333334]), thirds).message == said


TIMES_THREE = Exercise(
    lambda n: 3 * n,
    lambda generator: {"0": (0.0,), "1": (1.0,), "2": (2.0,), "5": (5.0,)},
    {"n + 2": lambda n: n + 2 if n else n, "2 n": lambda n: 2 * n, "2 up to 2": lambda n: 2 * min(n, 2)},
)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda n: 2 * n, "right for 0; wrong for 1: 2 n"),
        (lambda n: 2 * min(n, 2), "right for 0; wrong for 1: 2 up to 2"),
        (lambda n: 2 * n if n < 5 else -1, "right for 0; wrong for 1: 2 n"),  # two mistakes
        (lambda n: 3 * n if n < 2 else 4, "right for 0, 1; wrong for 2: n + 2"),
        (lambda n: 3 * n if n < 2 else 5, "right for 0, 1; wrong for 2: 5, expected 6"),
        (lambda n: n, "right for 0; wrong for 1: 1, expected 3"),
        (lambda n: 2 * n if n > 1 else 5 * n, "right for 0; wrong for 1: 5, expected 3"),  # agrees, but later
    ],
)
def test_the_hint_is_that_of_the_mistake_that_agrees_longest_and_in_the_failing_case(answer, said):
    assert check(answer, TIMES_THREE).message == said


def typed(source, name):
    """A function that was typed in a notebook, whose source is nowhere but in linecache."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace = {"np": np}
    exec(compile(source, name, "exec"), namespace)
    return namespace["answer"]


def test_an_error_tells_the_line_of_the_answer_where_it_was_raised():
    source = "def half(x):\n    return np.add(x, x[:2])\n\ndef answer(x, weight, eps):\n    return half(x) / 2\n"
    said = check(typed(source, "/tmp/ipykernel_1/1.py"), EXERCISE).message
    assert said.endswith("shapes (6,) (2,) in your line `return np.add(x, x[:2])`")
    inside_numpy = "def answer(x, weight, eps):\n    return np.linalg.inv(x)\n"
    said = check(typed(inside_numpy, "/tmp/ipykernel_1/2.py"), EXERCISE).message
    assert said.endswith("in your line `return np.linalg.inv(x)`")


def test_no_line_is_told_where_there_is_none():
    namespace = {}
    exec("def answer(x, weight, eps): return x[7]", namespace)
    assert check(namespace["answer"], EXERCISE).message.endswith("out of bounds for axis 0 with size 6")
    assert check(lambda x: x, EXERCISE).message.endswith("3 were given")
    assert check(np.linalg.inv, EXERCISE).message.startswith("wrong for one vector: raises TypeError")


def test_the_largest_score_of_all_may_be_hidden():
    def mix(scores, values):
        e = np.exp(scores - scores.max(-1, keepdims=True))
        e = np.where(np.tri(len(scores), dtype=bool), e, 0)
        return e / e.sum(-1, keepdims=True) @ values

    for seed in range(20):
        with np.errstate(invalid="ignore"):
            said = check(mix, attention.MIX, seed).message
        assert "wrong for hidden scores far above the others: the largest score of the row is that of a hid" in said


def test_the_textbook_error_of_top_p_gets_its_hint_whatever_the_rounding():
    def nucleus(logits, temperature, top_p):
        probs = np.exp((logits - logits.max()) / temperature)
        probs /= probs.sum()
        order = np.argsort(-probs)
        keep = order[np.cumsum(probs[order]) < top_p]
        kept = np.zeros_like(probs)
        kept[keep] = probs[keep]
        return kept / kept.sum()

    for seed in range(20):
        with np.errstate(invalid="ignore"):
            said = check(nucleus, cache_and_generation.TOP_P, seed).message
        assert "the token that crosses top_p is dropped" in said


def test_reading_all_again_at_each_step_is_noticed():
    def greedy(ids, count, weights, config):
        text = list(ids)
        for _ in range(count):
            x = transformer(text, weights, config)
            text.append(int(lm_head(x[-1], weights, config).argmax()))
        return text[len(ids) :]

    assert check(greedy, cache_and_generation.DECODE) == (
        False,
        "right text, but every step reads everything again; read only the new token, the cache has the rest",
    )


def test_infinity_and_nan_are_compared_by_their_places():
    values = np.array([1.0, -np.inf, np.nan])
    exercise = Exercise(
        lambda: values, lambda generator: {"none": ()}, {"one is missing": lambda: np.array([1, 2, np.nan])}
    )
    assert check(lambda: values.copy(), exercise).right
    assert check(lambda: np.array([1, 2, np.nan]), exercise).message == "wrong for none: one is missing"
    assert not check(lambda: -values, exercise).right


def test_a_hint_of_the_catalogue():
    assert known("norm-no-plus1") == "the norm multiplies by w instead of 1 + w; multiply by 1 + w"
    with pytest.raises(ValueError, match="not enough values"):
        known("no-such-mistake")


SPECULATION = module_at(ROOT / "tutorials/solutions/20_speculative_decoding.py")
P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.7, 0.1])


def what_comes_out(step):
    """The distribution of a token that q proposes and the step accepts or replaces."""
    total = np.zeros(3)
    for token, q in enumerate(Q):
        accept, replacement = step(token, P, Q)
        total[token] += q * min(1, accept)
        total += q * (1 - min(1, accept)) * replacement
    return total


def test_the_rejection_step_keeps_the_distribution_and_its_planted_mistakes_do_not():
    np.testing.assert_allclose(what_comes_out(speculative_decoding.REJECTION.reference), P)
    np.testing.assert_allclose(what_comes_out(SPECULATION.rejection_step), P)
    for hint, mistaken in speculative_decoding.REJECTION.mistakes.items():
        changed = np.abs(what_comes_out(mistaken) - P).max()
        assert (changed < 1e-9) == hint.startswith("p / q exceeds 1"), hint  # which is no probability, but harmless


def chi_square_of_pairs(verify_chain):
    """Of the first two tokens, proposed in one pass; a second one that it does not yield is drawn from p."""
    generator, draws, pairs = np.random.default_rng(0), 5000, np.zeros((3, 3))
    for _ in range(draws):
        ids = generator.choice(3, 2, p=Q).tolist()
        count, probs = verify_chain(ids, np.array([P, P[::-1], P]), np.array([Q, Q]), generator.random(2))
        text = [*ids[:count], generator.choice(3, p=probs), generator.choice(3, p=P[::-1])]
        pairs[text[0], text[1]] += 1
    expected = draws * np.outer(P, P[::-1])
    return np.sum((pairs - expected) ** 2 / expected)


def test_verified_chains_have_the_distribution_of_the_model():
    limit = 26.1  # of eight degrees of freedom, exceeded by chance once in a thousand times
    assert chi_square_of_pairs(SPECULATION.verify_chain) < limit
    chain = speculative_decoding.CHAIN
    assert chi_square_of_pairs(chain.reference) < limit
    wrong = [mistaken for hint, mistaken in chain.mistakes.items() if "is drawn from p" in hint or "p alone" in hint]
    assert len(wrong) == 2
    assert min(map(chi_square_of_pairs, wrong)) > limit
