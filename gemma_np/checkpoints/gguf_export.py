"""Write a GGUF file, for llama.cpp and other GGUF readers (pip install "gemma-np[gguf]").

Tensors are written one at a time; norms are stored as 1 + w in float32.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.gguf import MODEL_TYPES, config_from_metadata, gguf_name
from gemma_np.checkpoints.gguf_file import FLOAT_TYPES, read_gguf
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.progress import progress_bar
from gemma_np.text.chat_template import CHAT_TEMPLATE
from gemma_np.text.tokenizer import END_OF_TURN, Tokenizer
from gemma_np.weights.formats import matrix_bytes

_QUANTIZATION_VERSION = 2  # of the layout of blocks; llama.cpp reads no other


def write_gguf(
    path: Path,
    config: GemmaConfig,
    mixture: str,
    formats: Mapping[str, str],
    arrays: Iterable[tuple[str, np.ndarray]],
    tokenizer: Tokenizer,
) -> None:
    """Write a GGUF file from the arrays of all weights, in the order of `GemmaConfig.weight_shapes`.

    mixture: one of `MIXTURES`; formats: the GGUF type of each weight. An array is float32 [n] for a norm; for a matrix
    [out, in] it is uint8 [out, n], the bytes of its rows.

    Raises GemmaError when the library is missing and when GGUF cannot describe the config: it does not store the
    pattern of layers or the query scale.
    """
    atomic_write(path, lambda partial: _write(partial, path.stem, config, mixture, formats, arrays, tokenizer))


def _write(
    path: Path,
    title: str,
    config: GemmaConfig,
    mixture: str,
    formats: Mapping[str, str],
    arrays: Iterable[tuple[str, np.ndarray]],
    tokenizer: Tokenizer,
) -> None:
    try:
        from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    except ImportError:
        raise GemmaError('gguf: not installed; to write .gguf files, pip install "gemma-np[gguf]"') from None
    writer = GGUFWriter(path, next(arch for arch, name in MODEL_TYPES.items() if name == config.model_type))
    writer.add_name(title)
    writer.add_file_type(LlamaFileType["ALL_F32" if mixture == "f32" else f"MOSTLY_{mixture.upper()}"])
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    _add_config(writer, config)
    _add_vocabulary(writer, config, tokenizer)
    shapes = dict(config.weight_shapes())
    for name, shape in shapes.items():
        format = formats[name]
        row = FLOAT_TYPES[format] * shape[-1] if format in FLOAT_TYPES else matrix_bytes((1, shape[-1]), format)
        size = (*shape[:-1], row)
        dtype, count = np.dtype(np.uint8), row * (shape[0] if len(shape) == 2 else 1)
        writer.add_tensor_info(gguf_name(name, config), size, dtype, count, GGMLQuantizationType[format])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, array in progress_bar(arrays, total=len(shapes), desc="writing", unit="weights"):
        _write_tensor(writer, np.ascontiguousarray(array))
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


def _add_vocabulary(writer: Any, config: GemmaConfig, tokenizer: Tokenizer) -> None:
    """Add the pieces, scores and types of the sentencepiece model; extra rows of the embedding become unused pieces."""
    from sentencepiece import sentencepiece_model_pb2

    protobuf: Any = sentencepiece_model_pb2
    vocabulary = protobuf.ModelProto.FromString(tokenizer.model)
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
    for meaning, piece in tokenizer.special.items():
        getattr(writer, f"add_{meaning}_token_id")(tokenizer.id(piece))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    if tokenizer.turn_pieces:
        writer.add_eot_token_id(tokenizer.id(END_OF_TURN))
        writer.add_chat_template(CHAT_TEMPLATE)
