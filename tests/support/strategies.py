"""Strategies for hypothesis: configs in which every constant matters, weights for them, token ids, arrays.

With the released constants the output of a tiny random model hardly depends on caps and windows. Here caps are 2 to 3,
windows are 2 to 4, key-value heads are shared, sizes that mean different things differ, and there are several layers of
each kind.
"""

import numpy as np
from hypothesis import strategies as st

from gemma_np import GemmaConfig
from gemma_np.config import GLOBAL, LOCAL

MODEL_TYPES = ("gemma", "gemma2", "gemma3_text")

seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(1, 9)  # in tokens; the windows below are 2 to 4
sizes = st.integers(2, 6)  # of vectors; with a single number, cancellation could leave no digits to compare
batches = st.lists(st.integers(1, 3), max_size=2).map(tuple)


def normal(seed, *shape, dtype=np.float64):
    """Return an array of that shape of standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@st.composite
def configs(draw, model_type=None):
    """Draw the config of a small model, of the given type or of any.

    The framework must be able to build it, too: D is a multiple of H, Gemma 1 scales its scores by the head dimension,
    and Gemma 1 and 2 have one RoPE base.
    """
    model_type = model_type or draw(st.sampled_from(MODEL_TYPES))
    K, G, h = draw(st.integers(1, 3)), draw(st.integers(2, 3)), draw(st.sampled_from([4, 6, 8]))
    H = K * G
    sizes = {
        "vocab_size": draw(st.sampled_from([17, 23, 31])),
        "hidden_size": H * draw(st.sampled_from([5, 7])),
        "num_attention_heads": H,
        "num_key_value_heads": K,
        "head_dim": h,
        "intermediate_size": draw(st.sampled_from([13, 19, 29])),
        "max_position_embeddings": 48,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-3])),
    }
    if model_type == "gemma":
        kinds, scalar = [GLOBAL] * 4, h
        extras = {"rope_theta": draw(st.sampled_from([10.0, 300.0]))}
    else:
        kinds, scalar = draw(st.permutations([LOCAL, LOCAL, GLOBAL, GLOBAL])), draw(st.sampled_from([3, 5]))
        extras = {"sliding_window": draw(st.integers(2, 4))}
    if model_type == "gemma2":
        extras |= {"rope_theta": draw(st.sampled_from([10.0, 300.0]))}
        extras |= {"attn_logit_softcapping": draw(st.sampled_from([2.0, 2.25]))}
        extras |= {"final_logit_softcapping": draw(st.sampled_from([2.75, 3.0]))}
    if model_type == "gemma3_text":
        extras |= {"rope_theta": 300.0, "rope_local_base_freq": 10.0}
        extras |= {"rope_scaling_factor": draw(st.sampled_from([2.0, 8.0]))}
    return GemmaConfig(
        model_type=model_type,
        num_hidden_layers=len(kinds),
        query_pre_attn_scalar=scalar,
        layer_types=tuple(kinds),
        **sizes,
        **extras,
    )


def random_weights(config, seed, dtype=np.float32):
    """Return weights with which scores and logits reach the caps; norm weights differ from channel to channel.

    They are read-only, like those of a memory-mapped file, so that a forward pass that writes to them fails.
    The embedding is larger than what the layers add to it. Otherwise some models amplify rounding a hundredfold from
    layer to layer, and a comparison would measure the model and not the code.
    """
    generator = np.random.default_rng(seed)
    weights = {}
    for name, shape in config.weight_shapes():
        is_norm, is_embedding = len(shape) == 1, "embed" in name
        std = 0.3 if is_norm else (4 if is_embedding else 1.2) / np.sqrt(shape[1])
        weights[name] = (std * generator.standard_normal(shape)).astype(dtype)
        weights[name].flags.writeable = False
    return weights


def random_ids(config, seed, *shape):
    """Return random token ids of the given shape."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape)


@st.composite
def splits(draw, total):
    """Draw a list of chunk sizes whose sum is the total."""
    cuts = sorted(draw(st.sets(st.integers(1, total - 1)))) if total > 1 else []
    return list(np.diff([0, *cuts, total]))
