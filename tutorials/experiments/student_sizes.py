"""Table 7 in miniature: students of three sizes, distilled and from scratch, with the same number of tokens.

Needs the teachers of bundled.py, in the same folder.

mpiexec -n 2 python tutorials/experiments/student_sizes.py
"""

from common import BUDGET, SEEDS, open_lab, row, write
from pairs import SHAPES, student, twin
from plots import lines

KINDS = {"from scratch": twin, "distilled": student}

with open_lab(__doc__) as lab:
    runs = {
        (kind, size): [make(lab, seed, BUDGET, size) for seed in SEEDS]
        for kind, make in KINDS.items()
        for size in SHAPES
    }
    lab.train([run for group in runs.values() for run in group])
    if lab.ranks.rank == 0:
        rows = [
            row(f"{size}, {kind}", group[0].parameters, [lab.loss(lab.trained(run.name)) for run in group])
            | {"kind": kind}
            for (kind, size), group in runs.items()
        ]
        write("student_sizes", rows)
        title = "Students of three sizes (report: table 7)"
        lines("student_sizes", rows, title, x="parameters", unit="parameters (millions)")
