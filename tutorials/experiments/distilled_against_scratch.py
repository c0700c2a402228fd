"""Table 6 in miniature: a student distilled from a larger teacher against its twin, trained from scratch.

    python tutorials/experiments/distilled_against_scratch.py texts/

The runs are those of student_sizes.py with the largest student, and are not repeated.
"""

from common import TEACHER, Lab, Shape
from plots import bars
from student_sizes import students

from gemma_np import load

lab = Lab(__doc__)
teacher = load(TEACHER)
rows = students(lab, {"1 M": Shape()})
rows.append(
    {
        "label": "the teacher",
        "kind": "teacher",
        "parameters": sum(teacher.config.parameter_count().values()),
        "losses": [lab.loss(teacher)],
    }
)
rows = lab.write("distilled_against_scratch", rows)
bars("distilled_against_scratch", "Distilled against from scratch (report: table 6)", rows)
