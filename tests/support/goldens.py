"""Read the golden files, which golden/make.py writes, and compare the model with them."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import safe_open

from gemma_np import GemmaConfig
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.scope import Record
from tests.support.strategies import MODEL_TYPES
from tests.support.tolerances import assert_close

FOLDER = Path(__file__).parents[1] / "golden"
CASES = [(model_type, case) for model_type in MODEL_TYPES for case in ("short", "past-window", "decode")]


@cache
def load(model_type):
    """Return the config, the weights and all tensors of a golden file."""
    with safe_open(FOLDER / f"{model_type}.safetensors", "numpy") as file:
        fields = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is not iterable)
    config = GemmaConfig(**fields | {"layer_types": tuple(fields["layer_types"])})
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    return config, weights, tensors


def expected_records(model_type, case):
    """Return the framework's intermediates of a case: a list with one {name: array} for each chunk."""
    _, _, tensors = load(model_type)
    chunks = {}
    for key in tensors:
        if key.startswith(f"{case}/") and key != f"{case}/ids":
            _, number, name = key.split("/")
            chunks.setdefault(int(number), {})[name] = tensors[key]
    return [chunks[number] for number in sorted(chunks)]


def check_golden(model_type, case):
    """Run a case and compare every intermediate with the framework's, in the order of execution."""
    config, weights, tensors = load(model_type)
    ids, chunks = tensors[f"{case}/ids"], expected_records(model_type, case)
    kv_cache = KVCache(config, batch=ids.shape[:1]) if len(chunks) > 1 else None
    end = 0
    for number, expected in enumerate(chunks):
        start, end = end, end + expected["embedding"].shape[1]
        record = Record()
        lm_head(transformer(ids[:, start:end], weights, config, kv_cache, record), weights, config, record)
        assert set(record) == set(expected)
        for name, value in record.items():
            if name.endswith((".scores", ".scores_capped", ".probs")):
                value = in_order_of_position(value, end)[..., -expected[name].shape[-1] :]
            assert_close(value, expected[name], "framework", f"{model_type}, {case}, chunk {number}: {name}")


def in_order_of_position(value, end):
    """Sort the keys of value [..., T, S], which ends before position `end`, from the oldest to the newest.

    The framework keeps the keys of a local layer in the order of their positions. Ours are in a ring, position p in
    slot p modulo S, and a single new token sees them in that order. Several new tokens see the old keys and then the
    new ones. These may be one old key more than the framework has: the oldest, which no new token can see.
    """
    new, slots = value.shape[-2:]
    return np.roll(value, -(end % slots), axis=-1) if new == 1 else value
