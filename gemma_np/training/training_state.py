"""The training config, and the state needed to resume a run.

The folder of a run is a checkpoint folder that `load` and transformers read, with one more file: training.safetensors
holds everything that the next step depends on, in one file, so that all of it belongs to the same step. Each file is
written beside its target and renamed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.saving import write_checkpoint
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.training.optimizer import AdamW

STATE_FILE = "training.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train. Raises GemmaError for values out of range."""

    steps: int = 1000
    batch_size: int = 8  # texts in a batch, shared by the ranks
    seq_len: int = 128  # tokens in a text
    learning_rate: float = 1e-3  # peak
    warmup_steps: int = 50
    max_grad_norm: float = 1.0  # global norm
    weight_decay: float = 0.1  # of matrices
    grad_accum_steps: int = 1  # batches per step
    seed: int = 0
    val_fraction: float = 0.05  # of the documents, held out
    save_every: int = 100  # steps
    eval_every: int = 100  # steps

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            can_be_zero = name in ("warmup_steps", "weight_decay", "seed", "val_fraction")
            low = 0 if can_be_zero else 1 if isinstance(value, int) else 1e-12
            if not low <= value < math.inf:
                raise GemmaError(f"{name}: {value}, expected {low:g} or more")


@dataclass
class State:
    """The state of a run: everything that the next step depends on."""

    weights: dict[str, np.ndarray]
    optimizer: AdamW
    generator: np.random.Generator
    step: int = 0


def check_folder(folder: Path, *, resume: bool) -> None:
    """Check that a run would not overwrite another run or checkpoint. Raises GemmaError when it would."""
    if not resume and (folder / STATE_FILE).exists():
        raise GemmaError(f"{folder}: holds a run already, expected --resume or another folder")
    began_here = resume and (folder / "log.jsonl").exists()
    if not began_here and (folder / "config.json").exists():
        raise GemmaError(f"{folder}: holds a checkpoint already, expected another folder")


def save_state(
    folder: Path, state: State, model: Gemma, training_config: TrainingConfig, identity: Mapping[str, Any]
) -> None:
    """Write the checkpoint and the training state. Raises GemmaError when the disk is full."""
    from safetensors.numpy import save_file

    tensors = {f"weights/{name}": value for name, value in state.weights.items()}
    tensors |= {f"m/{name}": value for name, value in state.optimizer.m.items()}
    tensors |= {f"v/{name}": value for name, value in state.optimizer.v.items()}
    values = {"step": state.step, "generator": state.generator.bit_generator.state}
    values |= _resume_conditions(model.config, training_config, identity)
    metadata = {name: json.dumps(value) for name, value in values.items()}
    try:
        write_checkpoint(folder, model.config, model.weights.items(), model.tokenizer_model)
        atomic_write(folder / STATE_FILE, lambda path: save_file(tensors, path, metadata))
    except Exception as error:  # the safetensors library raises an exception of its own when the disk is full
        before = "; the checkpoint before is whole" if (folder / STATE_FILE).exists() else ""
        raise GemmaError(f"{folder}: could not be saved ({error}){before}") from None


def load_state(path: Path, config: GemmaConfig, training_config: TrainingConfig, identity: Mapping[str, Any]) -> State:
    """Read what `save_state` wrote. Raises GemmaError when the run had another config, training config or identity."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            values = {name: json.loads(value) for name, value in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is not iterable)
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise GemmaError(f"{path}: damaged ({error}), expected the state of a run") from None
    conditions = json.loads(json.dumps(_resume_conditions(config, training_config, identity)))
    for group, expected in conditions.items():
        recorded = values.get(group, {})
        for name in expected.keys() | recorded.keys():
            if recorded.get(name) != expected.get(name):
                raise GemmaError(
                    f"{path}: was started with {name}={recorded.get(name)}, but this run asks for {expected.get(name)}"
                )

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {name: tensors[f"{prefix}/{name}"] for name, _ in config.weight_shapes()}

    optimizer = AdamW(weight_decay=training_config.weight_decay, steps=values["step"], m=part("m"), v=part("v"))
    generator = np.random.default_rng()
    generator.bit_generator.state = values["generator"]
    return State(part("weights"), optimizer, generator, values["step"])


def _resume_conditions(
    config: GemmaConfig, training_config: TrainingConfig, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what must not change when a run is resumed: everything but `save_every`."""
    fields = {name: value for name, value in asdict(training_config).items() if name != "save_every"}
    return {"config": asdict(config), "training_config": fields, "identity": dict(identity)}
