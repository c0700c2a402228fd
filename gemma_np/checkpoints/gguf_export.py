"""Write a GGUF file in Q8_0 or Q4_0, for llama.cpp and other GGUF readers (pip install "gemma-np[gguf]").

Matrices are written one at a time; norms are stored as 1 + w in float32.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.gguf import MODEL_TYPES, config_from_metadata, gguf_name
from gemma_np.checkpoints.gguf_blocks import to_bytes
from gemma_np.checkpoints.gguf_file import read_gguf
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.weights.formats import Blocks, Weight, check_finite, matrix_bytes


def write_gguf(
    path: Path, config: GemmaConfig, weights: Iterable[tuple[str, Weight]], tokenizer_model: bytes, format: str
) -> None:
    """Write a GGUF file from weights in the order of `GemmaConfig.weight_shapes`, whose matrices are already quantized.

    Raises GemmaError when the library is missing, when a weight is not finite, and when GGUF cannot describe the config
    (it does not store the pattern of layers or the query scale).
    """
    atomic_write(path, lambda partial: _write(partial, config, weights, tokenizer_model, format))


def _write(
    path: Path, config: GemmaConfig, weights: Iterable[tuple[str, Weight]], tokenizer_model: bytes, format: str
) -> None:
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ImportError:
        raise GemmaError('export-gguf: needs the gguf library, which pip install "gemma-np[gguf]" brings') from None
    from tqdm import tqdm

    types = {name: GGMLQuantizationType[name] for name in (format, "F32")}
    writer = GGUFWriter(path, next(arch for arch, name in MODEL_TYPES.items() if name == config.model_type))
    _add_config(writer, config)
    _add_vocabulary(writer, config, tokenizer_model)
    shapes = list(config.weight_shapes())
    for name, shape in shapes:
        own = gguf_name(name, config)
        if len(shape) == 1:
            writer.add_tensor_info(own, shape, np.dtype(np.float32), 4 * shape[0], types["F32"])
        else:
            row = matrix_bytes((1, shape[1]), format)
            writer.add_tensor_info(own, (shape[0], row), np.dtype(np.uint8), shape[0] * row, types[format])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, weight in tqdm(
        weights, total=len(shapes), desc=f"writing {format}", unit=" weights", delay=2, leave=False
    ):
        check_finite(name, weight)
        _write_tensor(writer, np.ascontiguousarray(_stored(weight)))
    writer.close()
    reread = config_from_metadata(read_gguf(path).metadata)
    for field, expected in vars(config).items():
        if getattr(reread, field) != expected:
            raise GemmaError(
                f"{field}: {expected}, which GGUF cannot store; its readers assume {getattr(reread, field)}"
            )


def _write_tensor(writer: Any, array: np.ndarray) -> None:
    """Write the numbers of a tensor. The library's own function does not notice when the disk is too full for the last
    4 KB: it uses NumPy's `tofile`."""
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    file.write(array.reshape(-1).view(np.uint8).data)


def _stored(weight: Weight) -> np.ndarray:
    """Return the array to write for a weight: 1 + w of a norm, the blocks of a matrix."""
    if isinstance(weight, np.ndarray):
        return (weight + 1).astype(np.float32)
    assert isinstance(weight, Blocks)
    return to_bytes(weight)


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


def _add_vocabulary(writer: Any, config: GemmaConfig, tokenizer_model: bytes) -> None:
    """Add the pieces, scores and types of the sentencepiece model; extra rows of the embedding become unused pieces."""
    from sentencepiece import sentencepiece_model_pb2

    protobuf: Any = sentencepiece_model_pb2
    vocabulary = protobuf.ModelProto.FromString(tokenizer_model)
    user_defined, unused = protobuf.ModelProto.SentencePiece.USER_DEFINED, protobuf.ModelProto.SentencePiece.UNUSED
    # GGUF writes spaces in user-defined pieces, where sentencepiece writes U+2581.
    pieces = [
        piece.piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ") if piece.type == user_defined else piece.piece
        for piece in vocabulary.pieces
    ]
    missing = config.vocab_size - len(pieces)
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
