"""my_gemma.py, tutorial 3."""

import math

import numpy as np


def embed(ids, weights, config, tape=no_tape):
    """The vectors of the tokens, times sqrt(D): ids [..., T] -> [..., T, D].

    Record: embedding.
    """
    rows = weights["model.embed_tokens.weight"][np.asarray(ids)]
    return tape("embedding", rows * math.sqrt(config["hidden_size"]))


def unembed(x, weights, config, tape=no_tape):
    """The logits, from the same matrix, through `soft_cap` (tutorial 8): x [..., T, D] -> [..., T, V].

    Records: logits, logits_capped. The cap is "final_logit_softcapping".
    """
    logits = tape("logits", x @ weights["model.embed_tokens.weight"].T)
    return tape("logits_capped", soft_cap(logits, config["final_logit_softcapping"]))
