"""The framework's Gemma (transformers, eager attention, float32), built from our config and weights, and its
intermediates under our names. Imported by marked tests and by golden/make.py alone: it needs torch and transformers."""

import sys

import numpy as np
import torch
import transformers
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from gemma_np.config import GLOBAL, LOCAL


def framework_model(config, weights, attention="eager"):
    """The framework's model of the same config and weights."""
    names = (
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("intermediate_size", "max_position_embeddings", "rms_norm_eps"),
    )
    fields = {name: getattr(config, name) for name in names}
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.model_type != "gemma":
        fields |= {"query_pre_attn_scalar": config.query_pre_attn_scalar, "layer_types": list(config.layer_types)}
        fields |= {"sliding_window": config.sliding_window}
        fields |= {"attn_logit_softcapping": config.attn_logit_softcapping}
        fields |= {"final_logit_softcapping": config.final_logit_softcapping}
    if config.model_type == "gemma3_text":
        far = {"rope_type": "linear", "factor": config.rope_scaling_factor, "rope_theta": config.rope_theta}
        near = {"rope_type": "default", "rope_theta": config.rope_local_base_freq}
        rope = {GLOBAL: far, LOCAL: near}
    config_class, model_class = {
        "gemma": (transformers.GemmaConfig, transformers.GemmaForCausalLM),
        "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
        "gemma3_text": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    }[config.model_type]
    theirs = config_class(**fields, rope_parameters=rope)
    theirs._attn_implementation = attention
    model = model_class(theirs).eval()
    tensors = {name: torch.tensor(np.asarray(weight)) for name, weight in weights.items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)  # strict: a name too many or too few raises
    return model


@torch.no_grad()
def framework_logits(model, ids, chunks=None):
    """ids [B, T] -> logits [B, T, V]; with chunks, read piece by piece with the framework's own cache."""
    cache, logits, start = None, [], 0
    for size in chunks or [ids.shape[1]]:
        piece = torch.tensor(ids[:, start : start + size])
        output = model(piece, past_key_values=cache, use_cache=chunks is not None)
        cache, start = output.past_key_values, start + size
        logits.append(output.logits.numpy())
    return np.concatenate(logits, axis=1)


def framework_gradients(config, weights, ids):
    """The gradient of the mean next-token loss of ids [B, T + 1] with respect to every weight."""
    model = framework_model(config, weights)
    model.model.embed_tokens.padding_idx = None  # the framework gives the padding token's row no gradient
    model(torch.tensor(ids), labels=torch.tensor(ids)).loss.backward()
    return {name: model.get_parameter(name).grad.numpy() for name in weights}


@torch.no_grad()
def framework_records(config, weights, ids, chunks):
    """Every intermediate of every chunk under the name of our record: a list of {name: array}, one a chunk."""
    model = framework_model(config, weights, attention="recorded")
    records, cache, start = [], None, 0
    for size in chunks:
        record = {}
        hooks = list(_hooks(model, config, record))
        output = model(torch.tensor(ids[:, start : start + size]), past_key_values=cache, use_cache=True)
        for hook in hooks:
            hook.remove()
        if config.final_logit_softcapping:
            record["logits_capped"] = output.logits.numpy()
        records.append(record)
        cache, start = output.past_key_values, start + size
    return records


def _hooks(model, config, record):
    """Hooks that put what goes into or comes out of a part of the framework's model into the record."""

    def out(part, name, head_dim=None):
        def keep(_module, _inputs, output):
            value = output.numpy().copy()
            if head_dim:  # [B, T, H*h] -> [B, H, T, h]
                value = value.reshape(*value.shape[:2], -1, head_dim).swapaxes(1, 2)
            record[name] = value

        return part.register_forward_hook(keep)

    def into(part, name):
        def keep(_module, inputs):
            record[name] = inputs[0].numpy().copy()

        return part.register_forward_pre_hook(keep)

    yield out(model.model.embed_tokens, "embedding")
    yield out(model.model.norm, "norm")
    yield out(model.lm_head, "logits")
    for number, layer in enumerate(model.model.layers):
        name, attention, mlp = f"layers.{number}", layer.self_attn, layer.mlp
        attention.record = record
        yield out(layer.input_layernorm, f"{name}.input_layernorm")
        for part in "qkv":
            yield out(getattr(attention, f"{part}_proj"), f"{name}.self_attn.{part}", config.head_dim)
        if config.has_qk_norm:
            yield out(attention.q_norm, f"{name}.self_attn.q_norm")
            yield out(attention.k_norm, f"{name}.self_attn.k_norm")
        yield into(attention.o_proj, f"{name}.self_attn.mixed")
        yield out(attention.o_proj, f"{name}.self_attn.o")
        before_mlp = layer.post_attention_layernorm  # its name in Gemma 1
        if config.has_post_norms:
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


def _recorded_attention(module, query, key, value, attention_mask, scaling, softcap=None, **rest):
    """The framework's own eager attention; on the way its inputs, scores and probabilities are kept."""
    theirs = sys.modules[type(module).__module__]
    name, new = f"layers.{module.layer_idx}.self_attn", query.shape[2]
    scores = query @ theirs.repeat_kv(key, module.num_key_value_groups).transpose(2, 3) * scaling
    module.record[f"{name}.q_rope"] = query.numpy().copy()
    module.record[f"{name}.k_rope"] = key[:, :, -new:].numpy().copy()
    module.record[f"{name}.scores"] = scores.numpy().copy()
    if softcap:
        module.record[f"{name}.scores_capped"] = (softcap * torch.tanh(scores / softcap)).numpy()
        rest["softcap"] = softcap
    output, probs = theirs.eager_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    module.record[f"{name}.probs"] = probs.numpy().copy()
    return output, probs


transformers.AttentionInterface.register("recorded", _recorded_attention)
AttentionMaskInterface.register("recorded", eager_mask)
