"""Read config, weights and vocabulary from a GGUF file.

Tensors in a block format stay as they are. GGUF stores the weight of a norm as 1 + w; the published checkpoints and
this package store w.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from gemma_np.checkpoints.gguf_blocks import stored_blocks
from gemma_np.checkpoints.gguf_file import GGUFTensor, read_gguf
from gemma_np.checkpoints.loading import StoredTensor, load_weights, row_reader
from gemma_np.config import MOST_LAYERS, GemmaConfig, layer_pattern
from gemma_np.errors import GemmaError, quoted
from gemma_np.json_input import POSITIVE, check_json, one_of, whole_number
from gemma_np.weights.block_formats import BLOCK_FORMATS
from gemma_np.weights.formats import Weight

_FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(bfloat16)}

MODEL_TYPES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text"}

_SIZE = whole_number(1, 2**31 - 1)
_SCHEMAS = dict.fromkeys(
    (
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scaling.factor",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "attention.layer_norm_rms_epsilon",
    ),
    POSITIVE,
) | {"block_count": whole_number(1, MOST_LAYERS)}
"""What the metadata of a config must be; those that are not listed are sizes."""

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NORMS_OF_GEMMA_1 = {"ffn_norm": "post_attention_layernorm"}


def load_gguf(path: Path, dtype: str = "auto") -> tuple[GemmaConfig, dict[str, Weight], bytes]:
    """Return config, weights (see `load_weights`) and the rebuilt sentencepiece model of a GGUF file.

    Raises GemmaError for a damaged file, another architecture, or a tensor that is missing, extra or misshapen.
    """
    metadata, tensors = read_gguf(path)
    try:
        config = config_from_metadata(metadata)
        stored, stored_as = dict[str, StoredTensor](), dict[str, str]()
        for tensor in tensors:
            name = weight_name(tensor.name, config)
            if name in stored:
                raise GemmaError(f"{stored_as[name]} and {tensor.name}: both are {name}, expected one of them")
            if name != "rope_freqs.weight":  # computed from the config
                stored[name], stored_as[name] = _stored_tensor(path, tensor), tensor.name
        return config, load_weights(stored, config, dtype), sentencepiece_model(metadata)
    except GemmaError as error:
        raise GemmaError(f"{path}: {error}") from None


def _stored_tensor(path: Path, tensor: GGUFTensor) -> StoredTensor:
    if tensor.type in BLOCK_FORMATS:
        rows = row_reader(path, tensor.offset, np.uint8, (tensor.bytes // tensor.shape[0],))
        return stored_blocks(tensor.type, tensor.shape, rows)
    read = row_reader(path, tensor.offset, _FLOATS[tensor.type], tensor.shape[1:])
    if tensor.name.endswith("norm.weight"):
        return StoredTensor(tensor.shape, lambda start, stop: read(start, stop).astype(np.float32) - 1)
    mapped = np.memmap(path, _FLOATS[tensor.type], "r", tensor.offset, tensor.shape)
    return StoredTensor(tensor.shape, read, mapped=mapped)


def weight_name(name: str, config: GemmaConfig) -> str:
    """Return the published name of a GGUF tensor: blk.3.attn_q.weight is model.layers.3.self_attn.q_proj.weight.

    An unknown name is returned unchanged; `load_weights` then reports it as extra.
    """
    names = _names(config)
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if not match or match[2] not in names:
        return name
    published = names[match[2]]
    return f"model.layers.{match[1]}.{published}.weight" if match[1] else f"{published}.weight"


def gguf_name(name: str, config: GemmaConfig) -> str:
    """Return the GGUF name of a published name: the inverse of `weight_name`."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    prefix = f"blk.{layer[1]}." if layer else ""
    candidates = (f"{prefix}{short}.weight" for short in _names(config))
    return next(candidate for candidate in candidates if weight_name(candidate, config) == name)


def _names(config: GemmaConfig) -> dict[str, str]:
    return _NAMES | (_NORMS if config.has_post_norms else _NORMS_OF_GEMMA_1)


def config_from_metadata(metadata: dict[str, Any]) -> GemmaConfig:
    """Return the GemmaConfig that a GGUF file's metadata describes.

    Some values are not in the file and are filled in here: the query scale, the pattern of local layers, the local RoPE
    base. Raises GemmaError for a missing or invalid value.
    """
    architecture: Any = metadata.get("general.architecture")
    check_json(architecture, one_of(*MODEL_TYPES), ("general.architecture",))

    def get(name: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{name}", default)
        if value is None:
            raise GemmaError(f"{architecture}.{name}: missing")
        check_json(value, _SCHEMAS.get(name, _SIZE), (f"{architecture}.{name}",))
        return float(f"{value:.7g}") if isinstance(value, float) else value  # undoes the rounding of 1e-6 to float32

    tokens = metadata.get("tokenizer.ggml.tokens", [])
    if not isinstance(tokens, Sequence) or isinstance(tokens, str):
        raise GemmaError(f"tokenizer.ggml.tokens: {quoted(tokens)}, expected a list")
    D, H, layers = get("embedding_length"), get("attention.head_count"), get("block_count")
    head_dim = get("attention.key_length")
    local_per_global = {"gemma": 0, "gemma2": 1, "gemma3": get("attention.sliding_window_pattern", 6) - 1}[architecture]
    # The two 27B models divide scores by sqrt(hidden_size / num_attention_heads), all others by sqrt(head_dim).
    is_27b = (architecture, layers) in (("gemma2", 46), ("gemma3", 62))
    is_gemma2, theta = architecture == "gemma2", get("rope.freq_base", 1e6 if architecture == "gemma3" else 1e4)
    return GemmaConfig(
        model_type=MODEL_TYPES[architecture],
        vocab_size=len(tokens),
        hidden_size=D,
        num_hidden_layers=layers,
        num_attention_heads=H,
        num_key_value_heads=get("attention.head_count_kv"),
        head_dim=head_dim,
        intermediate_size=get("feed_forward_length"),
        max_position_embeddings=get("context_length"),
        query_pre_attn_scalar=D / H if is_27b else head_dim,
        layer_types=layer_pattern(layers, local_per_global),
        sliding_window=get("attention.sliding_window") if local_per_global else None,
        rope_theta=theta,
        rope_local_base_freq=get("rope.freq_base_swa", 10_000.0) if architecture == "gemma3" else None,
        rope_scaling_factor=get("rope.scaling.factor", 1.0),
        attn_logit_softcapping=get("attn_logit_softcapping", 50.0) if is_gemma2 else None,
        final_logit_softcapping=get("final_logit_softcapping", 30.0) if is_gemma2 else None,
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
    )


def sentencepiece_model(metadata: dict[str, Any]) -> bytes:
    """Rebuild the sentencepiece model from the pieces, scores and types of the vocabulary, with the settings of Gemma's
    tokenizer (byte-pair merges, byte fallback, no normalization of whitespace).

    Raises GemmaError when protobuf or a part of the vocabulary is missing.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise GemmaError('vocabulary: needs protobuf, which pip install "gemma-np[gguf]" brings') from None
    names = ("tokens", "scores", "token_type")
    tokens, scores, types = (metadata.get(f"tokenizer.ggml.{name}") for name in names)
    if not (isinstance(tokens, list) and isinstance(scores, list) and isinstance(types, list)):
        raise GemmaError("tokenizer.ggml: expected the lists tokens, scores and token_type")
    if not 0 < len(tokens) == len(scores) == len(types):
        lengths = f"{len(tokens)} tokens, {len(scores)} scores and {len(types)} types"
        raise GemmaError(f"tokenizer.ggml: {lengths}, expected the same number of each")
    if not all(isinstance(token, str) for token in tokens):
        raise GemmaError("tokenizer.ggml.tokens: not all are text, expected a list of text")
    protobuf: Any = sentencepiece_model_pb2  # its classes are created at import time, so type checkers do not know them
    model = protobuf.ModelProto()
    try:
        for token, score, kind in zip(tokens, scores, types, strict=True):
            # Sentencepiece writes a space as U+2581; GGUF files have plain spaces in user-defined pieces.
            piece = token.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")
            model.pieces.add(piece=piece, score=score, type=kind)  # both formats use the same numbers for types
    except (TypeError, ValueError) as error:
        raise GemmaError(f"tokenizer.ggml: {error}, expected text, a number and a type from 1 to 6") from None
    model.trainer_spec.model_type = protobuf.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(tokens)
    for name, short, default in (("unknown", "unk", 3), ("bos", "bos", 2), ("eos", "eos", 1), ("padding", "pad", 0)):
        key = f"tokenizer.ggml.{name}_token_id"
        check_json(metadata.get(key, default), whole_number(0, len(tokens) - 1), (key,))
        setattr(model.trainer_spec, f"{short}_id", metadata.get(key, default))
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = metadata.get("tokenizer.ggml.add_space_prefix") is True
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()
