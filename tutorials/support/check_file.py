"""Check the reader's file, my_gemma.py, as far as a tutorial has led: run it, and say what differs first and why."""

from pathlib import Path

import numpy as np

from support.exercise import Verdict
from support.forward_checks import check_decoding, check_records, check_weights
from support.reader_file import NotWritten, ReaderFile, Wrong
from support.training_checks import check_distillation, check_gradients, check_step

STAGES = {
    "weights": 2,
    "embedding": 3,
    "input_layernorm": 4,
    **dict.fromkeys(("q", "k", "v", "q_rope", "k_rope"), 5),
    **dict.fromkeys(("scores", "context", "o"), 6),
    "probs": 7,
    "scores_capped": 8,
    **dict.fromkeys(("post_attention_layernorm", "resid_mid", "pre_feedforward_layernorm"), 9),
    **dict.fromkeys(("gate", "up", "hidden", "down", "post_feedforward_layernorm", "resid_post"), 9),
    **dict.fromkeys(("norm", "logits", "logits_capped"), 10),
    "decoding": 11,
    "gradients": 13,
    "step": 14,
    "distillation": 15,
}
"""What can be checked -> the tutorial after which it can be: records, and what comes after the model."""

CHECKS = {
    "decoding": (check_decoding,),
    "gradients": (check_gradients,),
    "step": (check_gradients, check_step),
    "distillation": (check_gradients, check_step, check_distillation),
}
"""What comes after the model -> the checks, with those that it rests on."""


def check_file(path: str | Path, upto: str) -> Verdict:
    """Run the reader's file, and compare what it computes with the reference.

    upto: a record, or a part that comes after the model (see `STAGES`). The functions of the tutorials after this one
    are ours, whether the reader has written them or not, so the whole model runs from the first function on.
    """
    if upto not in STAGES:
        return Verdict(False, f"upto={upto!r}: expected one of {', '.join(STAGES)}")
    said: list[str] = []
    try:
        file = ReaderFile(path, STAGES[upto])
        with np.errstate(all="ignore"):  # a mistake may overflow
            said.append(check_weights(file))
            if upto != "weights":
                said.append(check_records(file))
            said += [check(file) for check in CHECKS.get(upto, ())]
    except NotWritten as missing:
        return Verdict(False, "\n".join([f"{missing} is not written yet", *_to_write(file, upto)]))
    except Wrong as problem:
        return Verdict(False, str(problem))
    except Exception as error:  # of ours, on something that no right file returns
        return Verdict(False, f"{upto} cannot be checked with what the file returns: {error}")
    return Verdict(not file.not_written, "\n".join([*said, *_to_write(file, upto)]))


def _to_write(file: ReaderFile, upto: str) -> list[str]:
    """Say which functions are not written yet, by tutorial."""
    by_tutorial: dict[int, list[str]] = {}
    for name, number in file.not_written.items():
        by_tutorial.setdefault(number, []).append(name)
    parts = [f"{', '.join(names)} (tutorial {number})" for number, names in by_tutorial.items()]
    return [f"not written yet, of what leads to {upto}: {'; '.join(parts)}"] if parts else []
