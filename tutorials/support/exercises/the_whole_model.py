"""The exercises on the whole model, its weights, and the tape."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gemma_np.config import GemmaConfig, gemma2_config
from gemma_np.model.attention import merge_heads, split_heads
from gemma_np.model.block import block
from gemma_np.model.embedding import embed, unembed
from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.soft_cap import soft_cap
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.scope import Scope
from support.exercise import Cases, Exercise, known

Weights = Mapping[str, np.ndarray]


def _model_cases(generator: np.random.Generator) -> Cases:
    def model(layers: int) -> tuple[Weights, GemmaConfig]:
        config = gemma2_config(
            vocab_size=11,
            hidden_size=6,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            intermediate_size=5,
            max_position_embeddings=16,
            query_pre_attn_scalar=4,
            sliding_window=3,
        )
        return {name: generator.standard_normal(shape) for name, shape in config.weight_shapes()}, config

    return {
        "one layer": (np.array([2, 7]), *model(1)),
        "two layers": (np.array([2, 7]), *model(2)),
        "a text longer than the window": (generator.integers(0, 11, 6), *model(4)),
        "a batch of texts": (generator.integers(0, 11, (2, 6)), *model(4)),
    }


def _whole_model(ids: np.ndarray, weights: Weights, config: GemmaConfig) -> np.ndarray:
    return lm_head(transformer(ids, weights, config), weights, config)


def _steps(
    ids: np.ndarray,
    weights: Weights,
    config: GemmaConfig,
    *,
    scale: float = 1.0,
    layers: Callable[[np.ndarray, Scope, GemmaConfig], np.ndarray] | None = None,
    norm: bool = True,
    cap: float | None = 30.0,
) -> np.ndarray:
    """Run the model with one of its steps changed."""
    embedding = weights["model.embed_tokens.weight"]
    x = embed(ids, embedding) * scale
    x = (layers or _in_turn)(x, Scope(weights) / "model", config)
    if norm:
        x = rms_norm(x, weights["model.norm.weight"], config.rms_norm_eps)
    logits = unembed(x, embedding)
    return soft_cap(logits, cap) if cap else logits


def _in_turn(x: np.ndarray, model: Scope, config: GemmaConfig) -> np.ndarray:
    for layer in range(config.num_hidden_layers):
        x = block(x, model / f"layers.{layer}", config, layer)
    return x


def _first_weights(x: np.ndarray, model: Scope, config: GemmaConfig) -> np.ndarray:
    for layer in range(config.num_hidden_layers):
        x = block(x, model / "layers.0", config, layer)
    return x


def _all_local(x: np.ndarray, model: Scope, config: GemmaConfig) -> np.ndarray:
    for layer in range(config.num_hidden_layers):
        x = block(x, model / f"layers.{layer}", config, 0)
    return x


def _one_too_few(x: np.ndarray, model: Scope, config: GemmaConfig) -> np.ndarray:
    for layer in range(config.num_hidden_layers - 1):
        x = block(x, model / f"layers.{layer}", config, layer)
    return x


def _added_again(x: np.ndarray, model: Scope, config: GemmaConfig) -> np.ndarray:
    for layer in range(config.num_hidden_layers):
        x = x + block(x, model / f"layers.{layer}", config, layer)
    return x


WHOLE_MODEL = Exercise(
    reference=_whole_model,
    cases=_model_cases,
    mistakes={
        known("finalcap-missing"): lambda ids, weights, config: _steps(ids, weights, config, cap=None),
        known("finalcap-50"): lambda ids, weights, config: _steps(ids, weights, config, cap=50.0),
        known("embed-scale-absent"): lambda ids, weights, config: _steps(
            ids, weights, config, scale=config.hidden_size**-0.5
        ),
        known("embed-scale-twice"): lambda ids, weights, config: _steps(
            ids, weights, config, scale=config.hidden_size**0.5
        ),
        "the final norm is left out": lambda ids, weights, config: _steps(ids, weights, config, norm=False),
        "each layer uses the weights of layer 0; use its own": lambda ids, weights, config: _steps(
            ids, weights, config, layers=_first_weights
        ),
        "each block gets 0 as its layer, so all are local; pass its number": (
            lambda ids, weights, config: _steps(ids, weights, config, layers=_all_local)
        ),
        "the last layer is left out": lambda ids, weights, config: _steps(ids, weights, config, layers=_one_too_few),
        "x is added to the output of the block; the block has already added it": lambda ids, weights, config: _steps(
            ids, weights, config, layers=_added_again
        ),
    },
)


def _parameter_cases(generator: np.random.Generator) -> Cases:
    return {
        "one layer, one head": (7, 5, 1, 1, 1, 4, 3),
        "many heads": (7, 5, 1, 6, 2, 4, 3),
        "the bundled model": (2048, 128, 4, 4, 2, 32, 384),
        "Gemma 2 2B": (256_000, 2304, 26, 8, 4, 256, 9216),
    }


def _parameters(V: int, D: int, layers: int, H: int, K: int, h: int, F: int) -> int:
    config = gemma2_config(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=layers,
        num_attention_heads=H,
        num_key_value_heads=K,
        head_dim=h,
        intermediate_size=F,
        max_position_embeddings=8192,
        query_pre_attn_scalar=h,
        sliding_window=4096,
    )
    return sum(config.parameter_count().values())


PARAMETERS = Exercise(
    reference=_parameters,
    cases=_parameter_cases,
    mistakes={
        "the head is counted as well; it is the same matrix as the embedding": lambda V, D, layers, H, K, h, F: (
            _parameters(V, D, layers, H, K, h, F) + V * D
        ),
        "keys and values are counted with H heads; they have K": lambda V, D, layers, H, K, h, F: _parameters(
            V, D, layers, H, H, h, F
        ),
        "the feed-forward layer has two matrices; with the gate there are three": lambda V, D, layers, H, K, h, F: (
            _parameters(V, D, layers, H, K, h, F) - layers * D * F
        ),
        "a layer has two norms; Gemma 2 has four": lambda V, D, layers, H, K, h, F: (
            _parameters(V, D, layers, H, K, h, F) - 2 * layers * D
        ),
        "the norms are left out": lambda V, D, layers, H, K, h, F: (
            _parameters(V, D, layers, H, K, h, F) - (4 * layers + 1) * D
        ),
        "the final norm is left out": lambda V, D, layers, H, K, h, F: _parameters(V, D, layers, H, K, h, F) - D,
        "the queries are assumed to have D channels; they have H * h": lambda V, D, layers, H, K, h, F: (
            _parameters(V, D, layers, H, K, h, F) + 2 * layers * D * (D - H * h)
        ),
        "the matrix after the heads, o_proj, is left out": lambda V, D, layers, H, K, h, F: (
            _parameters(V, D, layers, H, K, h, F) - layers * D * H * h
        ),
    },
)


def _tape_cases(generator: np.random.Generator) -> Cases:
    value = generator.standard_normal((5, 12))  # T = 5, 4 heads of 3 channels
    return {
        "the head's own record": ("layers.1.self_attn.context", value, 1, 2, 3),
        "the first head": ("layers.1.self_attn.context", value, 1, 0, 3),
        "another record": ("layers.1.self_attn.o", value, 1, 2, 3),
        "another layer": ("layers.0.self_attn.context", value, 1, 2, 3),
        "layer 11": ("layers.11.self_attn.context", value, 1, 2, 3),
        "a batch of texts": ("layers.1.self_attn.context", generator.standard_normal((2, 5, 12)), 1, 2, 3),
    }


def _without_head(name: str, value: np.ndarray, layer: int, head: int, head_dim: int) -> np.ndarray:
    return _silenced(value, head, head_dim) if name == f"layers.{layer}.self_attn.context" else value


def _silenced(value: np.ndarray, head: int, head_dim: int) -> np.ndarray:
    split = split_heads(value, head_dim).copy()
    split[..., head, :, :] = 0
    return merge_heads(split)


def _only_head(name: str, value: np.ndarray, layer: int, head: int, head_dim: int) -> np.ndarray:
    without = _without_head(name, value, layer, head, head_dim)
    return value - without if name == f"layers.{layer}.self_attn.context" else value


def _zeroed(name: str, value: np.ndarray, layer: int, place: tuple[Any, ...]) -> np.ndarray:
    """Zero one place of the record of the context vectors."""
    if name != f"layers.{layer}.self_attn.context":
        return value
    value = value.copy()
    value[..., *place] = 0
    return value


WITHOUT_HEAD = Exercise(
    reference=_without_head,
    cases=_tape_cases,
    mistakes={
        "it silences the head in every record; look at the name": lambda name, value, layer, head, head_dim: _silenced(
            value, head, head_dim
        ),
        "it silences the head in every layer; the number of the layer is in the name": (
            lambda name, value, layer, head, head_dim: (
                _silenced(value, head, head_dim) if name.endswith("self_attn.context") else value
            )
        ),
        "it also silences the head in layers 10 to 19, whose names begin like that of layer 1": (
            lambda name, value, layer, head, head_dim: (
                _silenced(value, head, head_dim)
                if name.startswith(f"layers.{layer}") and name.endswith("self_attn.context")
                else value
            )
        ),
        "the head is kept, and the others are silenced": _only_head,
        "every H-th channel is zeroed; a head has head_dim neighbouring channels": (
            lambda name, value, layer, head, head_dim: _zeroed(
                name, value, layer, (slice(head, None, value.shape[-1] // head_dim),)
            )
        ),
        "one channel is zeroed; a head has head_dim of them": lambda name, value, layer, head, head_dim: _zeroed(
            name, value, layer, (head,)
        ),
        "a token is zeroed; the heads are along the last axis": lambda name, value, layer, head, head_dim: _zeroed(
            name, value, layer, (head, slice(None))
        ),
    },
)
