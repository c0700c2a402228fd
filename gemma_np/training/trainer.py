"""Training: draw a batch, find the gradients, take a step, and again; killed at any moment, it can go on."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.model.transformer import output_logits, output_logits_backward, transformer, transformer_backward
from gemma_np.scope import Record
from gemma_np.training.data import consecutive_batches, draw_batch
from gemma_np.training.losses import cross_entropy, mean
from gemma_np.training.optimizer import AdamW, clip_by_global_norm, learning_rate
from gemma_np.training.run_state import Recipe, State, load_state, save_state, write_beside

Loss = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(logits [B, T, V], ids [B, T + 1]) -> losses [B, T] and dlogits [B, T, V]."""


def next_token(logits: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The loss of training from scratch: -log P of each next token."""
    return cross_entropy(logits, ids[:, 1:])


def initial_weights(config: GemmaConfig, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights to start from: norms at the identity; matrices normal with variance 1 / in; the embedding too, which is
    of order 1 once it is scaled by sqrt(D)."""
    weights = {}
    for name, shape in config.weight_shapes():
        spread = 0.0 if len(shape) == 1 else 1 / math.sqrt(shape[1])
        weights[name] = (spread * generator.standard_normal(shape)).astype(np.float32)
    return weights


def loss_and_gradients(
    weights: Mapping[str, np.ndarray], config: GemmaConfig, ids: np.ndarray, loss: Loss
) -> tuple[float, dict[str, np.ndarray], Record]:
    """One forward and one backward pass over ids [B, T + 1]: the mean loss, the weights' gradients, the record."""
    record, gradients = Record(), dict[str, np.ndarray]()
    logits = output_logits(transformer(ids[:, :-1], weights, config, tape=record), weights, config, record)
    value, dlogits = mean(*loss(logits, ids))
    dx = output_logits_backward(dlogits, weights, config, record, gradients)
    transformer_backward(dx, ids[:, :-1], weights, config, record, gradients)
    return value, gradients, record


def train_step(state: State, config: GemmaConfig, recipe: Recipe, tokens: np.ndarray, loss: Loss) -> dict[str, float]:
    """Take one step, in place. Returns what the log says of it.

    Raises GemmaError, before any weight is touched, when the loss or a gradient is not finite.
    """
    total, gradients = 0.0, dict[str, np.ndarray]()
    for _ in range(recipe.accumulation):
        ids = draw_batch(tokens, recipe.batch, recipe.length, state.generator)
        value, found, record = loss_and_gradients(state.weights, config, ids, loss)
        if not math.isfinite(value):
            raise _not_finite(state.step, "loss", state.weights, record)
        total += value / recipe.accumulation
        for name, gradient in found.items():
            gradients[name] = gradients.get(name, 0) + gradient / recipe.accumulation
    norm = clip_by_global_norm(gradients, recipe.clip)
    if not math.isfinite(norm):
        raise _not_finite(state.step, "gradient", state.weights, record, gradients)
    rate = learning_rate(state.step, recipe.steps, recipe.rate, recipe.warmup)
    state.optimizer.step(state.weights, gradients, rate)
    state.step += 1
    return {"step": state.step, "loss": total, "norm": norm, "rate": rate}


def _not_finite(step: int, what: str, *places: Mapping[str, np.ndarray]) -> GemmaError:
    """The error that names the first array with NaN or infinity, looked for in the order of the places."""
    names = (name for place in places for name, value in place.items() if not np.isfinite(value).all())
    return GemmaError(f"step {step + 1}: the {what} is not finite; first in {next(names, 'the loss itself')}")


def validation_loss(
    weights: Mapping[str, np.ndarray], config: GemmaConfig, tokens: np.ndarray, recipe: Recipe, limit: int = 20
) -> float:
    """The mean of -log p of the next token over the same texts each time, in nats."""
    batches = consecutive_batches(tokens, recipe.batch, recipe.length, limit)
    losses = [
        cross_entropy(output_logits(transformer(ids[:, :-1], weights, config), weights, config), ids[:, 1:])[0]
        for ids in batches
    ]
    return float(np.concatenate(losses).mean(dtype=np.float64))


def train(
    config: GemmaConfig,
    weights: dict[str, np.ndarray],
    vocabulary: bytes | None,
    tokens: np.ndarray,
    validation: np.ndarray | None,
    recipe: Recipe,
    folder: Path,
    loss: Loss = next_token,
    resume: bool = False,
) -> dict[str, np.ndarray]:
    """Train the weights, in place, and write them to the folder; returns them.

    With `resume`, go on from what the folder holds: the result is, to the bit, that of a run never interrupted.

    Raises GemmaError when the folder holds a run already (without `resume`), when it was begun with another config or
    recipe, and when the loss is not finite; the last good checkpoint stays.
    """
    from tqdm import tqdm

    state = State(weights, AdamW(weight_decay=recipe.weight_decay), np.random.default_rng(recipe.seed))
    saved = folder / "training.safetensors"
    if resume and saved.exists():
        state = load_state(saved, config, recipe)
    elif saved.exists():
        raise GemmaError(f"{folder}: holds a run already, expected --resume or another folder")
    folder.mkdir(parents=True, exist_ok=True)
    log = _open_log(folder / "log.jsonl", state.step)
    started, first = time.perf_counter(), state.step
    with log, tqdm(total=recipe.steps, initial=first, desc="training", unit=" steps", disable=None) as progress:
        while state.step < recipe.steps:
            entry = train_step(state, config, recipe, tokens, loss)
            done, last = state.step - first, state.step == recipe.steps
            entry["tokens/s"] = (
                done * recipe.accumulation * recipe.batch * recipe.length / (time.perf_counter() - started)
            )
            if validation is not None and (last or state.step % recipe.validate_every == 0):
                entry["validation"] = validation_loss(state.weights, config, validation, recipe)
            log.write(json.dumps(entry) + "\n")
            progress.update()
            progress.set_postfix({"loss": f"{entry['loss']:.3f}", "tokens/s": f"{entry['tokens/s']:.0f}"})
            if last or state.step % recipe.save_every == 0:
                log.flush()
                save_state(folder, state, config, recipe, vocabulary)
    return state.weights


def _open_log(path: Path, step: int) -> Any:
    """The log, cut back to the lines of steps up to the given one, open for more."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    write_beside(path, lambda partial: partial.write_text("".join(line + "\n" for line in kept)))
    return path.open("a")
