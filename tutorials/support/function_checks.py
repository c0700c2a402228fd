"""Some of the reader's functions alone: the same inputs for them and for the reference, and the usual mistakes."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from gemma_np.model.feed_forward import gelu_and_slope
from gemma_np.model.log_probs import log_softmax
from gemma_np.model.rms_norm import rms_norm_backward
from gemma_np.model.rope import rope, rope_cos_sin
from gemma_np.model.soft_cap import soft_cap_backward
from gemma_np.training.losses import cross_entropy, masked_mean
from support.difference import difference
from support.reader_file import ReaderFile, Wrong, require_pair


class Case(NamedTuple):
    """One call of a function of the reader's."""

    function: str
    arguments: Sequence[Any]
    results: Mapping[str, Any]  # what is returned, by name: a pair, or one result that needs no name
    mistakes: Mapping[str, Sequence[Any]] = MappingProxyType({})  # words -> the results of someone who makes it
    inputs: str = ""


def check_functions(file: ReaderFile, cases: Iterator[Case]) -> None:
    """Raise Wrong at the first case whose results differ from the reference."""
    for case in cases:
        found = getattr(file, case.function)(*case.arguments)
        place = f"{case.function} of {case.inputs}" if case.inputs else case.function
        if len(case.results) == 1:
            found = [found]
        else:
            require_pair(case.function, found, " and ".join(case.results))
        judge(place, found, case.results, case.mistakes)


def judge(place: str, found: Sequence[Any], results: Mapping[str, Any], mistakes: Mapping[str, Sequence[Any]]) -> None:
    """Raise Wrong when a result differs, with the mistake that explains it, or else with the numbers."""
    for part, (name, expected) in enumerate(results.items()):
        said = difference(found[part], np.asarray(expected))
        if said:
            said = next((words for words, wrong in mistakes.items() if not difference(found[part], wrong[part])), said)
        elif np.asarray(expected).dtype == np.float32 != np.asarray(found[part]).dtype:
            said = f"the result is {np.asarray(found[part]).dtype}, expected float32, the dtype of the input"
        if said:
            raise Wrong(f"{place}{', ' if name else ''}{name}: {said}")


def rope_cases() -> Iterator[Case]:
    """Yield positions that do not begin at 0, and some at which angles in float32 are too coarse."""
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)

    def rotated(start: int) -> np.ndarray:
        return rope(x, *rope_cos_sin(range(start, start + 3), 8, 500.0, 1.0, np.float32))

    from_zero = {"it takes 0, 1, 2 ... instead of `positions`": [rotated(0)]}
    for start, advice in ((7, ""), (1_000_000, ", where angles in float32 are too coarse")):
        inputs = f"positions {start} to {start + 2}{advice}"
        yield Case("rope", (x, np.arange(start, start + 3), 500.0), {"": rotated(start)}, from_zero, inputs)


def backward_cases() -> Iterator[Case]:
    """Yield the parts of the backward pass, with two batch axes."""
    generator = np.random.default_rng(0)
    x, dy = generator.standard_normal((2, 2, 5, 6))
    weight, matrix = generator.standard_normal(6), generator.standard_normal((4, 6))

    yield Case("log_softmax", (x,), {"": log_softmax(x)})
    yield Case("log_softmax", (1000 * x,), {"": log_softmax(1000 * x)}, inputs="logits near 1000")

    targets = np.array([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1]])
    losses, slopes = cross_entropy(x, targets)
    loss, slope = masked_mean(losses, slopes)
    is_sum = {"it is the sum; take the mean of all positions": (losses.sum(), slopes)}
    yield Case("cross_entropy", (x, targets), {"the loss": loss, "the gradient": slope}, is_sum)

    dz = generator.standard_normal((2, 5, 4))
    yield Case(
        "linear_backward",
        (dz, x, matrix),
        {"dx": dz @ matrix, "dweight": np.einsum("btn,btm->nm", dz, x)},
        {"the batch is not added up": (None, dz.swapaxes(-1, -2) @ x)},
    )

    dx, dweight = rms_norm_backward(dy, x, weight, 0.1)
    rms = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 0.1)
    yield Case(
        "rms_norm_backward",
        (dy, x, weight, 0.1),
        {"dx": dx, "dweight": dweight},
        {
            "dy is multiplied by weight, expected 1 + weight": (rms_norm_backward(dy, x, weight - 1, 0.1)[0], None),
            "it takes the root mean square for a constant; it depends on x": (dy * (1 + weight) / rms, None),
            "the tokens are not added up": (None, dy * x / rms),
        },
    )

    capped = 2 * np.tanh(x / 2)
    again = {"it takes tanh of y / cap; y is already capped": [dy * (1 - np.tanh(capped / 2) ** 2)]}
    yield Case("soft_cap_backward", (dy, capped, 2.0), {"": soft_cap_backward(dy, capped, 2.0)}, again)

    probs = np.exp(log_softmax(x))
    right = probs * (dy - np.sum(dy * probs, axis=-1, keepdims=True))
    independent = {"the scores change the sum of the row, too; subtract sum(dprobs * probs)": [probs * dy]}
    yield Case("softmax_backward", (dy, probs), {"": right}, independent)

    heads = generator.standard_normal((2, 6, 5, 4))  # [B, H, S, h], K = 2
    tiled = {"it adds up heads i, i + K, ...; those of a group are neighbours": [heads.reshape(2, 3, 2, 5, 4).sum(1)]}
    yield Case("sum_groups", (heads, 2), {"": heads.reshape(2, 2, 3, 5, 4).sum(axis=2)}, tiled)

    yield Case("gelu_slope", (x,), {"": gelu_and_slope(x)[1]}, inputs="x")
