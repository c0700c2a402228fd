"""Calibration: collect statistics of the inputs of each matrix, with a tape, while a model reads sample texts.

Source: Frantar et al., arXiv 2210.17323 (Gram matrices of inputs, as computed by the layers already quantized).
"""

from collections.abc import Callable, Iterator

import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.model.block import block
from gemma_np.model.embedding import embed
from gemma_np.model.transformer import transformer
from gemma_np.progress import progress_bar
from gemma_np.scope import Scope
from gemma_np.weights.formats import Weight, dequantize

INPUTS = {
    "self_attn.q_proj.weight": "input_layernorm",
    "self_attn.k_proj.weight": "input_layernorm",
    "self_attn.v_proj.weight": "input_layernorm",
    "self_attn.o_proj.weight": "self_attn.context",
    "mlp.gate_proj.weight": "pre_feedforward_layernorm",
    "mlp.up_proj.weight": "pre_feedforward_layernorm",
    "mlp.down_proj.weight": "mlp.hidden",
}
"""The record that is the input of each matrix of a layer."""


class InputGram(dict[str, np.ndarray]):
    """A tape that sums the Gram matrices of the inputs of matrices: record name -> X^T X, [in, in]."""

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        """Add a record [..., in] if it is the input of a matrix."""
        if name in INPUTS.values():
            rows = value.reshape(-1, value.shape[-1])
            self[name] = self.get(name, 0) + rows.T @ rows
        return value


def channel_importance(model: Gemma, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean squared input of each channel of the layers' matrices while a model reads ids [texts, T].

    name -> [in]. GGUF tools call this an importance matrix, or imatrix.
    """
    sums: dict[str, np.ndarray] = {}

    def add(name: str, value: np.ndarray) -> np.ndarray:
        if name.split(".", 2)[-1] in INPUTS.values():
            sums[name] = sums.get(name, 0) + np.square(value, dtype=np.float64).reshape(-1, value.shape[-1]).sum(axis=0)
        return value

    for text in progress_bar(ids, desc="calibrating", unit="texts"):
        transformer(text, model.weights, model.config, tape=add)
    means = {name: total / ids.size for name, total in sums.items()}
    return {
        f"model.layers.{number}.{matrix}": means[f"layers.{number}.{record}"]
        for number in range(model.config.num_hidden_layers)
        for matrix, record in INPUTS.items()
    }


LayerMap = Callable[[dict[str, np.ndarray], InputGram], dict[str, Weight]]
"""(a layer's weights by their names within it, the Gram matrices of its inputs) -> its new weights."""


def calibration_ids(model: Gemma, text: str, samples: int, length: int) -> np.ndarray:
    """Return the first tokens of a text as samples that begin with `<bos>`: ids [samples, length].

    Raises GemmaError when the model has no tokenizer or the text is too short.
    """
    tokenizer = model.require_tokenizer()
    ids = tokenizer.encode(text[: 20 * samples * length], bos=False)  # tokens of more than 20 characters are rare
    return split_samples(np.array(ids, int), samples, length, model)


def split_samples(tokens: np.ndarray, samples: int, length: int, model: Gemma) -> np.ndarray:
    """Split the first tokens [N] into samples that begin with `<bos>`: ids [samples, length].

    Raises GemmaError when there are too few.
    """
    length = min(length, model.config.max_position_embeddings)
    needed = samples * (length - 1)
    if len(tokens) < needed:
        raise GemmaError(f"calibration text: {len(tokens)} tokens, expected {needed} for {samples} samples of {length}")
    rows = tokens[:needed].reshape(samples, length - 1).astype(int)
    return np.insert(rows, 0, model.require_tokenizer().bos, axis=1)


def map_layers(
    model: Gemma, embedding: Weight, map_layer: LayerMap, ids: np.ndarray | None
) -> Iterator[tuple[str, Weight]]:
    """Yield all weights of a model by name, one layer after another, each replaced by `map_layer`.

    ids [texts, T] pass through each layer with its old weights, to collect Gram matrices, then with its new ones, so
    that later layers see the inputs that they will have. Without ids, there are no Gram matrices.

    Raises GemmaError, with the full name of the weight, when `map_layer` raises it.
    """
    config, weights = model.config, Scope(model.weights) / "model"
    yield "model.embed_tokens.weight", embedding
    texts = [] if ids is None else [embed(text, embedding) for text in ids]
    del embedding  # frees the largest weight, which the caller has written by now
    for number in range(config.num_hidden_layers):
        layer = {name: dequantize(weight) for name, weight in (weights / f"layers.{number}").items()}
        gram = InputGram()
        for x in texts:
            block(x, Scope(layer), config, number, tape=gram)
        try:
            new = map_layer(layer, gram)
        except GemmaError as error:
            raise GemmaError(f"model.layers.{number}.{error}") from None
        layer.clear()  # frees the dequantized weights before the next layer
        texts = [block(x, Scope(new), config, number) for x in texts]
        yield from ((f"model.layers.{number}.{name}", weight) for name, weight in new.items())
    yield "model.norm.weight", weights["norm.weight"]
