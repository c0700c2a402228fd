"""Table 7 in miniature: students of three sizes, distilled and from scratch, with the same number of tokens.

    python tutorials/experiments/student_sizes.py texts/

The teacher, the bundled shakespeare-4m, reads the corpus once; its 32 most likely tokens at each position are stored.
Both kinds of student read the same batches and start from the same weights: only the loss differs.
"""

from common import SEEDS, TEACHER, TRAINING, Lab, Shape
from plots import lines

from gemma_np import load
from gemma_np.training.task import Task, next_token
from gemma_np.training.teacher_targets import from_targets, random_targets, read_settings, write_targets

SHAPES = {
    "0.3 M": Shape(hidden_size=64, head_dim=16, intermediate_size=192),
    "0.6 M": Shape(hidden_size=96, head_dim=24, intermediate_size=288),
    "1 M": Shape(),
}
LOSSES = {"from scratch": next_token, "distilled": from_targets}


def students(lab: Lab, shapes: dict[str, Shape]) -> list[dict]:
    """Return a row for each shape and kind of training."""
    targets = lab.work / "targets"
    teacher = load(TEACHER)
    write_targets(teacher, lab.tokens, TRAINING.seq_len, 32, targets)
    settings, vocab_size = read_settings(targets), teacher.config.vocab_size
    return [
        {
            "label": f"{size}, {kind}",
            "kind": kind,
            "parameters": shape.parameters,
            "losses": [
                lab.loss(lab.trained(f"d-{shape.hidden_size}-{kind.replace(' ', '-')}", shape, task, seed))
                for seed in SEEDS
            ],
        }
        for kind, loss in LOSSES.items()
        for size, shape in shapes.items()
        for task in [Task(random_targets(targets, TRAINING.batch_size, vocab_size), loss, identity=settings)]
    ]


if __name__ == "__main__":
    lab = Lab(__doc__)
    rows = lab.write("student_sizes", students(lab, SHAPES))
    lines("student_sizes", "Students of three sizes (report: table 7)", rows)
