"""What the weights are multiplied with: the inputs of each matrix, seen by the tape while real texts pass.

Source: Frantar et al., arXiv 2210.17323 (second moments of what a layer is given by the quantized ones before it).
"""

from collections.abc import Callable, Iterator

import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.model.block import block
from gemma_np.model.embedding import embed
from gemma_np.scope import Scope
from gemma_np.weights.formats import Weight, dequantize

INPUTS = {
    "self_attn.q_proj.weight": "input_layernorm",
    "self_attn.k_proj.weight": "input_layernorm",
    "self_attn.v_proj.weight": "input_layernorm",
    "self_attn.o_proj.weight": "self_attn.mixed",
    "mlp.gate_proj.weight": "pre_feedforward_layernorm",
    "mlp.up_proj.weight": "pre_feedforward_layernorm",
    "mlp.down_proj.weight": "mlp.hidden",
}
"""The record that each matrix of a layer is multiplied with."""

Rewrite = Callable[[dict[str, np.ndarray], "Moments"], dict[str, Weight]]
"""(a layer's weights by their names within it, the moments of its inputs) -> its new weights."""


class Moments(dict[str, np.ndarray]):
    """A tape that adds up the second moments of each matrix' inputs: record name -> X^T X, [in, in]."""

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        """Add what passes, if some matrix is multiplied with it."""
        if name in INPUTS.values():
            rows = value.reshape(-1, value.shape[-1])
            self[name] = self.get(name, 0) + rows.T @ rows
        return value


def calibration_texts(model: Gemma, text: str, texts: int, length: int) -> np.ndarray:
    """The first tokens of a text, cut into `texts` pieces that begin with `<bos>`: ids [texts, length].

    Raises GemmaError when the model has no tokenizer or the text is too short.
    """
    if model.tokenizer is None:
        raise GemmaError("tokenizer.model: missing from the checkpoint, expected to read the calibration text with")
    ids = model.tokenizer.encode(text[: 20 * texts * length], bos=False)  # hardly a token has more characters
    return cut_into_texts(np.array(ids, int), texts, length, model)


def cut_into_texts(tokens: np.ndarray, texts: int, length: int, model: Gemma) -> np.ndarray:
    """The first of some tokens [N], cut into pieces that begin with `<bos>`: ids [texts, length].

    Raises GemmaError when they are too few.
    """
    assert model.tokenizer is not None
    length = min(length, model.config.max_position_embeddings)
    needed = texts * (length - 1)
    if len(tokens) < needed:
        raise GemmaError(f"calibration text: {len(tokens)} tokens, expected {needed} for {texts} texts of {length}")
    rows = tokens[:needed].reshape(texts, length - 1).astype(int)
    return np.insert(rows, 0, model.tokenizer.bos, axis=1)


def map_layers(
    model: Gemma, embedding: Weight, rewrite_layer: Rewrite, ids: np.ndarray | None
) -> Iterator[tuple[str, Weight]]:
    """All weights of a model by name, one layer after another, each as `map_layers_layer` has made it new.

    ids [texts, T] are read once more in each layer, by the new weights of the layers before it, so that the moments
    are of what the layer will be given. Without ids there are none.
    """
    config, weights = model.config, Scope(model.weights) / "model"
    yield "model.embed_tokens.weight", embedding
    texts = [] if ids is None else [embed(text, embedding) for text in ids]
    del embedding  # the largest weight of all, and written by now
    for number in range(config.num_hidden_layers):
        layer = {name: dequantize(weight) for name, weight in (weights / f"layers.{number}").items()}
        moments = Moments()
        for x in texts:
            block(x, Scope(layer), config, number, tape=moments)
        new = rewrite_layer(layer, moments)
        layer.clear()  # what was widened is not needed beside the next layer
        texts = [block(x, Scope(new), config, number) for x in texts]
        yield from ((f"model.layers.{number}.{name}", weight) for name, weight in new.items())
    yield "model.norm.weight", weights["norm.weight"]
