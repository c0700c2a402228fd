"""Table 8 in miniature: grouped-query attention against multi-head attention.

mpiexec -n 2 python tutorials/experiments/gqa_against_mha.py
"""

from functools import partial

from common import SEEDS, open_lab
from plots import bars

KV_HEADS = {"GQA, 2 key-value heads for 4": 2, "MHA, 4 for 4": 4}

with open_lab(__doc__) as lab:
    lab.compare(
        "gqa_against_mha",
        {
            label: [lab.from_scratch(f"kv-{heads}", seed, num_key_value_heads=heads) for seed in SEEDS]
            for label, heads in KV_HEADS.items()
        },
        partial(bars, title="GQA against MHA (report: table 8)"),
    )
