"""Wrong activations, and what they are applied to."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from gemma_np.model.feed_forward import gelu
from gemma_np.oracle.alternatives.alternative import Alternative, Family, alternatives
from gemma_np.oracle.operation import Operation

Activation = Callable[[np.ndarray], np.ndarray]

ROOT, CUBIC = math.sqrt(2 / math.pi), 0.044715

_erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS: dict[str, Activation] = {
    "GELU in its tanh form": gelu,
    "GELU with erf": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "x * sigmoid(1.702 x)": lambda x: x / (1 + np.exp(-1.702 * x)),
    "ReLU": lambda x: np.maximum(x, 0),
    "ReLU squared": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(0, x),
    "Mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "GELU in its tanh form with x^2 for x^3": lambda x: x / 2 * (1 + np.tanh(ROOT * (x + CUBIC * x**2))),
    "GELU in its tanh form without the factor 1/2": lambda x: 2 * gelu(x),
    "no activation": lambda x: x,
}
KNOWN = {"GELU with erf": "gelu-exact", "SiLU": "silu"}


@alternatives("layers.*.mlp.hidden")
def other_activations(operation: Operation) -> Iterator[Alternative | Family]:
    """Yield other activations, of the gate or of the other factor."""
    right = next(iter(ACTIVATIONS))
    for what, activation in ACTIVATIONS.items():
        if what != right:
            yield Alternative(
                f"the activation is {what}, expected {right}",
                partial(_product, activation=activation),
                KNOWN.get(what, ""),
            )
        swapped = "" if what == right else f", and is {what}, expected {right}"
        yield Alternative(
            f"the activation is applied to up, expected gate{swapped}",
            partial(_product, activation=activation, swapped=True),
            "gate-up-swapped" if not swapped else f"gate-up-swapped {KNOWN[what]}" if what in KNOWN else "",
        )
    yield Family(
        lambda op, value: f"GELU's cubic constant is {value:.6g}, expected 0.044715",
        lambda op, value: _tanh_gelu(op["mlp.gate"], ROOT, value) * op["mlp.up"],
        np.linspace(0, 1, 41).tolist(),
        likely=lambda op: [0.0, 0.44715, 0.0044715, 0.47715],
    )
    yield Family(
        lambda op, value: f"GELU's constant is {value:.6g}, expected sqrt(2 / pi)",
        lambda op, value: _tanh_gelu(op["mlp.gate"], value, CUBIC) * op["mlp.up"],
        np.linspace(0, 3, 31).tolist(),
        likely=lambda op: [1.0, 2 / math.pi, math.sqrt(math.pi / 2), math.sqrt(2 * math.pi)],
    )
    yield Alternative("gelu(gate) is not multiplied by up", lambda op: gelu(op["mlp.gate"]))
    yield Alternative("gelu(gate) is multiplied by up + 1", lambda op: gelu(op["mlp.gate"]) * (op["mlp.up"] + 1))
    yield Alternative("gelu(gate) is added to up", lambda op: gelu(op["mlp.gate"]) + op["mlp.up"])
    yield Alternative("GELU is applied to the product", lambda op: gelu(op["mlp.gate"] * op["mlp.up"]))
    yield Alternative("GELU is applied to both factors", lambda op: gelu(op["mlp.gate"]) * gelu(op["mlp.up"]))
    yield Alternative("it is gate * gelu(gate)", lambda op: op["mlp.gate"] * gelu(op["mlp.gate"]))


def _tanh_gelu(x: np.ndarray, root: float, cubic: float) -> np.ndarray:
    return np.asarray(x / 2 * (1 + np.tanh(root * (x + cubic * x**3))))


def _product(op: Operation, activation: Activation, swapped: bool = False) -> np.ndarray:
    gate, up = op["mlp.gate"], op["mlp.up"]
    return gate * activation(up) if swapped else activation(gate) * up
