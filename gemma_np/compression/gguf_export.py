"""Writing a .gguf file, in Q8_0 or Q4_0, for llama.cpp and its relatives (pip install "gemma-np[gguf]").

Matrices are quantized one at a time; norms are stored in float32, as 1 + w.
"""

from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.gguf import MODEL_TYPES, config_from_metadata, gguf_name, open_gguf
from gemma_np.checkpoints.gguf_blocks import BLOCK, NUMBER_BYTES, SCALE_BYTES, to_blocks
from gemma_np.compression.quantization import Q4_0, Q8_0, quantize
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.weights.formats import Int4, Int8, Weight

GGUF_SCHEMES = {"Q8_0": Q8_0, "Q4_0": Q4_0}


def export_gguf(model: Gemma, kind: str, path: Path) -> None:
    """Write the model to a .gguf file; kind is "Q8_0" or "Q4_0".

    A weight that is stored so already keeps its very numbers; another is rounded, on the grid of least error.

    Raises GemmaError when there is no tokenizer, when a matrix is no multiple of 32 wide, and when the format has no
    words for the config (GGUF leaves the pattern of layers and the query scale to the reader).
    """
    if model.tokenizer is None:
        raise GemmaError("tokenizer.model: missing from the checkpoint, expected for a .gguf file")
    for name, shape in model.config.weight_shapes():
        if len(shape) == 2:
            GGUF_SCHEMES[kind].check(name, shape)
    atomic_write(path, lambda partial: _write(model, kind, partial))


def _write(model: Gemma, kind: str, path: Path) -> None:
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ImportError:
        raise GemmaError('export-gguf: needs the gguf library, which pip install "gemma-np[gguf]" brings') from None
    from tqdm import tqdm

    types = {name: GGMLQuantizationType[name] for name in (kind, "F32")}
    writer = GGUFWriter(path, next(arch for arch, name in MODEL_TYPES.items() if name == model.config.model_type))
    _add_config(writer, model.config)
    _add_vocabulary(writer, model)
    for name, shape in model.config.weight_shapes():
        own = gguf_name(name, model.config)
        if len(shape) == 1:
            writer.add_tensor_info(own, shape, np.dtype(np.float32), 4 * shape[0], types["F32"])
        else:
            row = shape[1] // BLOCK * (SCALE_BYTES + NUMBER_BYTES[kind])
            writer.add_tensor_info(own, (shape[0], row), np.dtype(np.uint8), shape[0] * row, types[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    names = [name for name, _ in model.config.weight_shapes()]
    for name in tqdm(names, desc=f"writing {kind}", unit=" weights", delay=2, leave=False):
        writer.write_tensor_data(_stored(model.weights[name], kind))
    writer.close()
    found = config_from_metadata(open_gguf(path)[1])
    for field, expected in vars(model.config).items():
        if getattr(found, field) != expected:
            raise GemmaError(f"{field}: {expected}, which GGUF cannot say; its readers take {getattr(found, field)}")


def _stored(weight: Weight, kind: str) -> np.ndarray:
    """What is written of a weight: 1 + w of a norm, the blocks of a matrix."""
    if isinstance(weight, np.ndarray) and weight.ndim == 1:
        return (weight + 1).astype(np.float32)
    if isinstance(weight, Int8 | Int4) and _is_stored_as(kind, weight):
        return to_blocks(weight)
    return to_blocks(quantize(weight, GGUF_SCHEMES[kind], least_error=True))  # type: ignore[arg-type]


def _is_stored_as(kind: str, weight: Int8 | Int4) -> bool:
    of_kind = type(weight) is Int8 if kind == "Q8_0" else isinstance(weight, Int4) and weight.zeros is None
    return of_kind and weight.scales.dtype == np.float16 and weight.shape[1] == BLOCK * weight.scales.shape[1]


def _add_config(writer: Any, config: GemmaConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_local_base_freq:
        writer.add_rope_freq_base_swa(config.rope_local_base_freq)
    if config.rope_scaling_factor != 1:
        writer.add_rope_scaling_factor(config.rope_scaling_factor)
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if config.attn_logit_softcapping:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _add_vocabulary(writer: Any, model: Gemma) -> None:
    """The pieces, scores and types of the sentencepiece model; rows of the embedding beyond them are unused pieces."""
    from sentencepiece import sentencepiece_model_pb2

    protobuf: Any = sentencepiece_model_pb2
    assert model.tokenizer is not None
    vocabulary = protobuf.ModelProto.FromString(model.tokenizer.model)
    user_defined, unused = protobuf.ModelProto.SentencePiece.USER_DEFINED, protobuf.ModelProto.SentencePiece.UNUSED
    # The format has spaces in user-defined pieces, where sentencepiece writes U+2581.
    pieces = [
        piece.piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ") if piece.type == user_defined else piece.piece
        for piece in vocabulary.pieces
    ]
    missing = model.config.vocab_size - len(pieces)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces + [f"[UNUSED_{number}]" for number in range(missing)])
    writer.add_token_scores([piece.score for piece in vocabulary.pieces] + [0.0] * missing)
    writer.add_token_types([piece.type for piece in vocabulary.pieces] + [unused] * missing)
    spec = vocabulary.trainer_spec
    writer.add_bos_token_id(spec.bos_id)
    writer.add_eos_token_id(spec.eos_id)
    writer.add_unk_token_id(spec.unk_id)
    writer.add_pad_token_id(spec.pad_id)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
