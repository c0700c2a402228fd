"""The framework's Gemma (transformers, eager attention, float32), built from our config and weights.

It needs torch and transformers, so only marked tests and golden/make.py import it.
"""

import numpy as np
import torch
import transformers

from gemma_np.config import GLOBAL, LOCAL
from gemma_np.integrations.transformers import capture_transformers


def framework_model(config, weights):
    """Return the framework's model with the same config and weights."""
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
    theirs._attn_implementation = "eager"
    model = model_class(theirs).eval()
    tensors = {name: torch.tensor(np.asarray(weight)) for name, weight in weights.items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)  # strict: a missing or unexpected name raises
    return model


@torch.no_grad()
def framework_logits(model, ids, chunks=None):
    """Return the logits [B, T, V] of ids [B, T]; chunks are the sizes of passes that use the framework's own cache."""
    cache, logits, start = None, [], 0
    for size in chunks or [ids.shape[1]]:
        piece = torch.tensor(ids[:, start : start + size])
        output = model(piece, past_key_values=cache, use_cache=chunks is not None)
        cache, start = output.past_key_values, start + size
        logits.append(output.logits.numpy())
    return np.concatenate(logits, axis=1)


def trainable_model(config, weights):
    """Return the framework's model, of which every weight gets all of its gradient."""
    model = framework_model(config, weights)
    model.model.embed_tokens.padding_idx = None  # or the row of the padding token would get no gradient
    return model


def framework_gradients(config, weights, ids):
    """Return {name: gradient} of every weight, for the mean next-token loss of ids [B, T + 1]."""
    model = trainable_model(config, weights)
    model(torch.tensor(ids), labels=torch.tensor(ids)).loss.backward()
    return {name: model.get_parameter(name).grad.numpy() for name in weights}


def framework_records(config, weights, ids, chunks):
    """Return every intermediate under the name of our record: a list with one {name: [B, ...]} for each chunk."""
    model = framework_model(config, weights)
    texts = [capture_transformers(model, text, lengths=chunks) for text in ids]
    records = []
    for number in range(len(chunks)):
        prefix = f"pass.{number}." if number else ""
        names = [name for name in texts[0] if name.startswith(prefix or ("embedding", "layers.", "norm", "logits"))]
        records.append({name.removeprefix(prefix): np.stack([text[name] for text in texts]) for name in names})
    return records
