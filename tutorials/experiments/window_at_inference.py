"""Table 10 in miniature: models trained with a window of 64, evaluated with narrower ones.

python tutorials/experiments/window_at_inference.py texts/
"""

from dataclasses import replace

from common import SEEDS, TRAINING, Lab, Shape
from plots import bars

from gemma_np import Gemma
from gemma_np.training.data import random_batches
from gemma_np.training.task import Task

WINDOWS = (64, 32, 16, 8, 4, 1)

lab = Lab(__doc__)
task = Task(random_batches(lab.tokens, TRAINING.batch_size, TRAINING.seq_len))
models = [lab.trained("kv-2", Shape(), task, seed) for seed in SEEDS]


def loss_with(window: int, model: Gemma) -> float:
    """Return the loss of the same weights when local layers see only `window` keys."""
    return lab.loss(replace(model, config=replace(model.config, sliding_window=window)))


rows = [
    {
        "label": f"window {window}",
        "parameters": Shape().parameters,
        "losses": [loss_with(window, model) for model in models],
    }
    for window in WINDOWS
]
rows = lab.write("window_at_inference", rows)
bars("window_at_inference", "The local window narrowed at inference (report: table 10)", rows)
