"""Table 8 in miniature: grouped-query attention against multi-head attention.

python tutorials/experiments/gqa_against_mha.py texts/
"""

from common import SEEDS, TRAINING, Lab, Shape
from plots import bars

from gemma_np.training.data import random_batches
from gemma_np.training.task import Task

SHAPES = {"GQA, 2 key-value heads for 4": Shape(num_key_value_heads=2), "MHA, 4 for 4": Shape(num_key_value_heads=4)}

lab = Lab(__doc__)
task = Task(random_batches(lab.tokens, TRAINING.batch_size, TRAINING.seq_len))
rows = [
    {
        "label": label,
        "parameters": shape.parameters,
        "losses": [lab.loss(lab.trained(f"kv-{shape.num_key_value_heads}", shape, task, seed)) for seed in SEEDS],
    }
    for label, shape in SHAPES.items()
]
rows = lab.write("gqa_against_mha", rows)
bars("gqa_against_mha", "GQA against MHA (report: table 8)", rows)
