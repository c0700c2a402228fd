"""Table 10 in miniature: models trained with a window of 64, evaluated with narrower ones.

mpiexec -n 2 python tutorials/experiments/window_at_inference.py
"""

from dataclasses import replace

from common import SEEDS, open_lab, row, write
from plots import bars

WINDOWS = (64, 32, 16, 8, 4, 1)

with open_lab(__doc__) as lab:
    runs = [lab.from_scratch("kv-2", seed) for seed in SEEDS]  # shared with gqa_against_mha.py
    lab.train(runs)
    if lab.ranks.rank == 0:
        models = [lab.trained(run.name) for run in runs]
        rows = [
            row(
                f"window {window}",
                runs[0].parameters,
                [lab.loss(replace(model, config=replace(model.config, sliding_window=window))) for model in models],
            )
            for window in WINDOWS
        ]
        write("window_at_inference", rows)
        bars("window_at_inference", rows, "The local window narrowed at inference (report: table 10)")
