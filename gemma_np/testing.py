"""Compare your own functions with the reference in your tests, on random inputs from hypothesis.

    from gemma_np.testing import assert_matches_reference

    def test_my_norm():
        assert_matches_reference("rms_norm", my_rms_norm)

A function takes NumPy arrays and numbers in the order of `OPERATIONS[name].arguments`, and returns an array, or a tuple
of arrays for a backward pass. `from_command` calls a function in another language.
"""

import inspect
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.model import attention, attention_mask, embedding, feed_forward, rms_norm, rope, soft_cap
from gemma_np.scope import Record, Scope
from gemma_np.training import losses
from gemma_np.weights.linear import linear, linear_backward

TOLERANCES = {"float64": 1e-10, "float32": 1e-5}
"""Relative to the largest number expected; the reference is computed in float64 on the same inputs."""

Arguments = dict[str, Any]


class Operation(NamedTuple):
    """An operation: its reference function, and how to draw random arguments."""

    reference: Callable[..., Any]
    draw: Callable[[np.random.Generator, Callable[[str], int]], Arguments]  # (random numbers, size by letter)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return the names of the arguments, in order."""
        return tuple(inspect.signature(self.reference).parameters)


def _rope(x: np.ndarray, positions: np.ndarray, base: float) -> np.ndarray:
    return rope.rope(x, *_angles(x, positions, base))


def _rope_backward(dy: np.ndarray, positions: np.ndarray, base: float) -> np.ndarray:
    return rope.rope_backward(dy, *_angles(dy, positions, base))


def _angles(x: np.ndarray, positions: np.ndarray, base: float) -> tuple[np.ndarray, np.ndarray]:
    return rope.rope_cos_sin(range(int(positions[0]), int(positions[-1]) + 1), x.shape[-1], base, 1.0, x.dtype)


def _causal_softmax(scores: np.ndarray, window: int) -> np.ndarray:
    T = scores.shape[-1]
    return attention_mask.masked_softmax(scores, attention_mask.attention_mask(range(T), range(T), window))


def _grouped_query_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, query_scalar: float, cap: float, window: int
) -> np.ndarray:
    scores = attention.grouped_matmul(q / np.sqrt(query_scalar), k.swapaxes(-1, -2))
    return attention.grouped_matmul(_causal_softmax(soft_cap.soft_cap(scores, cap), window), v)


def _feed_forward(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    return feed_forward.feed_forward(x, _mlp(gate, up, down))


def _feed_forward_backward(
    dy: np.ndarray, x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray
) -> tuple[np.ndarray, ...]:
    record, gradients = Record(), dict[str, np.ndarray]()
    feed_forward.feed_forward(x, _mlp(gate, up, down), record)
    dx = feed_forward.feed_forward_backward(dy, x, _mlp(gate, up, down), Scope(record), Scope(gradients))
    return dx, *(gradients[f"{name}_proj.weight"] for name in ("gate", "up", "down"))


def _mlp(gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> Scope:
    return Scope({"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": down})


def _normal(*names_and_letters: str) -> Callable[[np.random.Generator, Callable[[str], int]], Arguments]:
    """Return a function that draws normal arrays, such as "x: T D", "weight: D"."""

    def draw(generator: np.random.Generator, size: Callable[[str], int]) -> Arguments:
        drawn = {}
        for entry in names_and_letters:
            name, letters = entry.split(": ")
            drawn[name] = generator.standard_normal([size(letter) for letter in letters.split()])
        return drawn

    return draw


def _with(draw: Callable[..., Arguments], **more: Callable[..., Any]) -> Callable[..., Arguments]:
    """Return `draw` with more arguments, each drawn from (generator, size)."""
    return lambda generator, size: draw(generator, size) | {name: make(generator, size) for name, make in more.items()}


def _ids(generator: np.random.Generator, size: Callable[[str], int]) -> np.ndarray:
    return generator.integers(0, size("V"), size("T"))


def _positions(generator: np.random.Generator, size: Callable[[str], int]) -> np.ndarray:
    return np.arange(size("T")) + generator.integers(0, 100)


def _one_of(*values: float) -> Callable[..., float]:
    return lambda generator, size: values[generator.integers(len(values))]


OPERATIONS = {
    "linear": Operation(linear, _normal("x: T D", "weight: F D")),
    "linear_backward": Operation(linear_backward, _normal("dy: T F", "x: T D", "weight: F D")),
    "embed": Operation(embedding.embed, _with(_normal("embedding: V D"), ids=_ids)),
    "embed_backward": Operation(embedding.embed_backward, _with(_normal("dx: T D", "embedding: V D"), ids=_ids)),
    "unembed": Operation(embedding.unembed, _normal("x: T D", "embedding: V D")),
    "rms_norm": Operation(rms_norm.rms_norm, _with(_normal("x: T D", "weight: D"), eps=_one_of(1e-6, 0.1))),
    "rms_norm_backward": Operation(
        rms_norm.rms_norm_backward, _with(_normal("dy: T D", "x: T D", "weight: D"), eps=_one_of(1e-6, 0.1))
    ),
    "rope": Operation(_rope, _with(_normal("x: H T h"), positions=_positions, base=_one_of(10_000.0, 100.0))),
    "rope_backward": Operation(
        _rope_backward, _with(_normal("dy: H T h"), positions=_positions, base=_one_of(10_000.0, 100.0))
    ),
    "soft_cap": Operation(soft_cap.soft_cap, _with(_normal("x: T D"), cap=_one_of(1.0, 50.0))),
    "soft_cap_backward": Operation(soft_cap.soft_cap_backward, _with(_normal("dy: T D", "y: T D"), cap=_one_of(9.0))),
    "causal_softmax": Operation(_causal_softmax, _with(_normal("scores: H T T"), window=_one_of(1, 2, 3, 100))),
    "gelu": Operation(feed_forward.gelu, _normal("x: T F")),
    "feed_forward": Operation(_feed_forward, _normal("x: T D", "gate: F D", "up: F D", "down: D F")),
    "feed_forward_backward": Operation(
        _feed_forward_backward, _normal("dy: T D", "x: T D", "gate: F D", "up: F D", "down: D F")
    ),
    "grouped_query_attention": Operation(
        _grouped_query_attention,
        _with(
            _normal("q: H T h", "k: K T h", "v: K T h"),
            query_scalar=_one_of(3.0, 8.0),
            cap=_one_of(2.0, 50.0),
            window=_one_of(2, 3, 100),
        ),
    ),
    "cross_entropy": Operation(losses.cross_entropy, _with(_normal("logits: T V"), targets=_ids)),
    "soft_cross_entropy": Operation(
        losses.soft_cross_entropy, _with(_normal("logits: T V", "teacher_logits: T V"), temperature=_one_of(1.0, 2.0))
    ),
    "reverse_kl": Operation(losses.reverse_kl, _normal("logits: T V", "teacher_logits: T V")),
}
"""Operations by name. The arguments and shapes of a function are those of the reference of that name, without batch
axes. Losses return (losses [T], dlogits [T, V])."""


def assert_matches_reference(
    name: str,
    function: Callable[..., Any],
    dtype: str = "float32",
    *,
    tolerance: float | None = None,
    examples: int = 50,
) -> None:
    """Compare a function with the reference on random inputs; report the smallest shapes for which it is wrong.

    tolerance: relative to the largest number expected (default: `TOLERANCES`).

    Raises GemmaError for an unknown name, AssertionError when the function differs.
    """
    if name not in OPERATIONS:
        raise GemmaError(f"operation: {name!r}, expected one of {', '.join(OPERATIONS)}")
    try:
        from hypothesis import given, settings
        from hypothesis import strategies as st
    except ImportError:
        raise GemmaError("hypothesis: not installed; pip install hypothesis") from None
    operation = OPERATIONS[name]
    limit = TOLERANCES[dtype] if tolerance is None else tolerance

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, report_multiple_bugs=False)
    @given(st.data(), st.integers(0, 2**16))
    def check(data: Any, seed: int) -> None:
        sizes: dict[str, int] = {}

        def size(letter: str) -> int:
            if letter not in sizes:
                sizes[letter] = data.draw(_size(letter, size, st), label=letter)
            return sizes[letter]

        drawn = operation.draw(np.random.default_rng(seed), size)
        given_ = {key: _cast(drawn[key], dtype) for key in operation.arguments}
        exact = {key: _cast(value, "float64") for key, value in given_.items()}
        _compare(name, function(*given_.values()), operation.reference(*exact.values()), limit, given_)

    check()


def _size(letter: str, size: Callable[[str], int], st: Any) -> Any:
    if letter == "H":  # query heads share key-value heads
        return st.integers(1, 3).map(lambda group: group * size("K"))
    if letter == "h":  # RoPE rotates pairs
        return st.integers(1, 4).map(lambda half: 2 * half)
    return st.integers(2 if letter in "VD" else 1, 6)  # the norm of a single channel is just its sign


def _cast(value: Any, dtype: str) -> Any:
    is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(dtype) if is_float else value


def _compare(name: str, returned: Any, expected: Any, limit: float, arguments: Arguments) -> None:
    inputs = ", ".join(
        f"{key} {value.shape if isinstance(value, np.ndarray) else value}" for key, value in arguments.items()
    )
    results = returned if isinstance(returned, tuple) else (returned,)
    references = expected if isinstance(expected, tuple) else (expected,)
    count = f"{len(results)} results, expected {len(references)}"
    assert len(results) == len(references), f"{name}({inputs}): {count}"
    largest = max(np.abs(right).max() for right in references)
    for number, (result, right) in enumerate(zip(results, references, strict=True)):
        result, what = np.asarray(result, np.float64), f"{name}({inputs}), result {number}"
        assert result.shape == right.shape, f"{what}: shape {result.shape}, expected {right.shape}"
        error = np.abs(result - right)
        where = np.unravel_index(int(error.argmax()), error.shape)
        assert error[where] <= limit * largest, (
            f"{what}: {result[where]} at {[int(i) for i in where]}, expected {right[where]}; given {arguments}"
        )


def from_command(command: Sequence[str], name: str) -> Callable[..., Any]:
    """Return a function that calls a program: `command name in.safetensors out.safetensors`.

    The program reads the arguments by name (numbers as arrays of length 1) and writes its results as `0`, `1` and so
    on. The function raises GemmaError when the program fails or writes no results.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file

    def function(*values: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            given, result = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
            named = zip(OPERATIONS[name].arguments, values, strict=True)
            save_file({key: np.ascontiguousarray(np.atleast_1d(value)) for key, value in named}, given)
            done = subprocess.run([*command, name, str(given), str(result)], capture_output=True, text=True)
            if done.returncode:
                raise GemmaError(f"{command[0]}: exit status {done.returncode}: {done.stderr.strip()[-500:]}")
            try:
                arrays = load_file(result)
            except (OSError, SafetensorError) as error:
                raise GemmaError(f"{command[0]}: wrote no results ({error})") from None
        results = tuple(arrays[key] for key in sorted(arrays, key=int))
        return results if len(results) > 1 else results[0]

    return function
