"""Let every operation of every command fail in turn, and kill each command at random moments."""

import argparse
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from tests.faults.checks import Case
from tests.faults.commands import COMMANDS, CONTINUED
from tests.faults.injection import FAULTS

EXAMPLES = """examples:
  python -m tests.faults
  python -m tests.faults --command train --kills 100
"""


def main():
    texts = {"description": __doc__, "epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser("python -m tests.faults", **texts)
    parser.add_argument("--command", action="append", choices=COMMANDS, help="only this one; may be repeated (all)")
    parser.add_argument("--kills", type=int, default=20, help="kills of each command at random moments (20)")
    parser.add_argument("--flips", type=int, default=50, help="flipped bits in what a run continues, at 4 moments (50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments and bits (0)")
    options = parser.parse_args()
    for name in options.command or COMMANDS:
        case = Case(name, Path(tempfile.mkdtemp(prefix=f"faults-{name}-")))
        faults = [(fault, number) for fault in FAULTS for number in range(1, len(case.operations) + 1)]
        for fault, number in tqdm(faults, desc=name, unit=" faults"):
            case.check_fault(fault, number)
        case.check_random_kills(options.kills, options.seed)
        for part in (0.3, 0.7, 0.9, 1) if name in CONTINUED else ():
            case.check_damage(options.flips, options.seed, part)
        print(f"{name}: {len(faults)} faults and {options.kills} kills; old or new was whole each time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
