"""Table 6 in miniature: students distilled from a teacher against their twins, trained from scratch, at three budgets.

Needs the teachers of bundled.py, in the same folder, and shares the runs of the largest budget with it.

mpiexec -n 2 python tutorials/experiments/distilled_against_scratch.py
"""

from functools import partial
from itertools import product

from common import BUDGET, SEEDS, open_lab
from pairs import BUNDLED_BUDGET, KINDS
from plots import lines

with open_lab(__doc__) as lab:
    runs, columns = {}, {}
    for kind, tokens in product(KINDS, (BUDGET, 3e6, BUNDLED_BUDGET)):
        label = f"{tokens / 1e6:g} M tokens, {kind}"
        runs[label] = [KINDS[kind](lab, seed, tokens) for seed in SEEDS]
        columns[label] = {"kind": kind, "tokens": tokens}
    title = "Distilled against from scratch (report: table 6)"
    plot = partial(lines, title=title, x="tokens", unit="tokens of training (millions)")
    lab.compare("distilled_against_scratch", runs, plot, columns)
