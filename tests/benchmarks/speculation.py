"""Speed of speculative decoding, as ratios to plain decoding of the same text, measured in alternation within one run.

    python tests/benchmarks/speculation.py
    python tests/benchmarks/speculation.py --draft-tokens 2 4 8 --rounds 9

A ratio above 1 means that the draft makes shakespeare-4m that much faster. The verse is continued greedily and with
temperature 0.8; the list repeats itself, as code, tables and quotations do. The seconds are those of the processor.
"""

import argparse
import time

import numpy as np

import gemma_np
from gemma_np.compression.drafts import NAMED_DRAFTS
from gemma_np.text.speculation import Acceptance

VERSE = "To be, or not to be, that is the question:"
LIST = "ROMEO. JULIET. MERCUTIO. TYBALT. BENVOLIO. ROMEO. JULIET. MERCUTIO. TYBALT. BENVOLIO. " * 2
NEW_TOKENS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    model = gemma_np.load("shakespeare-4m")
    drafts = {"shakespeare-1m": gemma_np.load("shakespeare-1m")}
    drafts |= {name: model.resolve_draft(draft) for name, draft in NAMED_DRAFTS.items()}
    for kind, text, temperature in (("verse", VERSE, 0.0), ("verse", VERSE, 0.8), ("list", LIST, 0.0)):
        prompt = model.tokenizer.encode(text)
        for name, draft in drafts.items():
            for count in options.draft_tokens:
                ratios, acceptance = [], Acceptance()
                for seed in range(options.rounds + 1):
                    common = {"temperature": temperature, "seed": seed}
                    plain = seconds_per_token(model, prompt, **common)
                    drafted = {"draft": draft, "draft_tokens": count, "acceptance": acceptance}
                    ratios.append(plain / seconds_per_token(model, prompt, **common, **drafted))
                print(
                    f"{kind}, temperature {temperature:<4}{name:16}{count:3} at once{np.median(ratios[1:]):6.2f} x "
                    f"(range {min(ratios[1:]):.2f} to {max(ratios[1:]):.2f}), {acceptance}",
                    flush=True,
                )


def seconds_per_token(model: gemma_np.Gemma, prompt: list[int], **options) -> float:
    started = time.process_time()
    ids = list(model.stream_ids(prompt, NEW_TOKENS, **options))
    return (time.process_time() - started) / len(ids)


if __name__ == "__main__":
    main()
