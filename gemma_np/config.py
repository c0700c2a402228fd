"""The config of a Gemma model: sizes and constants, and those of the released models.

The dimension letters, used for shapes everywhere in this package:

    B  batch (any number of leading axes)      H  query heads
    T  query positions                         K  key-value heads
    S  key positions                           G  query heads per key-value head, H / K
    D  hidden size                             h  head dimension
    F  feed-forward size                       V  vocabulary size

Sources: Gemma 1 arXiv 2403.08295 table 1; Gemma 2 arXiv 2408.00118 table 1; Gemma 3 arXiv 2503.19786 table 1.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gemma_np.errors import GemmaError, shortened

LOCAL, GLOBAL = "sliding_attention", "full_attention"

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
)
"""The integer fields, which every config has."""

_NUMBERS = ("query_pre_attn_scalar", "rope_theta", "rope_scaling_factor", "rms_norm_eps")
_OPTIONAL_NUMBERS = ("sliding_window", "rope_local_base_freq", "attn_logit_softcapping", "final_logit_softcapping")

MOST_LAYERS = 1000
_LARGEST_SIZE = 2**31 - 1

_PARTS = {"embed_tokens": "embedding", "norm": "norms", "self_attn": "attention", "mlp": "feed-forward"}


@dataclass(frozen=True, kw_only=True)
class GemmaConfig:
    """The config of one model. The fields have the names of the published `config.json`.

    Raises GemmaError when a value is out of range or two values contradict each other.
    """

    model_type: str  # "gemma" (Gemma 1), "gemma2" or "gemma3_text"
    vocab_size: int  # V
    hidden_size: int  # D
    num_hidden_layers: int
    num_attention_heads: int  # H
    num_key_value_heads: int  # K
    head_dim: int  # h
    intermediate_size: int  # F
    max_position_embeddings: int  # context length, in tokens
    query_pre_attn_scalar: float  # scores are divided by its square root
    layer_types: tuple[str, ...]  # LOCAL or GLOBAL, one per layer
    sliding_window: int | None = None  # keys that a query of a local layer sees, its own included
    rope_theta: float = 10_000.0  # RoPE base
    rope_local_base_freq: float | None = None  # RoPE base of the local layers, if different (Gemma 3)
    rope_scaling_factor: float = 1.0  # global layers divide positions by this number
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer_types", tuple(self.layer_types))  # also takes a list, as in JSON
        if self.model_type not in ("gemma", "gemma2", "gemma3_text"):
            raise GemmaError(
                f"model_type: {shortened(repr(self.model_type))}, expected 'gemma', 'gemma2' or 'gemma3_text'"
            )
        for name in SIZES + _NUMBERS + _OPTIONAL_NUMBERS:
            self._check_number(name)
        if self.num_attention_heads % self.num_key_value_heads:
            raise GemmaError(
                f"num_attention_heads: {self.num_attention_heads}, "
                f"expected a multiple of num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise GemmaError(f"head_dim: {self.head_dim}, expected an even number (RoPE rotates pairs)")
        if len(self.layer_types) != self.num_hidden_layers:
            raise GemmaError(
                f"layer_types: {len(self.layer_types)} entries, expected num_hidden_layers={self.num_hidden_layers}"
            )
        for kind in self.layer_types:
            if kind not in (LOCAL, GLOBAL):
                raise GemmaError(f"layer_types: {shortened(repr(kind))}, expected {LOCAL!r} or {GLOBAL!r}")
        if LOCAL in self.layer_types and self.model_type == "gemma":
            raise GemmaError("layer_types: has local layers, expected none since model_type is 'gemma'")
        if LOCAL in self.layer_types and self.sliding_window is None:
            raise GemmaError("sliding_window: missing, expected a number since layer_types has local layers")

    def _check_number(self, name: str) -> None:
        value = getattr(self, name)
        if value is None and name in _OPTIONAL_NUMBERS:
            return
        whole = name in SIZES or name == "sliding_window"
        is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        largest = _LARGEST_SIZE if whole else sys.float_info.max
        if not is_number or not 0 < value <= largest:
            most = f" of at most {largest}" if whole and is_number and value > 0 else ""
            raise GemmaError(
                f"{name}: {shortened(repr(value))}, expected a positive {'whole ' if whole else ''}number{most}"
            )

    @property
    def has_post_norms(self) -> bool:
        """Return whether a block also normalizes the outputs of attention and feed-forward (Gemma 2 and 3)."""
        return self.model_type != "gemma"

    @property
    def has_qk_norm(self) -> bool:
        """Return whether queries and keys are normalized per head (Gemma 3)."""
        return self.model_type == "gemma3_text"

    def window(self, layer: int) -> int | None:
        """Return the number of keys that a query of this layer sees, including its own; None on a global layer."""
        return self.sliding_window if self.layer_types[layer] == LOCAL else None

    def rope(self, layer: int) -> tuple[float, float]:
        """Return the RoPE base and the position divisor of this layer."""
        if self.layer_types[layer] == LOCAL:
            return self.rope_local_base_freq or self.rope_theta, 1.0
        return self.rope_theta, self.rope_scaling_factor

    def weight_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every weight in the order of use, as in published checkpoints ([out, in])."""
        D, F, h = self.hidden_size, self.intermediate_size, self.head_dim
        query, key = self.num_attention_heads * h, self.num_key_value_heads * h
        yield "model.embed_tokens.weight", (self.vocab_size, D)
        for layer in range(self.num_hidden_layers):
            name = f"model.layers.{layer}"
            yield f"{name}.input_layernorm.weight", (D,)
            yield f"{name}.self_attn.q_proj.weight", (query, D)
            yield f"{name}.self_attn.k_proj.weight", (key, D)
            yield f"{name}.self_attn.v_proj.weight", (key, D)
            if self.has_qk_norm:
                yield f"{name}.self_attn.q_norm.weight", (h,)
                yield f"{name}.self_attn.k_norm.weight", (h,)
            yield f"{name}.self_attn.o_proj.weight", (D, query)
            yield f"{name}.post_attention_layernorm.weight", (D,)
            if self.has_post_norms:
                yield f"{name}.pre_feedforward_layernorm.weight", (D,)
            yield f"{name}.mlp.gate_proj.weight", (F, D)
            yield f"{name}.mlp.up_proj.weight", (F, D)
            yield f"{name}.mlp.down_proj.weight", (D, F)
            if self.has_post_norms:
                yield f"{name}.post_feedforward_layernorm.weight", (D,)
        yield "model.norm.weight", (D,)

    def parameter_count(self) -> dict[str, int]:
        """Return the number of parameters by part; table 2 of the Gemma 2 report has the embedding and the rest."""
        count = dict.fromkeys(_PARTS.values(), 0)
        for name, shape in self.weight_shapes():
            part = next(part for fragment, part in _PARTS.items() if fragment in name)
            count[part] += math.prod(shape)
        return count


def layer_pattern(layers: int, local_per_global: int) -> tuple[str, ...]:
    """Return `local_per_global` local layers, then a global one, and so on (Gemma 1: 0; Gemma 2: 1; Gemma 3: 5).

    Raises GemmaError unless the number of layers is from 1 to 1000: a damaged file could name billions.
    """
    if not isinstance(layers, int) or not 0 < layers <= MOST_LAYERS:
        raise GemmaError(
            f"num_hidden_layers: {shortened(repr(layers))}, expected a whole number from 1 to {MOST_LAYERS}"
        )
    return tuple(GLOBAL if (i + 1) % (local_per_global + 1) == 0 else LOCAL for i in range(layers))


def gemma1_config(num_hidden_layers: int, **shape: Any) -> GemmaConfig:
    """Return the config of a Gemma 1 of any size: global layers only, no caps.

    shape: the remaining fields of `GemmaConfig`, by name.
    """
    return GemmaConfig(
        model_type="gemma",
        num_hidden_layers=num_hidden_layers,
        layer_types=layer_pattern(num_hidden_layers, local_per_global=0),
        **shape,
    )


def gemma2_config(num_hidden_layers: int, **shape: Any) -> GemmaConfig:
    """Return the config of a Gemma 2 of any size: alternating local and global layers, caps of 50 and 30.

    shape: the remaining fields of `GemmaConfig`, by name.
    """
    return GemmaConfig(
        model_type="gemma2",
        num_hidden_layers=num_hidden_layers,
        layer_types=layer_pattern(num_hidden_layers, local_per_global=1),
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        **shape,
    )


def gemma3_config(num_hidden_layers: int, **shape: Any) -> GemmaConfig:
    """Return the config of a Gemma 3 of any size: five local layers to a global one, with RoPE bases of their own.

    shape: the remaining fields of `GemmaConfig`, by name.
    """
    return GemmaConfig(
        model_type="gemma3_text",
        num_hidden_layers=num_hidden_layers,
        layer_types=layer_pattern(num_hidden_layers, local_per_global=5),
        rope_theta=1_000_000.0,
        rope_local_base_freq=10_000.0,
        **shape,
    )


GENERATIONS = {1: gemma1_config, 2: gemma2_config, 3: gemma3_config}
"""The generations of Gemma, each with the function that returns its config."""


def _columns(*values: int) -> dict[str, Any]:
    """Return one row of the table below, with the names of the config."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    return dict(zip((*names, "intermediate_size", "query_pre_attn_scalar"), values, strict=True))


def _gemma1(*columns: int) -> GemmaConfig:
    return gemma1_config(vocab_size=256_000, max_position_embeddings=8192, **_columns(*columns))


def _gemma2(*columns: int) -> GemmaConfig:
    return gemma2_config(vocab_size=256_000, max_position_embeddings=8192, sliding_window=4096, **_columns(*columns))


def _gemma3(*columns: int, window: int, length: int, factor: float) -> GemmaConfig:
    sizes = {"vocab_size": 262_144, "max_position_embeddings": length, "sliding_window": window}
    return gemma3_config(rope_scaling_factor=factor, **sizes, **_columns(*columns))


RELEASED: dict[str, GemmaConfig] = {
    #                        D  layers  H   K   h     F  query_scalar
    "gemma-2b": _gemma1(2048, 18, 8, 1, 256, 16384, 256),
    "gemma-7b": _gemma1(3072, 28, 16, 16, 256, 24576, 256),
    "gemma-2-2b": _gemma2(2304, 26, 8, 4, 256, 9216, 256),
    "gemma-2-9b": _gemma2(3584, 42, 16, 8, 256, 14336, 256),
    "gemma-2-27b": _gemma2(4608, 46, 32, 16, 128, 36864, 144),
    "gemma-3-270m": _gemma3(640, 18, 4, 1, 256, 2048, 256, window=512, length=32_768, factor=1.0),
    "gemma-3-1b": _gemma3(1152, 26, 4, 1, 256, 6912, 256, window=512, length=32_768, factor=1.0),
    "gemma-3-4b": _gemma3(2560, 34, 8, 4, 256, 10240, 256, window=1024, length=131_072, factor=8.0),
    "gemma-3-12b": _gemma3(3840, 48, 16, 8, 256, 15360, 256, window=1024, length=131_072, factor=8.0),
    "gemma-3-27b": _gemma3(5376, 62, 32, 16, 128, 21504, 168, window=1024, length=131_072, factor=8.0),
}
"""The released text models by the names of their hub repositories. The multimodal Gemma 3 checkpoints (4B and
up) store 64 more embedding rows for image tokens, as their own config.json states."""
