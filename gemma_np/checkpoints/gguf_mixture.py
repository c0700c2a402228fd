"""Which format each weight has in a GGUF file of a mixture such as q4_k_m, as llama.cpp's `llama-quantize` chooses.

A mixture is named after its most frequent format. It gives more bits to the matrices whose errors matter most, the
values and the second matrix of the feed-forward layers, in the first and the last eighth of the layers and in every
third between, and to the embedding, which is also the output head. Norms stay in float32.

Source: llama.cpp, src/llama-quant.cpp, 2026 (the rules).
"""

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError, quoted
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import matrix_bytes

MIXTURES = {
    "q2_k": "Q2_K",
    "q3_k_s": "Q3_K",
    "q3_k_m": "Q3_K",
    "q3_k_l": "Q3_K",
    "q4_k_s": "Q4_K",
    "q4_k_m": "Q4_K",
    "q5_k_s": "Q5_K",
    "q5_k_m": "Q5_K",
    "q6_k": "Q6_K",
    "q4_0": "Q4_0",
    "q4_1": "Q4_1",
    "q5_0": "Q5_0",
    "q5_1": "Q5_1",
    "q8_0": "Q8_0",
    "iq4_nl": "IQ4_NL",
    "f16": "F16",
    "bf16": "BF16",
    "f32": "F32",
}
"""The most frequent format of each mixture."""

_NARROW = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What replaces a K-quant when the rows are not a multiple of its block."""


def weight_formats(config: GemmaConfig, mixture: str, *, has_importance: bool = False) -> dict[str, str]:
    """Return the GGUF format of each weight by its published name: one of BLOCK_FORMATS, "F16", "BF16" or "F32".

    has_importance: whether the weights are quantized with the importance of their channels, which changes some choices.

    A matrix whose rows are not a multiple of 256 gets a format with blocks of 32 instead of a K-quant, and float16 when
    they are not a multiple of 32 either.

    Raises GemmaError for an unknown mixture.
    """
    if mixture not in MIXTURES:
        raise GemmaError(f"mixture: {quoted(mixture)}, expected one of {', '.join(MIXTURES)}")
    formats = {}
    for name, shape in config.weight_shapes():
        if len(shape) == 1:
            formats[name] = "F32"
        elif MIXTURES[mixture] not in BLOCK_FORMATS:
            formats[name] = MIXTURES[mixture]
        elif "embed" in name:
            formats[name] = _fitting(_embedding_format(MIXTURES[mixture], shape[1]), shape[1])
        else:
            _, _, layer, _, matrix, _ = name.split(".")
            wanted = _matrix_format(config, mixture, matrix, int(layer), has_importance=has_importance)
            formats[name] = _fitting(wanted, shape[1])
    return formats


def mixture_bytes(config: GemmaConfig, mixture: str) -> int:
    """Return the bytes of all weights in a mixture, as they are in a file and in memory."""
    floats, total = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}, 0
    formats = weight_formats(config, mixture)
    for name, shape in config.weight_shapes():
        rows = shape[0] if len(shape) == 2 else 1
        total += matrix_bytes((rows, shape[-1]), floats.get(formats[name], formats[name]))
    return total


def _embedding_format(format: str, channels: int) -> str:
    """Return the format of the embedding, as that of an output head."""
    return "Q8_0" if format == "Q8_0" or channels % BLOCK_FORMATS[format].channels else "Q6_K"


def _matrix_format(config: GemmaConfig, mixture: str, matrix: str, layer: int, *, has_importance: bool) -> str:
    """Return the format that a mixture wants for a matrix, such as "v_proj", of a layer."""
    layers = config.num_hidden_layers
    first_eighth = layer < layers // 8
    sensitive = first_eighth or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    four_share = config.num_attention_heads >= 4 * config.num_key_value_heads
    match mixture, matrix:
        case "q4_k_m" | "q5_k_m", "v_proj" | "down_proj" if sensitive:
            return "Q6_K"
        case "q4_k_s", "v_proj" if layer < 4:
            return "Q5_K"
        case "q4_k_s", "down_proj" if first_eighth:
            return "Q5_K"
        case "q3_k_l", "v_proj" | "down_proj" | "o_proj":
            return "Q5_K"
        case "q3_k_m", "v_proj":
            return "Q5_K" if layer < 2 else "Q4_K"
        case "q3_k_m", "down_proj":
            return "Q5_K" if layer < layers // 16 else "Q4_K"
        case "q3_k_m", "o_proj":
            return "Q4_K"
        case "q2_k", "v_proj":
            return "Q4_K" if four_share else "Q3_K"
        case "q2_k", "down_proj" | "o_proj":
            return "Q3_K"
        case "q4_0" | "q5_0", "down_proj" if first_eighth and has_importance:
            return {"q4_0": "Q4_1", "q5_0": "Q5_1"}[mixture]
        case "iq4_nl", "v_proj" if four_share:
            return "Q5_K"
        case "iq4_nl", "down_proj" if first_eighth and not has_importance:
            return "Q5_K"
    return MIXTURES[mixture]


def _fitting(format: str, channels: int) -> str:
    """Return a format whose blocks fill rows of that many channels: this one, its replacement, or float16."""
    if channels % BLOCK_FORMATS[format].channels == 0:
        return format
    return _NARROW[format] if channels % 32 == 0 else "F16"
