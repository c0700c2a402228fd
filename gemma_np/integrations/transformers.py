"""Capture the intermediates of a `transformers` model under the names of our records.

Hooks record the inputs and outputs of modules; a registered attention function records what is computed between
queries and probabilities. To capture another framework, do the same: for each name that `gemma-np records` prints, find
the line that computes it and keep a copy in its dtype; then write the copies with any safetensors library. Leave out
what you cannot reach.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_ATTENTION = "gemma_np_recorded"


def capture_transformers(
    model: Any, ids: ArrayLike, *, lengths: Sequence[int] | None = None, cache: Any = None
) -> dict[str, np.ndarray]:
    """Return every record of a Gemma, Gemma2 or Gemma3 text model of transformers, under the names of a trace.

    ids [T]; lengths: the number of tokens in each pass; later passes use the cache (default: one pass over all ids);
    cache: an empty cache of transformers (default: the model's own, which drops keys outside the window). Records keep
    their dtype; bfloat16 is that of ml_dtypes. The model itself is not changed.
    """
    import torch

    _register_attention()
    row = torch.as_tensor(np.asarray(ids))[None]
    captured: dict[str, np.ndarray] = {}
    start = 0
    for number, length in enumerate(lengths or [row.shape[1]]):
        record: dict[str, Any] = {}
        output = _recorded_pass(model, row[:, start : start + length], cache, record)
        prefix = f"pass.{number}." if number else ""
        captured |= {prefix + name: _as_numpy(value[0]) for name, value in record.items()}
        cache, start = output.past_key_values, start + length
    return captured


def _recorded_pass(model: Any, ids: Any, cache: Any, record: dict[str, Any]) -> Any:
    """Run the model on ids [1, T] and record its intermediates."""
    import torch

    implementation = model.config._attn_implementation
    with ExitStack() as stack:
        stack.callback(setattr, model.config, "_attn_implementation", implementation)
        model.config._attn_implementation = _ATTENTION
        for hook in _hooks(model, record):
            stack.callback(hook.remove)
        with torch.no_grad():  # the forward pass hands the record on to the attention function
            output = model(ids, past_key_values=cache, use_cache=True, gemma_np_record=record)
    if getattr(model.config, "final_logit_softcapping", None):
        record["logits_capped"] = output.logits
    return output


def _as_numpy(tensor: Any) -> np.ndarray:
    import ml_dtypes
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


def _hooks(model: Any, record: dict[str, Any]) -> Iterator[Any]:
    """Register hooks that record the inputs and outputs of the model's modules; yield the hooks."""

    def out(part: Any, name: str, head_dim: int | None = None) -> Any:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            # [B, T, H*h] -> [B, H, T, h]
            value = output.unflatten(-1, (-1, head_dim)).transpose(1, 2) if head_dim else output
            record[name] = value.clone()

        return part.register_forward_hook(keep)

    def into(part: Any, name: str) -> Any:
        def keep(_module: Any, inputs: Any) -> None:
            record[name] = inputs[0].clone()

        return part.register_forward_pre_hook(keep)

    yield out(model.model.embed_tokens, "embedding")
    yield out(model.model.norm, "norm")
    yield out(model.lm_head, "logits")
    for number, layer in enumerate(model.model.layers):
        name, attention, mlp = f"layers.{number}", layer.self_attn, layer.mlp
        yield out(layer.input_layernorm, f"{name}.input_layernorm")
        for part in "qkv":
            yield out(getattr(attention, f"{part}_proj"), f"{name}.self_attn.{part}", attention.head_dim)
        if hasattr(attention, "q_norm"):
            yield out(attention.q_norm, f"{name}.self_attn.q_norm")
            yield out(attention.k_norm, f"{name}.self_attn.k_norm")
        yield into(attention.o_proj, f"{name}.self_attn.context")
        yield out(attention.o_proj, f"{name}.self_attn.o")
        before_mlp = layer.post_attention_layernorm  # its name in Gemma 1
        if hasattr(layer, "pre_feedforward_layernorm"):
            before_mlp = layer.pre_feedforward_layernorm
            yield out(layer.post_attention_layernorm, f"{name}.post_attention_layernorm")
            yield out(layer.post_feedforward_layernorm, f"{name}.post_feedforward_layernorm")
        yield into(before_mlp, f"{name}.resid_mid")
        yield out(before_mlp, f"{name}.pre_feedforward_layernorm")
        yield out(mlp.gate_proj, f"{name}.mlp.gate")
        yield out(mlp.up_proj, f"{name}.mlp.up")
        yield into(mlp.down_proj, f"{name}.mlp.hidden")
        yield out(mlp.down_proj, f"{name}.mlp.down")
        yield out(layer, f"{name}.resid_post")


def _register_attention() -> None:
    """Register the recording attention function, with the mask of eager attention, in transformers."""
    import transformers
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    transformers.AttentionInterface.register(_ATTENTION, _recorded_attention)
    AttentionMaskInterface.register(_ATTENTION, eager_mask)


def _recorded_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    scaling: float,
    gemma_np_record: dict[str, Any],
    softcap: float | None = None,
    **rest: Any,
) -> Any:
    """Call eager attention, and record its inputs, scores and probabilities."""
    import torch

    eager: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
    repeat: Callable[..., Any] = sys.modules[type(module).__module__].repeat_kv
    record, name, new = gemma_np_record, f"layers.{module.layer_idx}.self_attn", query.shape[2]
    scores = query @ repeat(key, module.num_key_value_groups).transpose(2, 3) * scaling
    record[f"{name}.q_rope"] = query.clone()
    record[f"{name}.k_rope"] = key[:, :, -new:].clone()
    record[f"{name}.scores"] = scores
    if softcap:
        record[f"{name}.scores_capped"] = softcap * torch.tanh(scores / softcap)
        rest["softcap"] = softcap
    output, probs = eager(module, query, key, value, attention_mask, scaling=scaling, **rest)
    record[f"{name}.probs"] = probs.clone()
    return output, probs
