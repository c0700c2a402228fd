"""Structured pruning: remove layers, feed-forward channels and key-value heads. The result is a smaller Gemma.

A config has one size for all layers, so every layer keeps the same number of channels and heads: its most important
ones. Layers are removed so that the pattern of local and global layers stays the same, since many implementations
derive the type of a layer from its index.

Sources: Muralidharan et al., arXiv 2407.14679 (importance by activations); Men et al., arXiv 2403.03853 (layers).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gemma_np.compression.calibration import InputGram
from gemma_np.config import GLOBAL, GemmaConfig, layer_pattern
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.model.block import block
from gemma_np.model.embedding import embed
from gemma_np.progress import progress_bar
from gemma_np.scope import Scope
from gemma_np.weights.formats import dequantize


@dataclass(frozen=True)
class Importance:
    """The importance of each part of each layer, measured on sample texts."""

    channels: np.ndarray  # [layers, F], squared norm of what each feed-forward channel adds to the output
    groups: np.ndarray  # [layers, K], the same for each key-value head with its query heads
    layers: np.ndarray  # [layers], 1 - cosine of the residual stream before and after


def measure_importance(model: Gemma, ids: np.ndarray) -> Importance:
    """Measure the importance of each part of a model on ids [texts, T]."""
    config, weights = model.config, Scope(model.weights) / "model"
    texts = [embed(text, weights["embed_tokens.weight"]) for text in ids]
    channels, groups, layers = [], [], []
    for number in progress_bar(range(config.num_hidden_layers), desc="importance", unit="layers"):
        layer, gram = weights / f"layers.{number}", InputGram()
        after = [block(x, layer, config, number, tape=gram) for x in texts]
        layers.append(1 - np.mean([_cosine(x, y) for x, y in zip(texts, after, strict=True)]))
        down, o = dequantize(layer["mlp.down_proj.weight"]), dequantize(layer["self_attn.o_proj.weight"])
        channels.append(np.diagonal(gram["mlp.hidden"]) * np.square(down).sum(axis=0))
        columns = np.split(np.arange(o.shape[1]), config.num_key_value_heads)  # the columns of each group's heads
        groups.append([np.vdot(o[:, g] @ gram["self_attn.context"][np.ix_(g, g)], o[:, g]) for g in columns])
        texts = after
    return Importance(np.array(channels), np.array(groups), np.array(layers))


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean cosine similarity of the vectors of x and y, [T, D] each."""
    return float(np.mean(np.vecdot(x, y) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))))


def choose_layers(importance: np.ndarray, config: GemmaConfig, keep: int) -> list[int]:
    """Return the `keep` layers with the greatest total importance that keep the pattern of local and global layers.

    importance [layers]. Raises GemmaError when no choice of layers keeps the pattern.
    """
    if not 0 < keep <= config.num_hidden_layers:
        raise GemmaError(f"layers: {keep} to keep, expected 1 to {config.num_hidden_layers}")
    pattern = layer_pattern(keep, config.layer_types.index(GLOBAL) if GLOBAL in config.layer_types else keep)
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # number of layers kept -> (total importance, layers)
    for layer, kind in enumerate(config.layer_types):
        for kept in sorted(best, reverse=True):
            if kept < keep and pattern[kept] == kind:
                total, chosen = best[kept]
                longer = (total + float(importance[layer]), [*chosen, layer])
                best[kept + 1] = max(best.get(kept + 1, longer), longer)
    if keep not in best:
        raise GemmaError(f"layers: {keep} to keep, expected a number that fits the pattern of local and global layers")
    return best[keep][1]


def keep_layers(model: Gemma, layers: Sequence[int]) -> Gemma:
    """Return the model with only these layers, in this order. Raises GemmaError for a layer that does not exist."""
    config = model.config
    _check_exist(layers, config)
    weights = {name: weight for name, weight in model.weights.items() if not name.startswith("model.layers.")}
    for new, old in enumerate(layers):
        part = Scope(model.weights) / f"model.layers.{old}"
        weights |= {f"model.layers.{new}.{name}": weight for name, weight in part.items()}
    kinds = tuple(config.layer_types[layer] for layer in layers)
    return _in_order(model, replace(config, num_hidden_layers=len(layers), layer_types=kinds), weights)


def drop_layers(model: Gemma, layers: Sequence[int]) -> Gemma:
    """Return the model without these layers. Raises GemmaError for a layer that does not exist."""
    _check_exist(layers, model.config)
    return keep_layers(model, [layer for layer in range(model.config.num_hidden_layers) if layer not in layers])


def _check_exist(layers: Sequence[int], config: GemmaConfig) -> None:
    for layer in layers:
        if not 0 <= layer < config.num_hidden_layers:
            raise GemmaError(f"layer {layer}: does not exist, expected 0 to {config.num_hidden_layers - 1}")


def keep_channels(model: Gemma, importance: np.ndarray, keep: int) -> Gemma:
    """Return the model with the `keep` most important feed-forward channels of each layer: importance [layers, F].

    Raises GemmaError when a layer has fewer.
    """
    config = model.config
    if not 0 < keep <= config.intermediate_size:
        raise GemmaError(f"intermediate-size: {keep} channels to keep, expected 1 to {config.intermediate_size}")
    weights = dict(model.weights)
    for layer, scores in enumerate(importance):
        chosen, part = _largest(scores, keep), Scope(weights) / f"model.layers.{layer}.mlp"
        for name in ("gate_proj.weight", "up_proj.weight"):
            part[name] = dequantize(part[name])[chosen]
        part["down_proj.weight"] = np.take(dequantize(part["down_proj.weight"]), chosen, axis=1)
    return _in_order(model, replace(config, intermediate_size=keep), weights)


def keep_groups(model: Gemma, importance: np.ndarray, keep: int) -> Gemma:
    """Return the model with the `keep` most important key-value heads of each layer, and their query heads:
    importance [layers, K].

    Raises GemmaError when a layer has fewer.
    """
    config = model.config
    if not 0 < keep <= config.num_key_value_heads:
        raise GemmaError(f"kv-heads: {keep} to keep, expected 1 to {config.num_key_value_heads}")
    heads_per_group, h = config.num_attention_heads // config.num_key_value_heads, config.head_dim
    weights = dict(model.weights)
    for layer, scores in enumerate(importance):
        chosen, part = _largest(scores, keep), Scope(weights) / f"model.layers.{layer}.self_attn"
        keys = (chosen[:, None] * h + np.arange(h)).ravel()
        queries = (chosen[:, None] * heads_per_group * h + np.arange(heads_per_group * h)).ravel()
        part["q_proj.weight"] = dequantize(part["q_proj.weight"])[queries]
        part["k_proj.weight"] = dequantize(part["k_proj.weight"])[keys]
        part["v_proj.weight"] = dequantize(part["v_proj.weight"])[keys]
        part["o_proj.weight"] = np.take(dequantize(part["o_proj.weight"]), queries, axis=1)
    return _in_order(
        model, replace(config, num_key_value_heads=keep, num_attention_heads=keep * heads_per_group), weights
    )


def _largest(scores: np.ndarray, keep: int) -> np.ndarray:
    """Return the indices of the `keep` largest scores, in ascending order."""
    return np.sort(np.argsort(-scores, kind="stable")[:keep])


def _in_order(model: Gemma, config: GemmaConfig, weights: dict[str, Any]) -> Gemma:
    ordered = {name: weights[name] for name, _ in config.weight_shapes()}
    return replace(model, config=config, weights=ordered)
