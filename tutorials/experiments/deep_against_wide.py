"""Table 9 in miniature: more layers against wider ones, at equal parameters.

python tutorials/experiments/deep_against_wide.py texts/
"""

from common import SEEDS, TRAINING, Lab, Shape
from plots import bars

from gemma_np.training.data import random_batches
from gemma_np.training.task import Task

SHAPES = {
    "deep: 8 layers, D = 96": Shape(hidden_size=96, num_hidden_layers=8, head_dim=24, intermediate_size=288),
    "wide: 2 layers, D = 160": Shape(hidden_size=160, num_hidden_layers=2, head_dim=40, intermediate_size=626),
}

lab = Lab(__doc__)
task = Task(random_batches(lab.tokens, TRAINING.batch_size, TRAINING.seq_len))
rows = [
    {
        "label": label,
        "parameters": shape.parameters,
        "losses": [lab.loss(lab.trained(f"layers-{shape.num_hidden_layers}", shape, task, seed)) for seed in SEEDS],
    }
    for label, shape in SHAPES.items()
]
rows = lab.write("deep_against_wide", rows)
bars("deep_against_wide", "Deep against wide at equal parameters (report: table 9)", rows)
