"""The training config, and the state needed to resume a run.

The folder of a run is a checkpoint folder that `load` and transformers read, with one more file: training.safetensors
holds everything that the next step depends on, in one file, so that all of it belongs to the same step, with a checksum
of each tensor. The file of the checkpoint before is kept, in case this one is damaged.
"""

import json
import math
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.checkpoints.checksum import CHECKSUM, checksum
from gemma_np.checkpoints.safetensors_file import read_metadata, stored_tensors, write_tensors
from gemma_np.checkpoints.saving import write_checkpoint
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError, quoted
from gemma_np.gemma import Gemma
from gemma_np.json_input import object_of, one_of, parse_json, whole_number
from gemma_np.training.optimizer import AdamW

STATE_FILE = "training.safetensors"
PREVIOUS_FILE = "training-previous.safetensors"

_128_BITS = whole_number(0, 2**128 - 1)
_GENERATOR = {
    "bit_generator": one_of("PCG64"),
    "state": object_of({"state": _128_BITS, "inc": _128_BITS}),
    "has_uint32": whole_number(0, 1),
    "uinteger": whole_number(0, 2**32 - 1),
}
_METADATA = {
    "step": whole_number(1),
    "generator": object_of(_GENERATOR),
    "config": object_of({}),
    "training_config": object_of({}),
    "identity": object_of({}),
    "checksums": object_of({}, others=CHECKSUM),
    "checksum": CHECKSUM,  # of all other metadata
}


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


def how_to_go_on(folder: Path) -> str:
    """Return what to tell somebody who has interrupted the run in a folder."""
    if not (folder / STATE_FILE).exists():
        return f"{folder}: stopped before the first checkpoint; repeat the command to start again"
    step = read_metadata(folder / STATE_FILE)["step"]
    return f"{folder}: stopped; add --resume to go on after step {step}, that of the last checkpoint"


def read_identity(folder: Path) -> dict[str, Any]:
    """Return the identity of the task that a run is trained on; it is empty when the run has not saved anything yet."""
    path = folder / STATE_FILE
    return parse_json(read_metadata(path).get("identity", "{}"), object_of({}), path) if path.exists() else {}


def save_state(
    folder: Path, state: State, model: Gemma, training_config: TrainingConfig, identity: Mapping[str, Any]
) -> None:
    """Write the checkpoint and the training state, and keep the state before it as `PREVIOUS_FILE`.

    Raises GemmaError when a file cannot be written.
    """
    tensors = {f"weights/{name}": value for name, value in state.weights.items()}
    tensors |= {f"m/{name}": value for name, value in state.optimizer.m.items()}
    tensors |= {f"v/{name}": value for name, value in state.optimizer.v.items()}
    tensors = dict(sorted(tensors.items()))  # a resumed run has them in another order
    values = {"step": state.step, "generator": state.generator.bit_generator.state}
    values |= _resume_conditions(model.config, training_config, identity)
    values["checksums"] = {name: checksum(value) for name, value in tensors.items()}
    metadata = {name: json.dumps(value) for name, value in values.items()}
    metadata["checksum"] = json.dumps(_metadata_checksum(metadata))
    write_checkpoint(folder, model.config, model.weights.items(), model.tokenizer, source=model.source)
    _keep_previous(folder)
    write_tensors(folder / STATE_FILE, tensors, metadata)


def _keep_previous(folder: Path) -> None:
    """Give the state file a second name, so that it outlives its replacement."""
    if (folder / STATE_FILE).exists():
        (folder / PREVIOUS_FILE).unlink(missing_ok=True)
        try:
            os.link(folder / STATE_FILE, folder / PREVIOUS_FILE)
        except OSError:  # a file system without links
            shutil.copyfile(folder / STATE_FILE, folder / PREVIOUS_FILE)


def load_latest_state(
    folder: Path, config: GemmaConfig, training_config: TrainingConfig, identity: Mapping[str, Any]
) -> State | None:
    """Return the state of the run in a folder, or None when there is none.

    Raises GemmaError as `load_state` does. When only the state before is whole, it says how to continue from there.
    """
    latest, previous = folder / STATE_FILE, folder / PREVIOUS_FILE
    if not latest.exists() and not previous.exists():
        return None
    try:
        return load_state(latest, config, training_config, identity)
    except GemmaError as error:
        try:
            step = load_state(previous, config, training_config, identity).step
        except GemmaError:
            raise error from None
        raise GemmaError(f"{error}; {PREVIOUS_FILE}, of step {step}, is whole: rename it to continue there") from None


def load_state(path: Path, config: GemmaConfig, training_config: TrainingConfig, identity: Mapping[str, Any]) -> State:
    """Read what `save_state` wrote.

    Raises GemmaError when it is damaged, and when the run had another config, training config or identity.
    """
    tensors = stored_tensors(path, {"F32": np.float32})
    metadata = read_metadata(path)
    values = {
        name: parse_json(metadata.get(name, "null"), schema, f"{path}: {name}") for name, schema in _METADATA.items()
    }
    if values["checksum"] != _metadata_checksum(metadata):
        raise GemmaError(f"{path}: metadata: damaged (wrong checksum)")
    conditions = json.loads(json.dumps(_resume_conditions(config, training_config, identity)))
    for group, expected in conditions.items():
        recorded = values[group]
        for name in expected.keys() | recorded.keys():
            if recorded.get(name) != expected.get(name):
                found = f"{name}={quoted(recorded.get(name))}, but this run asks for {quoted(expected.get(name))}"
                raise GemmaError(f"{path}: was started with {found}")

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {name: tensor(f"{prefix}/{name}", shape) for name, shape in config.weight_shapes()}

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        stored = tensors.get(name)
        if stored is None or stored.mapped is None or stored.shape != shape:
            raise GemmaError(f"{path}: {name}: {stored.shape if stored else 'missing'}, expected the shape {shape}")
        array = stored.mapped.copy()  # training changes it
        if checksum(array) != values["checksums"].get(name):
            raise GemmaError(f"{path}: {name}: damaged (wrong checksum)")
        return array

    optimizer = AdamW(weight_decay=training_config.weight_decay, steps=values["step"], m=part("m"), v=part("v"))
    generator = np.random.default_rng()
    generator.bit_generator.state = values["generator"]
    return State(part("weights"), optimizer, generator, values["step"])


def _metadata_checksum(metadata: Mapping[str, str]) -> int:
    others = sorted((name, value) for name, value in metadata.items() if name != "checksum")
    return zlib.crc32(json.dumps(others).encode())


def _resume_conditions(
    config: GemmaConfig, training_config: TrainingConfig, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what must not change when a run is resumed: everything but `save_every`."""
    fields = {name: value for name, value in asdict(training_config).items() if name != "save_every"}
    return {"config": asdict(config), "training_config": fields, "identity": dict(identity)}
