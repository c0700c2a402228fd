"""Feed gemma_np wrong files and wrong arguments, and look for tracebacks, hangs, and wrong answers.

Each input must be refused with one clear line (GemmaError) or give the result of a reference reader. Everything else is
a failure: another exception, more than 20 seconds, more than 2 GB, a process that dies, another result. New failures
are reduced and written to tests/fuzz/corpus, which tests/fuzz/test_corpus.py runs. The exit status is 1 when there were
new failures.
"""

import argparse
import json
import random
import re
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz.corpus import read_corpus, reduced, write_case
from tests.fuzz.every_target import EVERY_TARGET
from tests.fuzz.worker import Worker

EXAMPLES = """examples:
  python -m tests.fuzz --minutes 30
  python -m tests.fuzz --minutes 5 --target gguf --target config --seed 7
  python -m tests.fuzz --minutes 2 --messages 100    # and print 100 messages to read
  python -m tests.fuzz --target log --input 12       # try input 12 of seed 0 once more
"""


class Progress:
    """What was tried, on one line that is printed again and again."""

    def __init__(self):
        self.counts = {}
        self.messages = {}  # by target: message with its numbers and names left out -> one of them
        self.failures = []
        self.lock = threading.Lock()
        self.printed = time.monotonic()

    def add(self, name, outcome):
        with self.lock:
            self.counts.setdefault(name, Counter())[outcome.kind] += 1
            if outcome.kind == "refused":
                kind = re.sub(r"[0-9]+|'[^']*'|\"[^\"]*\"", "_", outcome.message)[:80]
                self.messages.setdefault(name, {}).setdefault(kind, outcome.message)
            if time.monotonic() > self.printed + (1 if sys.stderr.isatty() else 60):
                self.printed = time.monotonic()
                total = sum(sum(counts.values()) for counts in self.counts.values())
                line = f"{name}: {total:,} inputs, {len(self.failures)} new failures"
                print(
                    f"\r{line:70}" if sys.stderr.isatty() else line,
                    end="" if sys.stderr.isatty() else "\n",
                    file=sys.stderr,
                )

    def fail(self, name, path, outcome):
        with self.lock:
            self.failures.append((name, path, outcome))
            print(f"\n{name}: {outcome.signature}\n  {outcome.message}\n  {path}\n{outcome.detail}\n", flush=True)


def fuzz(name, seed, seconds, progress):
    """Try inputs of one target for some seconds."""
    target, stop = EVERY_TARGET[name], time.monotonic() + seconds
    with Worker(name) as worker:
        known = {worker.run(case).signature for case in read_corpus(name).values()}
        number = 0
        while time.monotonic() < stop:
            case = target.case(seed, number)
            number += 1
            outcome = worker.run(case)
            progress.add(name, outcome)
            if outcome.kind == "failed" and outcome.signature not in known:
                known.add(outcome.signature)
                case = reduced(case, outcome, worker.run, tries=4 if "no end" in outcome.message else 60)
                progress.fail(name, write_case(name, case, outcome), outcome)


def print_messages(progress, count):
    """Print messages that differ in more than their numbers, from all targets alike."""
    generator = random.Random(0)
    shuffled = {name: generator.sample(sorted(found.values()), len(found)) for name, found in progress.messages.items()}
    chosen = []
    while len(chosen) < count and any(shuffled.values()):
        chosen += [(name, found.pop()) for name, found in shuffled.items() if found]
    for name, message in sorted(chosen[:count]):
        print(f"{name:18} {message}".encode("utf-8", "backslashreplace").decode())


def print_table(progress):
    kinds = ("accepted", "refused", "skipped", "failed")
    print(f"\n{'target':18}" + "".join(f"{kind:>10}" for kind in ("inputs", *kinds)))
    total = Counter()
    for name, counts in progress.counts.items():
        total += counts
        print(f"{name:18}{sum(counts.values()):>10,}" + "".join(f"{counts[kind]:>10,}" for kind in kinds))
    print(f"{'total':18}{sum(total.values()):>10,}" + "".join(f"{total[kind]:>10,}" for kind in kinds))
    print(f"{len(progress.failures)} new failures")


def main():
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__, epilog=EXAMPLES, formatter_class=form)
    parser.add_argument("--minutes", type=float, default=30, help="for all targets together (30)")
    parser.add_argument("--target", action="append", choices=EVERY_TARGET, help="only this one; may be repeated (all)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same inputs (0)")
    parser.add_argument("--jobs", type=int, default=1, help="targets tried at the same time (1)")
    parser.add_argument("--messages", type=int, default=0, metavar="N", help="print N of the messages at the end")
    parser.add_argument("--input", type=int, metavar="N", help="try only the Nth input of --target, and print it")
    options = parser.parse_args()
    names = options.target or list(EVERY_TARGET)
    if options.input is not None:
        with Worker(names[0]) as worker:
            case = EVERY_TARGET[names[0]].case(options.seed, options.input)
            print(json.dumps(case, indent=1), *worker.run(case), sep="\n")
        return 0
    progress = Progress()
    seconds = 60 * options.minutes * options.jobs / len(names)
    with ThreadPoolExecutor(options.jobs) as pool:
        for task in [pool.submit(fuzz, name, options.seed, seconds, progress) for name in names]:
            task.result()
    print_messages(progress, options.messages)
    print_table(progress)
    return int(bool(progress.failures))


if __name__ == "__main__":
    sys.exit(main())
