"""Training: draw a batch, find the gradients, take a step, and again; killed at any moment, it can go on."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.model.transformer import lm_head, lm_head_backward, transformer, transformer_backward
from gemma_np.scope import Record
from gemma_np.training.losses import cross_entropy, mean
from gemma_np.training.mpi import Ranks
from gemma_np.training.optimizer import AdamW, clip_by_global_norm, learning_rate
from gemma_np.training.run_log import RunLog
from gemma_np.training.task import Batch, Loss, Task
from gemma_np.training.training_state import STATE_FILE, Recipe, State, check_folder, load_state, save_state


def initial_weights(config: GemmaConfig, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights to start from: norms at the identity; matrices normal with variance 1 / in; the embedding too, which is
    of order 1 once it is scaled by sqrt(D)."""
    weights = {}
    for name, shape in config.weight_shapes():
        spread = 0.0 if len(shape) == 1 else 1 / math.sqrt(shape[1])
        weights[name] = (spread * generator.standard_normal(shape)).astype(np.float32)
    return weights


def loss_and_gradients(
    weights: Mapping[str, np.ndarray], config: GemmaConfig, batch: Batch, loss: Loss
) -> tuple[float, dict[str, np.ndarray], Record]:
    """One forward and one backward pass: the mean loss in nats, the weights' gradients, the record."""
    record, gradients, ids = Record(), dict[str, np.ndarray](), batch.ids[:, :-1]
    logits = lm_head(transformer(ids, weights, config, tape=record), weights, config, record)
    value, dlogits = mean(*loss(logits, batch), batch.counted)
    dx = lm_head_backward(dlogits, weights, config, record, gradients)
    transformer_backward(dx, ids, weights, config, record, gradients)
    return value, gradients, record


def train_step(state: State, config: GemmaConfig, task: Task, recipe: Recipe, ranks: Ranks) -> dict[str, float]:
    """Take one step, in place. Returns what the log says of it.

    Every position that counts weighs the same, in whichever batch and on whichever rank it is.

    Raises GemmaError, before any weight is touched, when the loss or a gradient is not finite.
    """
    gradients: dict[str, np.ndarray] = {}
    totals = np.zeros(2)  # the sum of the losses, and of how many positions
    seen = task.seen(state.weights)
    for _ in range(recipe.accumulation):
        batch = task.draw(state).share(ranks.rank, ranks.size)
        value, found, record = loss_and_gradients(seen, config, batch, task.loss)
        if not math.isfinite(value):
            raise _not_finite(state.step, "loss", state.weights, record)
        totals += (value * batch.positions, batch.positions)
        for name, gradient in found.items():
            gradient *= batch.positions
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
    ranks.all_reduce(totals)
    for gradient in gradients.values():
        ranks.all_reduce(gradient)
        gradient /= max(totals[1], 1)
    norm = clip_by_global_norm(gradients, recipe.clip)
    if not math.isfinite(norm):
        raise _not_finite(state.step, "gradient", state.weights, record, gradients)
    rate = learning_rate(state.step, recipe.steps, recipe.rate, recipe.warmup)
    state.optimizer.step(state.weights, gradients, rate)
    state.step += 1
    return {"step": state.step, "loss": totals[0] / max(totals[1], 1), "norm": norm, "rate": rate}


def _not_finite(step: int, what: str, *places: Mapping[str, np.ndarray]) -> GemmaError:
    """The error that names the first array with NaN or infinity, looked for in the order of the places."""
    names = (name for place in places for name, value in place.items() if not np.isfinite(value).all())
    return GemmaError(f"step {step + 1}: the {what} is not finite; first in {next(names, 'none of the arrays')}")


def validation_loss(
    weights: Mapping[str, np.ndarray], config: GemmaConfig, batches: Sequence[Batch], ranks: Ranks
) -> float:
    """The mean of -log p of the next token over all batches, in nats; each rank reads some of them."""
    totals = np.zeros(2)  # the sum of the losses, and of how many positions
    for batch in batches[ranks.rank :: ranks.size]:
        logits = lm_head(transformer(batch.ids[:, :-1], weights, config), weights, config)
        losses, _ = cross_entropy(logits, batch.ids[:, 1:])
        counted = True if batch.counted is None else batch.counted
        totals += (losses.sum(where=counted, dtype=np.float64), batch.positions)
    ranks.all_reduce(totals)
    return float(totals[0] / max(totals[1], 1))


def train(
    model: Gemma, task: Task, recipe: Recipe, folder: Path, resume: bool = False, ranks: Ranks | None = None
) -> Gemma:
    """Train a model; from the first save on, the folder is a checkpoint folder. Returns the trained model.

    Weights that can be written are changed in place; those of a mapped file are copied first. With `resume`, go on
    from what the folder holds: the result is, to the bit, that of a run never interrupted.

    Raises GemmaError when the folder holds a run already (without `resume`), when it was begun with another config,
    recipe or task, when a batch has fewer texts than there are ranks, and when the loss is not finite; the last good
    checkpoint stays.
    """
    ranks = ranks or Ranks()
    if recipe.batch < ranks.size:
        raise GemmaError(f"batch: {recipe.batch} texts for {ranks.size} ranks, expected at least one for each")
    state = _first_state(model, task, recipe, folder, resume)
    ranks.barrier()  # rank 0 may write only when all have read

    def trained() -> Gemma:
        return Gemma(model.config, task.seen(state.weights), model.tokenizer)

    first, started = state.step, time.perf_counter()
    with RunLog(folder, recipe.steps, state.step, silent=ranks.rank > 0) as log:
        while state.step < recipe.steps:
            entry = train_step(state, model.config, task, recipe, ranks)
            tokens = (state.step - first) * recipe.accumulation * recipe.batch * recipe.length
            entry["tokens/s"] = tokens / (time.perf_counter() - started)
            last = state.step == recipe.steps
            if task.validation and (last or state.step % recipe.validate_every == 0):
                entry["validation"] = validation_loss(task.seen(state.weights), model.config, task.validation, ranks)
            log.write(entry)
            if last or state.step % recipe.save_every == 0:
                if not all(np.isfinite(weight).all() for weight in state.weights.values()):
                    raise _not_finite(state.step - 1, "result", state.weights)
                if ranks.rank == 0:
                    log.flush()
                    save_state(folder, state, trained(), recipe, task.about)
    return trained()


def _first_state(model: Gemma, task: Task, recipe: Recipe, folder: Path, resume: bool) -> State:
    """The state that the folder holds, if it is to be resumed, or else that of step 0."""
    check_folder(folder, resume)
    saved = folder / STATE_FILE
    if saved.exists():
        return load_state(saved, model.config, recipe, task.about)
    weights = {name: np.require(weight, np.float32, "W") for name, weight in model.weights.items()}
    return State(weights, AdamW(weight_decay=recipe.weight_decay), np.random.default_rng(recipe.seed))
