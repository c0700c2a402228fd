"""The training loop: draw a batch, compute the gradients, take a step. A killed run can be resumed."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gemma_np.allocator import keep_freed_memory
from gemma_np.checkpoints.saving import write_checkpoint
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.model.log_probs import negative_log_likelihood
from gemma_np.model.transformer import lm_head, lm_head_backward, transformer, transformer_backward
from gemma_np.mpi import Ranks
from gemma_np.scope import Record
from gemma_np.training.losses import masked_mean
from gemma_np.training.optimizer import AdamW, clip_by_global_norm, cosine_schedule
from gemma_np.training.run_log import RunLog
from gemma_np.training.task import Batch, Loss, Task
from gemma_np.training.training_state import State, TrainingConfig, check_folder, load_latest_state, save_state


def initial_weights(config: GemmaConfig, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Return random weights to train from: norms at the identity, matrices normal with variance 1 / in.

    The embedding has variance 1 / D, so that its rows are of order 1 after scaling by sqrt(D).
    """
    weights = {}
    for name, shape in config.weight_shapes():
        std = 0.0 if len(shape) == 1 else 1 / math.sqrt(shape[1])
        weights[name] = (std * generator.standard_normal(shape)).astype(np.float32)
    return weights


def loss_and_gradients(
    weights: Mapping[str, np.ndarray], config: GemmaConfig, batch: Batch, loss: Loss, num_targets: int | None = None
) -> tuple[float, dict[str, np.ndarray], Record]:
    """Run one forward and one backward pass: return the mean loss in nats, the weights' gradients and the record.

    num_targets: the number to divide by, when the batch is a part of a larger one (default: the batch's own).

    Raises GemmaError when a weight is not a plain array.
    """
    check_trainable(weights)
    record, gradients, ids = Record(), dict[str, np.ndarray](), batch.ids[:, :-1]
    logits = lm_head(transformer(ids, weights, config, tape=record), weights, config, record)
    value, dlogits = masked_mean(*loss(logits, batch), batch.loss_mask, num_targets)
    dx = lm_head_backward(dlogits, weights, config, record, gradients)
    transformer_backward(dx, ids, weights, config, record, gradients)
    return value, gradients, record


def check_trainable(weights: Mapping[str, object]) -> None:
    """Check that all weights are plain arrays. Raises GemmaError for a quantized or bfloat16 one."""
    for name, weight in weights.items():
        if not isinstance(weight, np.ndarray):
            raise GemmaError(f"{name}: stored as {type(weight).__name__}, expected floats (model.dequantized())")


def train_step(
    state: State, config: GemmaConfig, task: Task, training_config: TrainingConfig, ranks: Ranks
) -> dict[str, float]:
    """Take one step, in place. Return its entry in the log.

    All targets have the same weight, whatever their batch and rank.

    Raises GemmaError, before any weight is changed, when the loss or a gradient is not finite.
    """
    batches = [task.next_batch(state) for _ in range(training_config.grad_accum_steps)]
    num_targets = max(sum(batch.num_targets for batch in batches), 1)
    loss, gradients = np.zeros(1), dict[str, np.ndarray]()
    view = task.view_weights(state.weights)
    for batch in batches:
        share = batch.share(ranks.rank, ranks.size)
        value, contribution, record = loss_and_gradients(view, config, share, task.loss, num_targets)
        if not math.isfinite(value):
            raise _not_finite(state.step, "loss", state.weights, record)
        loss += value
        for name, gradient in contribution.items():
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
    ranks.all_reduce(loss)
    for gradient in gradients.values():
        ranks.all_reduce(gradient)
    norm = clip_by_global_norm(gradients, training_config.max_grad_norm)
    if not math.isfinite(norm):
        raise _not_finite(state.step, "gradient", state.weights, record, gradients)
    learning_rate = cosine_schedule(
        state.step, training_config.steps, training_config.learning_rate, training_config.warmup_steps
    )
    state.optimizer.step(state.weights, gradients, learning_rate)
    state.step += 1
    return {"step": state.step, "loss": float(loss[0]), "grad_norm": norm, "learning_rate": learning_rate}


def _not_finite(step: int, what: str, *groups: Mapping[str, np.ndarray]) -> GemmaError:
    """Return an error that names the first array with NaN or infinity in these groups."""
    names = (name for group in groups for name, value in group.items() if not np.isfinite(value).all())
    return GemmaError(f"step {step + 1}: the {what} is not finite; first in {next(names, 'none of the arrays')}")


def validation_loss(
    weights: Mapping[str, np.ndarray], config: GemmaConfig, batches: Sequence[Batch], ranks: Ranks
) -> float:
    """Return the mean of -log P of the next token over all batches, in nats; the ranks share the batches."""
    totals = np.zeros(2)  # sum of the losses, number of targets
    for batch in batches[ranks.rank :: ranks.size]:
        logits = lm_head(transformer(batch.ids[:, :-1], weights, config), weights, config)
        losses = negative_log_likelihood(logits, batch.ids[:, 1:])
        mask = True if batch.loss_mask is None else batch.loss_mask
        totals += (losses.sum(where=mask), batch.num_targets)
    ranks.all_reduce(totals)
    return float(totals[0] / max(totals[1], 1))


def run_task(
    model: Gemma,
    task: Task,
    training_config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    ranks: Ranks | None = None,
) -> Gemma:
    """Train a model on a task and return it; from the first save on, the folder is also a checkpoint.

    Writable weights are changed in place; those of a memory-mapped file are copied first. With `resume`, continue the
    run in the folder; the result is bit-identical to that of an uninterrupted run, also if the checkpoint was damaged.

    Raises GemmaError when a weight is not a plain array, when the folder already holds a run (without `resume`), when
    that run has another config, training config or task, when a batch has fewer texts than there are ranks, and when
    the loss is not finite, in which case the last good checkpoint is kept.
    """
    ranks = ranks or Ranks()
    keep_freed_memory()
    check_trainable(model.weights)
    if training_config.batch_size < ranks.size:
        raise GemmaError(
            f"batch_size: {training_config.batch_size} texts for {ranks.size} ranks, expected at least one for each"
        )
    state = _first_state(model, task, training_config, folder, resume)
    ranks.barrier()  # rank 0 may write only after all ranks have read

    def trained() -> Gemma:
        return replace(model, weights=task.view_weights(state.weights))

    if state.step == training_config.steps and ranks.rank == 0:  # nothing is left to do but to mend the checkpoint
        write_checkpoint(folder, model.config, trained().weights.items(), model.tokenizer, source=model.source)
    first, started = state.step, time.perf_counter()
    tokens_per_step = training_config.grad_accum_steps * training_config.batch_size * training_config.seq_len
    with RunLog(folder, training_config.steps, state.step, silent=ranks.rank > 0) as log:
        while state.step < training_config.steps:
            entry = train_step(state, model.config, task, training_config, ranks)
            entry["tokens_per_second"] = (state.step - first) * tokens_per_step / (time.perf_counter() - started)
            last = state.step == training_config.steps
            if task.validation and (last or state.step % training_config.eval_every == 0):
                view = task.view_weights(state.weights)
                entry["val_loss"] = validation_loss(view, model.config, task.validation, ranks)
                if not math.isfinite(entry["val_loss"]):
                    raise _not_finite(state.step - 1, "validation loss", view)
            log.write(entry)
            if last or state.step % training_config.save_every == 0:
                if not all(np.isfinite(weight).all() for weight in state.weights.values()):
                    raise _not_finite(state.step - 1, "result", state.weights)
                if ranks.rank == 0:
                    log.flush()
                    save_state(folder, state, trained(), training_config, task.identity)
    return trained()


def _first_state(model: Gemma, task: Task, training_config: TrainingConfig, folder: Path, resume: bool) -> State:
    """Return the state in the folder, if there is one to resume, or that of step 0."""
    check_folder(folder, resume=resume)
    state = load_latest_state(folder, model.config, training_config, task.identity)
    if state is not None:
        return state
    weights = {name: np.require(weight, np.float32, "W") for name, weight in model.weights.items()}
    optimizer = AdamW(weight_decay=training_config.weight_decay)
    return State(weights, optimizer, np.random.default_rng(training_config.seed))
