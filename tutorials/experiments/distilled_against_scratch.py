"""Table 6 in miniature: students distilled from a teacher against their twins, trained from scratch, at three budgets.

Needs the teachers of bundled.py, in the same folder, and shares the runs of the largest budget with it.

mpiexec -n 2 python tutorials/experiments/distilled_against_scratch.py
"""

from common import BUDGET, SEEDS, open_lab, row, write
from pairs import BUNDLED_BUDGET, student, twin
from plots import lines

BUDGETS = (BUDGET, 3e6, BUNDLED_BUDGET)
KINDS = {"from scratch": twin, "distilled": student}

with open_lab(__doc__) as lab:
    runs = {
        (kind, tokens): [make(lab, seed, tokens) for seed in SEEDS]
        for kind, make in KINDS.items()
        for tokens in BUDGETS
    }
    lab.train([run for group in runs.values() for run in group])
    if lab.ranks.rank == 0:
        rows = [
            row(
                f"{tokens / 1e6:g} M tokens, {kind}",
                group[0].parameters,
                [lab.loss(lab.trained(run.name)) for run in group],
            )
            | {"kind": kind, "tokens": tokens}
            for (kind, tokens), group in runs.items()
        ]
        write("distilled_against_scratch", rows)
        title = "Distilled against from scratch (report: table 6)"
        lines("distilled_against_scratch", rows, title, x="tokens", unit="tokens of training (millions)")
