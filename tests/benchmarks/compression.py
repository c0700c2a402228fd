"""Stored weights: speed and memory as ratios to float32, measured in alternation within one run.

    python tests/benchmarks/compression.py              # the 2B shape: 20 GB of memory, some minutes
    python tests/benchmarks/compression.py --shape 270m
    python tests/benchmarks/compression.py quantize     # time and memory of quantizing a 2B checkpoint

Below 1 is faster, or smaller, than float32.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gemma_np import RELEASED
from gemma_np.checkpoints.random_weights import random_weights
from gemma_np.checkpoints.saving import save_folder
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.weights.formats import Weights, stored_bytes

SCHEMES = {
    "bfloat16": Scheme("bfloat16"),
    "int8": Scheme("int8"),
    "int4, 128": Scheme("int4", 128),
    "int4, 64": Scheme("int4", 64),
    "int4, 32": Scheme("int4", 32),
    "float8": Scheme("float8"),
    "w8a8": Scheme("w8a8"),
}
SHAPES = {"270m": "gemma-3-270m", "2b": "gemma-2-2b"}
TOKENS, PREFILL = 4, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["decode", "prefill", "quantize"], help="default: all")
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    what = options.what or ["decode", "prefill", "quantize"]
    if set(what) & {"decode", "prefill"}:
        against_float32(SHAPES[options.shape], [each for each in what if each != "quantize"], options.rounds)
    if "quantize" in what:
        quantizing()


def against_float32(name: str, what: list[str], rounds: int) -> None:
    """Decode and prefill of one shape, with each kind of weight in turn."""
    config = RELEASED[name]
    plain = dict(random_weights(config, "float32"))
    size = sum(map(stored_bytes, plain.values()))
    for label in (*SCHEMES, "q4_k_m"):
        if label == "q4_k_m":
            weights = dict(random_weights(config, label))
        else:
            weights = {name: quantize(w, SCHEMES[label]) if w.ndim == 2 else w for name, w in plain.items()}
        memory = sum(map(stored_bytes, weights.values())) / size
        for each in what:
            measure = decode if each == "decode" else prefill
            table = [[measure(weights, config), measure(plain, config)] for _ in range(rounds + 1)][1:]
            ratios = np.divide(*np.transpose(table))
            print(
                f"{name} {each:8}{label:10}{np.median(ratios):6.2f} x the time of float32 "
                f"(range {ratios.min():.2f} to {ratios.max():.2f}) at {memory:.3f} of its memory",
                flush=True,
            )


def decode(weights: Weights, config) -> float:
    """Seconds for some tokens, one after another."""
    cache = KVCache(config, 64)
    transformer([2, 5, 7], weights, config, cache)
    started = time.perf_counter()
    for _ in range(TOKENS):
        lm_head(transformer([5], weights, config, cache), weights, config)
    return time.perf_counter() - started


def prefill(weights: Weights, config) -> float:
    """Seconds for a prompt, and the logits of its last token."""
    started = time.perf_counter()
    lm_head(transformer(np.arange(PREFILL), weights, config)[-1:], weights, config)
    return time.perf_counter() - started


# What a process has beyond mapped files, looked at twenty times a second: the system keeps no peak of it.
QUANTIZING = """
import re, sys, threading, time
from pathlib import Path
from gemma_np.cli import main
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.05):
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
watcher = threading.Thread(target=watch)
watcher.start()
started = time.perf_counter()
assert main(["quantize", "--model", sys.argv[1], "-o", sys.argv[2], "--format", *sys.argv[3:]]) == 0
done.set()
watcher.join()
print(time.perf_counter() - started, peak)
"""


def quantizing() -> None:
    """A bfloat16 checkpoint of the 2B shape, by a process of its own: time, and memory beyond the mapped file."""
    config = RELEASED["gemma-2-2b"]
    with tempfile.TemporaryDirectory() as folder:
        save_folder(Path(folder) / "model", config, random_weights(config, "bfloat16"), None)
        for arguments in (["int8"], ["int4"]):
            out = Path(folder) / "-".join(arguments)
            command = [sys.executable, "-c", QUANTIZING, f"{folder}/model", str(out), *arguments]
            seconds, peak = subprocess.check_output(command, stderr=subprocess.DEVNULL).split()
            print(
                f"2b quantize {' '.join(arguments):24}{float(seconds):6.0f} s, "
                f"{int(peak) / 1e9:.2f} GB beyond the mapped file at the most",
                flush=True,
            )


if __name__ == "__main__":
    main()
