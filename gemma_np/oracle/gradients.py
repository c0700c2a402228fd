"""The gradients of a training step, and which of another implementation's are wrong.

The weights' gradients have the names of the weights. A dump may also have gradients of intermediates, named `grad.` and
the record: `grad.logits_capped` (`grad.logits` for a model without the final cap), `grad.norm`,
`grad.layers.0.resid_post` and so on, `grad.embedding`. Where it does, the step below each of them is computed from
theirs, so that errors from above do not count. The mean loss is `loss`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.gemma import Gemma
from gemma_np.model.block import block_backward
from gemma_np.model.embedding import embed_backward
from gemma_np.model.rms_norm import rms_norm_backward
from gemma_np.model.transformer import lm_head, lm_head_backward, transformer
from gemma_np.oracle.noise import passing_errors, relative_error
from gemma_np.scope import Record, Scope, Tape, no_tape
from gemma_np.training.losses import masked_mean
from gemma_np.training.task import Batch, Loss, next_token

_EMBEDDING = "model.embed_tokens.weight"

Gradients = Mapping[str, np.ndarray]
"""Name -> gradient: of a weight under its name, of an intermediate under `grad.` and its record; `loss` [] is the mean
loss in nats."""


@dataclass(frozen=True)
class Step:
    """A training step: the model before it, its batch, and its loss."""

    model: Gemma
    batch: Batch
    loss: Loss = next_token

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of the loss and of every gradient by its name."""
        config, (B, N) = self.model.config, self.batch.ids.shape
        records = ("embedding", *(f"layers.{layer}.resid_post" for layer in range(config.num_hidden_layers)), "norm")
        of_records = {f"grad.{name}": (B, N - 1, config.hidden_size) for name in records}
        return {
            "loss": (),
            f"grad.{_logits(config)}": (B, N - 1, config.vocab_size),
            **of_records,
            **dict(config.weight_shapes()),
        }


def batch_of(texts: list[list[int]]) -> Batch:
    """Return texts of any lengths as one batch: padded on the right with 0, without the loss of padding."""
    longest = max(map(len, texts))
    ids = np.array([[*text, *[0] * (longest - len(text))] for text in texts])
    lengths = np.array([len(text) for text in texts])
    return Batch(ids, np.arange(1, longest) < lengths[:, None])


def gradients(step: Step, theirs: Gradients | None = None, tape: Tape = no_tape) -> dict[str, np.ndarray]:
    """Return the loss and all gradients of a step, in the order of the backward pass.

    theirs: gradients of intermediates that take the place of the computed ones further down; the tape changes
    intermediates and gradients, for example by rounding them.
    """
    model, config, ids = step.model, step.model.config, step.batch.ids[:, :-1]
    record, found, of_weights = Record(), dict[str, np.ndarray](), dict[str, np.ndarray]()

    def given(name: str, gradient: np.ndarray) -> np.ndarray:
        name = f"grad.{name}"
        found[name] = tape(name, gradient)
        return np.asarray(theirs[name], gradient.dtype) if theirs and name in theirs else found[name]

    def keep(prefix: str) -> None:
        """Move the gradients of weights with this prefix from the backward pass to the result."""
        for name in [name for name in of_weights if name.startswith(prefix)]:
            found[name] = tape(name, of_weights.pop(name))

    def recorded(name: str, value: np.ndarray) -> np.ndarray:
        return record(name, tape(name, value))

    logits = lm_head(transformer(ids, model.weights, config, tape=recorded), model.weights, config, recorded)
    loss, dlogits = masked_mean(*step.loss(logits, step.batch), step.batch.loss_mask)
    found["loss"] = np.array(loss)

    dlogits = given(_logits(config), dlogits)
    dx = given("norm", lm_head_backward(dlogits, model.weights, config, record, of_weights))
    inputs = ["embedding", *(f"layers.{layer}.resid_post" for layer in range(config.num_hidden_layers))]
    weights = Scope(model.weights) / "model"
    dx, of_weights["model.norm.weight"] = rms_norm_backward(
        dx, record[inputs[-1]], weights["norm.weight"], config.rms_norm_eps
    )
    keep("model.norm")
    for layer in reversed(range(config.num_hidden_layers)):
        part = f"layers.{layer}"
        dx = block_backward(
            given(f"{part}.resid_post", dx),
            record[inputs[layer]],
            weights / part,
            config,
            layer,
            record=Scope(record) / part,
            gradients=Scope(of_weights) / "model" / part,
        )
        keep(f"model.{part}.")
    dx = given("embedding", dx)
    of_weights[_EMBEDDING] = of_weights[_EMBEDDING] + embed_backward(dx, ids, weights["embed_tokens.weight"])
    keep(_EMBEDDING)
    return found


def _logits(config: GemmaConfig) -> str:
    return "logits_capped" if config.final_logit_softcapping else "logits"


def gradient_errors(step: Step, theirs: Gradients) -> dict[str, float]:
    """Return the error of each of their gradients, as a fraction of the largest number of the right one, in the order
    of the backward pass. Each is judged from their gradients of intermediates above it."""
    right = gradients(step, theirs)
    return {name: relative_error(theirs[name], right[name])[0] for name in right if name in theirs}


def gradient_noise(step: Step, theirs: Gradients, dtype: str) -> dict[str, float]:
    """Return the largest error that passes for each of their gradients, if they were computed in a dtype.

    As for records (see `gemma_np.oracle.noise`), it is a multiple of what rounding every intermediate and gradient to
    this dtype does.

    Raises GemmaError for a dtype without measured noise.
    """

    def errors(model: Gemma, tape: Tape) -> dict[str, float]:
        rounded = gradients(replace(step, model=model), tape=tape)
        return gradient_errors(step, {name: rounded[name] for name in theirs})

    return passing_errors(step.model, theirs, dtype, errors)
