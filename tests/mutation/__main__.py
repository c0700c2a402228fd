"""Change the package in small ways, one at a time, and see whether a test fails: a change that none notices survives.

A survivor is a missing test, or a change that nobody could notice; these are listed in tests/mutation/equivalent.json,
with the reason. The score is the share of the other changes that a test noticed.
"""

import argparse
import difflib
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from tests.mutation.mutants import Mutant, mutants
from tests.mutation.runner import ROOT, Sandbox

EQUIVALENT = Path(__file__).with_name("equivalent.json")
FILES = (
    *("config", "scope", "errors", "input_files", "json_input", "threads"),
    *("weights/*", "model/*", "checkpoints/*", "text/*", "oracle/comparison", "oracle/noise", "oracle/dump"),
    *("oracle/diagnosis", "oracle/isolation", "oracle/trace", "evaluation/likelihood", "evaluation/perplexity"),
    *("evaluation/bootstrap", "evaluation/multiple_choice", "compression/quantization", "compression/gptq"),
    *("compression/awq", "compression/pruning", "compression/structured_pruning", "compression/qat"),
    *("compression/block_quantization", "compression/k_quants", "compression/legacy_quants"),
    *("compression/scale_search", "compression/export_gguf"),
    *("training/optimizer", "training/losses", "training/data", "training/training_state", "training/teacher_targets"),
    *("training/distillation", "training/trainer", "training/conversations", "training/run_lock"),
)
"""The core and the boundary: what computes, and what reads and writes."""

EXAMPLES = """examples:
  python -m tests.mutation --sample 200 --seed 1
  python -m tests.mutation --sample 20 --files gemma_np/text/sampling.py
"""


def every_mutant(patterns: list[str]) -> list[tuple[str, Mutant]]:
    """Return all mutants of the files that match, as (file, mutant)."""
    files = sorted({path for pattern in patterns for path in ROOT.glob(pattern)})
    return [
        (path.relative_to(ROOT).as_posix(), mutant)
        for path in files
        for mutant in mutants(path.read_text(encoding="utf-8"))
    ]


def reason(file: str, mutant: Mutant) -> str | None:
    """Return why a mutant is equivalent, if it is listed."""
    for entry in json.loads(EQUIVALENT.read_text(encoding="utf-8")):
        if (entry["file"], entry["line"], entry["old"], entry["new"]) == (file, mutant.text, mutant.old, mutant.new):
            return str(entry["reason"])
    return None


def describe(file: str, mutant: Mutant) -> str:
    """Return a survivor as a diff."""
    source = (ROOT / file).read_text(encoding="utf-8")
    changed = mutant.apply(source)
    diff = difflib.unified_diff(
        source.splitlines(), changed.splitlines(), file, f"line {mutant.line}", n=0, lineterm=""
    )
    return "\n".join(diff)


def main() -> int:
    """Run a sample of the mutants; return 1 when more than 2 % of those that matter survive."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m tests.mutation", description=__doc__, epilog=EXAMPLES, formatter_class=form
    )
    parser.add_argument("--sample", type=int, default=200, help="number of mutants (200)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same mutants (0)")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at the same time (2)")
    parser.add_argument("--files", nargs="+", default=[f"gemma_np/{name}.py" for name in FILES], help="only these")
    options = parser.parse_args()

    drawn = every_mutant(options.files)
    random.Random(options.seed).shuffle(drawn)
    drawn = drawn[: options.sample]
    chosen = [(file, mutant) for file, mutant in drawn if reason(file, mutant) is None]
    survivors = []
    with tqdm(total=len(chosen), desc="mutants", unit=" mutants") as progress:

        def work(share: list[tuple[str, Mutant]]) -> None:
            with Sandbox() as sandbox:
                for file, mutant in share:
                    if sandbox.survives(file, mutant):
                        survivors.append((file, mutant))
                        tqdm.write(describe(file, mutant))
                    progress.update()
                    progress.set_postfix(survivors=len(survivors))

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(work, [chosen[number :: options.jobs] for number in range(options.jobs)]))
    score = 1 - len(survivors) / max(len(chosen), 1)
    print(
        f"{len(drawn)} mutants, {len(drawn) - len(chosen)} listed as equivalent, {len(survivors)} survived: {score:.1%}"
    )
    return int(score < 0.98)


if __name__ == "__main__":
    sys.exit(main())
