"""Table 9 in miniature: more layers against wider ones, at equal parameters.

mpiexec -n 2 python tutorials/experiments/deep_against_wide.py
"""

from functools import partial

from common import SEEDS, open_lab
from plots import bars

SHAPES = {
    "deep: 8 layers, D = 96": {"num_hidden_layers": 8, "hidden_size": 96, "head_dim": 24, "intermediate_size": 288},
    "wide: 2 layers, D = 160": {"num_hidden_layers": 2, "hidden_size": 160, "head_dim": 40, "intermediate_size": 626},
}

with open_lab(__doc__) as lab:
    lab.compare(
        "deep_against_wide",
        {
            label: [lab.from_scratch(f"layers-{shape['num_hidden_layers']}", seed, **shape) for seed in SEEDS]
            for label, shape in SHAPES.items()
        },
        partial(bars, title="Deep against wide at equal parameters (report: table 9)"),
    )
