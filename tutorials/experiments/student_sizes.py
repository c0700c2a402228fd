"""Table 7 in miniature: students of three sizes, distilled and from scratch, with the same number of tokens.

Needs the teachers of bundled.py, in the same folder.

mpiexec -n 2 python tutorials/experiments/student_sizes.py
"""

from functools import partial
from itertools import product

from common import BUDGET, SEEDS, open_lab
from pairs import KINDS, SHAPES
from plots import lines

with open_lab(__doc__) as lab:
    runs, columns = {}, {}
    for kind, size in product(KINDS, SHAPES):
        label = f"{size}, {kind}"
        runs[label] = [KINDS[kind](lab, seed, BUDGET, size) for seed in SEEDS]
        columns[label] = {"kind": kind}
    title = "Students of three sizes (report: table 7)"
    plot = partial(lines, title=title, x="parameters", unit="parameters (millions)")
    lab.compare("student_sizes", runs, plot, columns)
