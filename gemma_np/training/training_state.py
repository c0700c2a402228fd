"""What a training run is told, and what it must not forget: its recipe, its state, and the files that hold both.

A run's folder is a checkpoint folder that `load` and the framework read (config.json, model.safetensors,
tokenizer.model), with one more file, training.safetensors: all that the next step depends on, in a single file, so
that it is of a single moment. Each file is written beside its target and renamed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.config_json import config_to_json
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.training.optimizer import AdamW

STATE_FILE = "training.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How to train. Raises GemmaError for values that make no sense."""

    steps: int = 1000
    batch: int = 8  # texts a step and accumulation
    length: int = 128  # tokens a text
    rate: float = 1e-3  # the peak of the learning rate
    warmup: int = 50  # steps
    clip: float = 1.0  # largest global norm of the gradients
    weight_decay: float = 0.1
    accumulation: int = 1  # batches whose gradients are averaged into one step
    seed: int = 0
    save_every: int = 100  # steps
    validate_every: int = 100  # steps

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            low = 0 if name in ("warmup", "weight_decay", "seed") else 1 if isinstance(value, int) else 1e-12
            if not low <= value < math.inf:
                raise GemmaError(f"{name}: {value}, expected {low:g} or more")


@dataclass
class State:
    """All that the next step depends on."""

    weights: dict[str, np.ndarray]
    optimizer: AdamW
    generator: np.random.Generator
    step: int = 0


def check_folder(folder: Path, resume: bool) -> None:
    """Raise a GemmaError rather than write over a run or another checkpoint."""
    if not resume and (folder / STATE_FILE).exists():
        raise GemmaError(f"{folder}: holds a run already, expected --resume or another folder")
    began_here = resume and (folder / "log.jsonl").exists()
    if not began_here and (folder / "config.json").exists():
        raise GemmaError(f"{folder}: holds a checkpoint already, expected another folder")


def save_state(folder: Path, state: State, model: Gemma, recipe: Recipe, task: Mapping[str, Any]) -> None:
    """Write the checkpoint, and all that the next step depends on. Raises GemmaError when the disk is full."""
    from safetensors.numpy import save_file

    moments = {f"first/{name}": value for name, value in state.optimizer.first.items()}
    moments |= {f"second/{name}": value for name, value in state.optimizer.second.items()}
    about = {"step": state.step, "generator": state.generator.bit_generator.state} | _identity(
        model.config, recipe, task
    )
    everything = moments | {f"weights/{name}": value for name, value in state.weights.items()}
    config_text = json.dumps(config_to_json(model.config) | {"torch_dtype": "float32"}, indent=2)
    try:
        atomic_write(folder / "config.json", lambda path: path.write_text(config_text + "\n", encoding="utf-8"))
        if model.tokenizer is not None:
            vocabulary = model.tokenizer.model
            atomic_write(folder / "tokenizer.model", lambda path: path.write_bytes(vocabulary))
        atomic_write(folder / "model.safetensors", lambda path: save_file(dict(model.weights), path, {"format": "pt"}))
        metadata = {name: json.dumps(value) for name, value in about.items()}
        atomic_write(folder / STATE_FILE, lambda path: save_file(everything, path, metadata))
    except Exception as error:  # the safetensors library has an exception of its own for a full disk
        before = "; the checkpoint before is whole" if (folder / STATE_FILE).exists() else ""
        raise GemmaError(f"{folder}: could not be saved ({error}){before}") from None


def load_state(path: Path, config: GemmaConfig, recipe: Recipe, task: Mapping[str, Any]) -> State:
    """What `save_state` wrote. Raises GemmaError when it belongs to another config, recipe or task."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            about = {name: json.loads(value) for name, value in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is not iterable)
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise GemmaError(f"{path}: damaged ({error}), expected the state of a run") from None
    for what, expected in json.loads(json.dumps(_identity(config, recipe, task))).items():
        recorded = about.get(what, {})
        for name in expected.keys() | recorded.keys():
            found, wanted = recorded.get(name), expected.get(name)
            if found != wanted:
                raise GemmaError(f"{path}: {what} with {name}={found}, expected {wanted} as asked for now")

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {name: tensors[f"{prefix}/{name}"] for name, _ in config.weight_shapes()}

    optimizer = AdamW(weight_decay=recipe.weight_decay, steps=about["step"], first=part("first"), second=part("second"))
    generator = np.random.default_rng()
    generator.bit_generator.state = about["generator"]
    return State(part("weights"), optimizer, generator, about["step"])


def _identity(config: GemmaConfig, recipe: Recipe, task: Mapping[str, Any]) -> dict[str, Any]:
    """What a run must not change when it is resumed. How often it saves is free."""
    free = ("save_every",)
    told = {name: value for name, value in asdict(recipe).items() if name not in free}
    return {"config": asdict(config), "recipe": told, "task": dict(task)}
