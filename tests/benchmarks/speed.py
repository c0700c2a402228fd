"""Speed and memory, as ratios measured in alternation within one run. Needs the extra `framework`.

    python tests/benchmarks/speed.py                 # everything but `long`; the 2B shape needs 12 GB and some minutes
    python tests/benchmarks/speed.py tiny 270m       # some shapes only
    python tests/benchmarks/speed.py import memory   # start-up, loading and long prefill
    python tests/benchmarks/speed.py long --rounds 1 # 1,024 and 8,192 tokens, also against sdpa: ten minutes

A ratio above 1 means that gemma_np is that much faster than `transformers` (float32, same threads, the very same
weights). Rounds alternate, since these machines drift; the median and the range over the rounds are shown.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from gemma_np import RELEASED, GemmaConfig
from gemma_np.checkpoints.config_json import config_to_json
from gemma_np.config import gemma2_config
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.text.generation import prefill

TINY = gemma2_config(
    vocab_size=2048,
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=512,
    max_position_embeddings=2048,
    query_pre_attn_scalar=32,
    sliding_window=256,
)
SHAPES = {"tiny": TINY, "270m": RELEASED["gemma-3-270m"], "2b": RELEASED["gemma-2-2b"]}
PREFILL = {"tiny": 1024, "270m": 512, "2b": 512}
DECODE_AFTER = 64  # tokens of prompt
DECODE = {"tiny": 64, "270m": 24, "2b": 6}
LONG = (1024, 8192)


def main() -> None:
    choices = [*SHAPES, "import", "memory", "long"]
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", nargs="*", help=f"any of {', '.join(choices)} (default: all but long)")
    arguments.add_argument("--rounds", type=int, default=7)
    options = arguments.parse_args()
    for what in options.what or choices[:-1]:
        if what == "import":
            import_time(options.rounds)
        elif what == "memory":
            peak_memory()
        elif what == "long":
            for attention in ("eager", "sdpa"):
                costs = [against_framework("270m", options.rounds, length, length, attention) for length in LONG]
                short, long = costs
                more = f"{long[0] / short[0]:6.2f} (prefill) and {long[1] / short[1]:.2f} (decode)"
                print(f"{'270m long':20}{more} times the seconds of a token at {LONG[0]:,} for one at {LONG[1]:,}")
        else:
            against_framework(what, options.rounds, PREFILL[what], DECODE_AFTER)


def against_framework(
    shape: str, rounds: int, length: int, decode_after: int, attention: str = "eager"
) -> tuple[float, float]:
    """Prefill and decode of one shape, ours and the framework's in turn, on the same weights.

    Return our seconds for a token of each, medians.
    """
    import torch

    config = SHAPES[shape]
    model, weights = framework_model(config, attention)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, length)
    steps = DECODE[shape]

    def ours_prefill(ids: np.ndarray = ids) -> KVCache:
        cache = KVCache(config, len(ids) + steps)
        lm_head(prefill(ids, weights, config, cache), weights, config)
        return cache

    def ours_decode(cache: KVCache) -> None:
        for _ in range(steps):
            lm_head(transformer([5], weights, config, cache), weights, config)

    @torch.no_grad()
    def theirs_prefill(ids: np.ndarray = ids):
        return model(torch.from_numpy(ids)[None], use_cache=True, logits_to_keep=1).past_key_values

    @torch.no_grad()
    def theirs_decode(cache) -> None:
        for _ in range(steps):
            model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)

    ours_reading, theirs = pairs(ours_prefill, theirs_prefill, rounds=rounds)
    report(f"{shape} prefill {length}", length / ours_reading, length / theirs, attention)
    ours, theirs, read = pairs(
        timed_after(lambda: ours_prefill(ids[:decode_after]), ours_decode),
        timed_after(lambda: theirs_prefill(ids[:decode_after]), theirs_decode),
        timed_after(large_matrix, lambda matrix: matrix @ matrix[0]),
        rounds=rounds,
        timed=True,
    )
    report(f"{shape} decode at {decode_after}", steps / ours, steps / theirs, attention)
    bandwidth = MATRIX_BYTES / read
    share = sum(weight.nbytes for weight in weights.values()) * steps / ours / bandwidth
    print(f"{'':20}{np.median(share):6.2f} of the matrix-vector read bandwidth ({np.median(bandwidth) / 1e9:.0f} GB/s)")
    return float(np.median(ours_reading)) / length, float(np.median(ours)) / steps


def framework_model(config: GemmaConfig, attention: str = "eager"):
    """The framework's model of this config, and its random weights, which lie in NumPy's memory for both."""
    import torch
    import transformers

    torch.manual_seed(0)
    values = config_to_json(config)
    kind = {"gemma2": "Gemma2", "gemma3_text": "Gemma3"}[config.model_type]
    text = "Text" if kind == "Gemma3" else ""
    framework_config = getattr(transformers, f"{kind}{text}Config")(**values)
    framework_config._attn_implementation = attention
    model = getattr(transformers, f"{kind}ForCausalLM")(framework_config).eval()
    weights = {}
    for name, parameter in model.named_parameters():  # the tied head is not named again
        weights[name] = parameter.detach().numpy().copy()
        parameter.data = torch.from_numpy(weights[name])
    return model, weights


def timed_after(prepare: Callable, run: Callable) -> Callable[[], float]:
    """A measurement of `run`, given what `prepare` makes, in seconds."""

    def measure() -> float:
        prepared = prepare()
        start = time.perf_counter()
        run(prepared)
        return time.perf_counter() - start

    return measure


MATRIX_BYTES = 2**30


def large_matrix() -> np.ndarray:
    """A matrix far larger than any processor's cache, so that a product with it measures how fast memory is read."""
    return np.ones((MATRIX_BYTES // 2**14, 2**12), np.float32)


def pairs(*functions: Callable, rounds: int = 7, timed: bool = False) -> np.ndarray:
    """Measure the functions in turn, `rounds` times after one for warming up: [functions, rounds]."""
    table = []
    for _ in range(rounds + 1):
        row = []
        for function in functions:
            start = time.perf_counter()
            result = function()
            row.append(result if timed else time.perf_counter() - start)
        table.append(row)
    return np.array(table[1:]).T


def report(what: str, ours: np.ndarray, theirs: np.ndarray, attention: str) -> None:
    ratio = ours / theirs
    print(
        f"{what:20}{np.median(ratio):6.2f} x the framework ({attention}, {ratio.min():.2f} to {ratio.max():.2f}): "
        f"{np.median(ours):,.1f} against {np.median(theirs):,.1f} tokens/s",
        flush=True,
    )


def import_time(rounds: int) -> None:
    """Seconds of `import gemma_np`, in a fresh interpreter each time."""
    code = "import time; t = time.perf_counter(); import gemma_np; print(time.perf_counter() - t)"
    seconds = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(rounds)]
    print(f"{'import gemma_np':20}{np.median(seconds):6.3f} s (range {min(seconds):.3f} to {max(seconds):.3f})")


# The peak of this very process; getrusage would count what the parent held when it forked.
PEAK = """
import re, sys
from pathlib import Path
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
"""

LOADING = (
    PEAK
    + """
import gemma_np
before = peak()
model = gemma_np.load(sys.argv[1])
weights = sum(w.nbytes for w in model.weights.values())
print((peak() - before) / weights)
"""
)

PREFILLING = (
    PEAK
    + """
import numpy as np
from gemma_np import RELEASED
from gemma_np.model.kv_cache import KVCache
from gemma_np.text.generation import prefill
config = RELEASED["gemma-2-2b"]
weights = {name: np.zeros(shape, np.float32) for name, shape in config.weight_shapes()}  # all one page of zeros
before = peak()
cache = KVCache(config, 8192)
prefill(np.ones(8192, int), weights, config, cache)
size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
print(size / 1e9, (peak() - before - size) / 1e9)
"""
)


def peak_memory() -> None:
    """Peak of loading a bfloat16 checkpoint as float32, and of a prefill of 8,192 tokens, in processes of their own."""
    import tempfile
    from pathlib import Path

    import ml_dtypes

    from gemma_np.checkpoints.saving import save_folder

    config = RELEASED["gemma-3-270m"]
    weights = {name: np.ones(shape, ml_dtypes.bfloat16) for name, shape in config.weight_shapes()}
    with tempfile.TemporaryDirectory() as folder:
        save_folder(Path(folder) / "model", config, weights.items(), None)
        ratio = float(subprocess.check_output([sys.executable, "-c", LOADING, f"{folder}/model"]))
    print(f"{'270m loading':20}{ratio:6.2f} of the float32 weights at the peak")
    cache, rest = subprocess.check_output([sys.executable, "-c", PREFILLING]).split()
    print(f"{'2b prefill 8192':20}{float(rest):6.2f} GB beyond the weights and the cache ({float(cache):.2f} GB)")


if __name__ == "__main__":
    main()
