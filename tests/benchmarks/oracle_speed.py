"""Speed of the oracle: a trace, a comparison and a diagnosis, against the forward pass that they read.

python -m tests.benchmarks.oracle_speed
"""

import os
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np

from gemma_np import RELEASED, Gemma, GemmaConfig
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.oracle.comparison import compare
from gemma_np.oracle.diagnosis import diagnose
from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes
from gemma_np.oracle.power import blind_spots
from gemma_np.oracle.trace import Reference, write_trace
from gemma_np.training.trainer import initial_weights
from tests.benchmarks.oracle import KEPT
from tests.benchmarks.speed import TINY

TOKENS, ROUNDS = 256, 9
DUMPED = 64


def random_model(config: GemmaConfig, dtype: type) -> Gemma:
    generator = np.random.default_rng(0)
    weights = initial_weights(config, generator)
    for name, weight in weights.items():
        if weight.ndim == 1:  # a norm at the identity would make some mistakes vanish and others fatal
            weights[name] = generator.normal(0, 0.3, weight.shape)
    return Gemma(config, {name: weight.astype(dtype) for name, weight in weights.items()}, None)


def trace() -> None:
    """Seconds of a trace of the 270M shape, of the forward pass alone, and of writing as many bytes."""
    model = random_model(RELEASED["gemma-3-270m"], np.float32)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, TOKENS)
    table = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.safetensors"
        for _ in range(ROUNDS + 1):
            row = []
            for run in (
                lambda: lm_head(transformer(ids, model.weights, model.config), model.weights, model.config),
                lambda: write_trace(model, [ids], path),
                lambda: write_bytes(path.with_suffix(".bytes"), path.stat().st_size),
            ):
                start = time.perf_counter()
                run()
                row.append(time.perf_counter() - start)
            table.append(row)
            size = path.stat().st_size
            for file in Path(folder).iterdir():  # new files each time, in memory that the old ones leave
                file.unlink()
    forward, traced, disk = np.median(table[1:], axis=0)
    print(
        f"trace of 270M, {TOKENS} tokens: {(traced - disk) / forward:.2f} x the forward pass beside the disk's time "
        f"({traced:.2f} s; forward {forward:.2f} s; {size / 1e6:.0f} MB written in {disk:.2f} s)"
    )


def write_bytes(path: Path, size: int) -> None:
    block = b"\0" * 2**20
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def comparison() -> None:
    """Seconds of a comparison and of diagnoses of the 270M shape, as multiples of a forward pass in float64."""
    model = random_model(RELEASED["gemma-3-270m"], np.float64)
    reference = Reference(model, [np.random.default_rng(0).integers(0, model.config.vocab_size, DUMPED)])
    right = reference.records()
    wrong = reference.records(lambda name, value: value * 1.01 if name == "layers.9.mlp.up" else value)
    unknown = reference.records(lambda name, value: np.sin(value) if name == "layers.9.mlp.up" else value)
    start = time.perf_counter()
    reference.records()
    forward = time.perf_counter() - start
    for what, run in {
        "compare": lambda: compare(Alignment(reference, right, {}), "float32"),
        "compare --isolate": lambda: compare(Alignment(reference, right, {}), "float32", isolate=True),
        "diagnose, nothing wrong": lambda: diagnose(Alignment(reference, right, {}), "float32"),
        "diagnose, a number": lambda: diagnose(Alignment(reference, wrong, {}), "float32"),
        "diagnose, unknown": lambda: diagnose(Alignment(reference, unknown, {}), "float32"),
        "what could not have shown": lambda: blind_spots(Alignment(reference, right, {}), "float32"),
    }.items():
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        print(f"270M, {DUMPED} tokens, {what}: {seconds:.1f} s, {seconds / forward:.0f} forward passes", flush=True)


def diagnosis() -> None:
    """Seconds of a diagnosis of the tiny shape: of one mistake, of two, and of one that nobody knows."""
    model, exact = random_model(TINY, np.float32), random_model(TINY, np.float64)
    ids = np.random.default_rng(0).integers(0, TINY.vocab_size, DUMPED)
    ours, theirs, by_id = Reference(exact, [ids]), Reference(model, [ids]), {one.id: one for one in CATALOGUE}
    dumps = {"unknown": theirs.records(lambda name, value: np.sin(3 * value) if name.endswith("mlp.up") else value)}
    for names in (["gelu-exact"], ["norm-no-plus1", "silu"]):
        with inject_mistakes([by_id[name] for name in names], TINY, [len(ids)]):
            dumps[" and ".join(names)] = theirs.records()
    for (what, records), (kept, ends) in product(dumps.items(), KEPT.items()):
        few = {key: record for key, record in records.items() if key.endswith(ends)}
        start = time.process_time()
        found = diagnose(Alignment(ours, few, {}), "float32")
        seconds = time.process_time() - start
        print(
            f"diagnose, tiny, {kept}, {what}: {seconds:.1f} s, {found.passes} passes, {[m.id for m in found.mistakes]}"
        )


if __name__ == "__main__":
    trace()
    diagnosis()
    comparison()
