"""What training takes: the memory of each kind of tensor, before any of it is allocated."""

import math

from gemma_np.config import GemmaConfig
from gemma_np.model.records import record_shapes


def training_memory(config: GemmaConfig, batch: int, length: int) -> dict[str, int]:
    """Bytes of each kind at the peak of a step in float32, for `batch` texts of `length` tokens at once.

    The records of the forward pass are needed to the end of the backward pass. What else is at work, and which
    moment is the peak, depends on the shape: the largest of the five moments counts.
    """
    shapes = dict(config.weight_shapes())
    weights = sum(map(math.prod, shapes.values()))
    embedding = math.prod(shapes["model.embed_tokens.weight"])
    positions = batch * length
    logits, hidden = positions * config.vocab_size, positions * config.intermediate_size
    scores = positions * length * config.num_attention_heads
    stream = 6 * positions * config.hidden_size  # gradients along the residual stream
    at_work = {
        "loss": 2 * logits,
        "head": 2 * logits + embedding,
        "layers": logits + weights + stream + max(3 * scores, 4 * hidden),
        "lookup": logits + weights + embedding,
        "optimizer": weights + 3 * max(map(math.prod, shapes.values())),
    }
    peak = max(at_work, key=lambda moment: at_work[moment])
    numbers = {
        "weights": weights,
        "moments of AdamW": 2 * weights,
        "records of the forward pass": batch * sum(map(math.prod, record_shapes(config, length).values())),
        f"gradients and work (peak: {peak})": at_work[peak],
    }
    return {kind: 4 * count for kind, count in numbers.items()}
