"""How often the oracle is right: faults in the framework, by someone who had not read it.

    python -m tests.benchmarks.oracle_scores
    python -m tests.benchmarks.oracle_scores --held-out --dtype bfloat16

A cause is right if it explains the dump and concerns the operation in which the fault was made; it is misnamed if it
explains the dump by another one. Some faults cannot be told apart from others by logits alone.
"""

import argparse
from collections import Counter
from fnmatch import fnmatchcase

import numpy as np
import torch
from tqdm import tqdm

from gemma_np.oracle.diagnosis import Diagnosis, diagnose
from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.trace import Reference
from tests.integrations.test_transformers import captured, pair_of
from tests.support import goldens
from tests.support.more_framework_faults import FAULTS, Fault, planted
from tests.support.strategies import random_ids

KEPT = {
    "every record": ("",),
    "residual stream and logits": ("resid_post", "logits", "logits_capped"),
    "logits": ("logits", "logits_capped"),
}
LENGTHS = [8, 1, 1, 1, 1]


def kinds(found: Diagnosis) -> set[str]:
    """Return the records that are explained, with `*` for the layer."""
    names = (key.split(".", 2)[-1] if key.startswith("pass.") else key for cause in found.causes for key in cause.keys)
    return {
        ".".join("*" if part.isdecimal() else part for part in name.split(".")) if "layers" in name else name
        for name in names
    }


def verdict(fault: Fault, found: Diagnosis) -> str:
    """Return right, misnamed, unknown or unseen."""
    if not found.wrong:
        return "unseen"
    if found.unexplained:
        return "unknown"
    place = ".".join("*" if part.isdecimal() else part for part in fault.kind.split("."))
    return "right" if any(fnmatchcase(kind, place) for kind in kinds(found)) else "misnamed"


def score(dtype: str, held_out: bool) -> None:
    """Print a table, and the faults that are not right."""
    cases = [(fault, t) for fault in FAULTS if fault.held_out == held_out for t in fault.model_types]
    counts = {kept: Counter() for kept in KEPT}
    others = []
    for fault, model_type in tqdm(cases, unit=" faults"):
        config, weights, _ = goldens.load(model_type)
        model, theirs = pair_of(config, weights, dtype)
        lengths = LENGTHS if fault.passes else [sum(LENGTHS)]
        ids = np.split(random_ids(config, 3, sum(LENGTHS)), np.cumsum(lengths)[:-1])
        reference = Reference(model, ids)
        with planted(fault.id, theirs, config), torch.no_grad():
            records = captured(theirs, reference)
        for kept, ends in KEPT.items():
            few = {key: record for key, record in records.items() if key.endswith(ends)}
            found = diagnose(Alignment(reference, few, {}), dtype)
            counts[kept][verdict(fault, found)] += 1
            if verdict(fault, found) != "right":
                said = "; ".join(cause.says for cause in found.causes)
                others.append(f"{kept}: {verdict(fault, found)}: {fault.id} ({model_type}), in {fault.kind}: {said}")
    print("\n".join(others))
    print(f"{dtype}, {len(cases)} faults{', held out' if held_out else ''}")
    for kept, count in counts.items():
        print(
            f"{kept:28}" + "".join(f"{name} {count[name]:4}   " for name in ("right", "unknown", "misnamed", "unseen"))
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--held-out", action="store_true", help="the third that the oracle was not developed with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    score(options.dtype, options.held_out)
