"""Read and write config.json, the config file of Hugging Face checkpoints.

Its keys have changed over the years; old and new ones are read: `rope_theta`, `rope_local_base_freq` and `rope_scaling`
became `rope_parameters`; `sliding_window_pattern` became `layer_types`; `hidden_act` became `hidden_activation`.
"""

from pathlib import Path
from typing import Any

from gemma_np.config import GLOBAL, LOCAL, MOST_LAYERS, SIZES, GemmaConfig, layer_pattern
from gemma_np.errors import GemmaError, quoted
from gemma_np.json_input import (
    BOOLEAN,
    POSITIVE,
    TEXT,
    check_json,
    list_of,
    object_of,
    one_of,
    optional,
    read_json,
    whole_number,
)

# The text part of a multimodal config.json has only the values that differ from these defaults of transformers.
_GEMMA3_TEXT_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

_ARCHITECTURES = {"gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}

_ROPE_FIELDS = {
    "rope_theta": optional(POSITIVE),
    "factor": optional(POSITIVE),
    "rope_type": optional(TEXT),
    "type": optional(TEXT),
}
_ROPE = optional(object_of(_ROPE_FIELDS))

# `GemmaConfig` checks the sizes and numbers that it has under the same name.
_FIELDS = {
    "hidden_activation": optional(TEXT),
    "hidden_act": optional(TEXT),
    "attention_bias": optional(BOOLEAN),
    "tie_word_embeddings": optional(BOOLEAN),
    "use_bidirectional_attention": optional(BOOLEAN),
    "sliding_window_pattern": optional(whole_number(1, MOST_LAYERS)),
    "_sliding_window_pattern": optional(whole_number(1, MOST_LAYERS)),
    "layer_types": optional(list_of(one_of(LOCAL, GLOBAL))),
    "rope_scaling": _ROPE,
    "rope_parameters": optional(object_of({**_ROPE_FIELDS, LOCAL: _ROPE, GLOBAL: _ROPE})),
}
_QUANTIZATION = {"quantization_config": optional(object_of({"quant_method": TEXT}))}
_CONFIG = object_of(
    {"model_type": one_of(*_ARCHITECTURES, "gemma3"), "text_config": optional(object_of(_FIELDS)), **_FIELDS}
)


def read_config(path: Path) -> GemmaConfig:
    """Read the GemmaConfig of a config.json file. Raises GemmaError, with the path, when it is invalid."""
    values = read_json(path, object_of({}), "a config.json beside the weights")
    try:
        return config_from_json(values)
    except GemmaError as error:
        raise GemmaError(f"{path}: {error}") from None


def read_quantization(path: Path) -> dict[str, Any] | None:
    """Read the quantization_config of a config.json file; None if it has none. Raises GemmaError when it is invalid."""
    text_config = optional(object_of(_QUANTIZATION))
    values = read_json(path, object_of({**_QUANTIZATION, "text_config": text_config}))
    quantization: dict[str, Any] | None = values.get("quantization_config")
    return quantization or (values.get("text_config") or {}).get("quantization_config")


def config_from_json(values: dict[str, Any]) -> GemmaConfig:
    """Return the GemmaConfig of the values of a config.json (model types gemma, gemma2, gemma3_text, gemma3).

    Raises GemmaError for a missing or invalid value, and for a variant that this package does not support.
    """
    check_json(values, _CONFIG)
    model_type = values["model_type"]
    if model_type == "gemma3":
        model_type, values = "gemma3_text", _GEMMA3_TEXT_DEFAULTS | (values.get("text_config") or {})
    _refuse_variants(values)

    fields: dict[str, Any] = {name: _required(values, name) for name in SIZES}
    fields |= _rope(model_type, values)
    if model_type == "gemma":
        fields["query_pre_attn_scalar"] = fields["head_dim"]
    else:
        fields["query_pre_attn_scalar"] = _required(values, "query_pre_attn_scalar")
        fields["sliding_window"] = _required(values, "sliding_window")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if model_type == "gemma2":
            fields[name] = _required(values, name)
        elif values.get(name) is not None:
            raise GemmaError(f"{name}: {quoted(values[name])}, expected null (only Gemma 2 has caps)")
    return GemmaConfig(
        model_type=model_type,
        layer_types=_layer_types(model_type, values),
        rms_norm_eps=values.get("rms_norm_eps", 1e-6),
        **fields,
    )


def config_to_json(config: GemmaConfig) -> dict[str, Any]:
    """Return the values of a config.json, with the keys of both old and new versions of transformers."""
    values: dict[str, Any] = {"architectures": [_ARCHITECTURES[config.model_type]], "model_type": config.model_type}
    values |= {name: getattr(config, name) for name in SIZES}
    values |= {"hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": config.rms_norm_eps}
    values |= {"rope_theta": config.rope_theta, "tie_word_embeddings": True, "attention_bias": False}
    if config.model_type != "gemma":
        values["query_pre_attn_scalar"] = config.query_pre_attn_scalar
        values["sliding_window"] = config.sliding_window
        values["layer_types"] = list(config.layer_types)
        values["attn_logit_softcapping"] = config.attn_logit_softcapping
        values["final_logit_softcapping"] = config.final_logit_softcapping
    if config.model_type == "gemma3_text":
        values["rope_local_base_freq"] = config.rope_local_base_freq or config.rope_theta
        if config.rope_scaling_factor != 1:
            values["rope_scaling"] = {"rope_type": "linear", "factor": config.rope_scaling_factor}
    return values


def _required(values: dict[str, Any], name: str) -> Any:
    if name not in values:
        raise GemmaError(f"{name}: missing, expected a number")
    return values[name]


def _refuse_variants(values: dict[str, Any]) -> None:
    """Refuse variants that no released Gemma text model uses."""
    # The first Gemma 1 files say "gelu", but the models were trained with the tanh form, as later files say.
    activation = values.get("hidden_activation") or values.get("hidden_act") or "gelu_pytorch_tanh"
    if activation not in ("gelu_pytorch_tanh", "gelu"):
        raise GemmaError(f"hidden_activation: {quoted(activation)}, expected 'gelu_pytorch_tanh'")
    for name in ("attention_bias", "use_bidirectional_attention"):
        if values.get(name):
            raise GemmaError(f"{name}: true, expected false")
    if values.get("tie_word_embeddings") is False:
        raise GemmaError("tie_word_embeddings: false, expected true (Gemma's head is its embedding)")


def _layer_types(model_type: str, values: dict[str, Any]) -> tuple[str, ...]:
    layers = values["num_hidden_layers"]
    if model_type == "gemma":
        return layer_pattern(layers, local_per_global=0)
    if values.get("layer_types") is not None:
        return tuple(values["layer_types"])
    default = 2 if model_type == "gemma2" else 6
    pattern = values.get("sliding_window_pattern") or values.get("_sliding_window_pattern") or default
    return layer_pattern(layers, local_per_global=pattern - 1)


def _rope(model_type: str, values: dict[str, Any]) -> dict[str, float]:
    """Return the RoPE base and scaling of each kind of layer, from the new keys or else the old ones."""
    new, scaling = values.get("rope_parameters") or {}, values.get("rope_scaling") or {}
    if model_type != "gemma3_text":
        theta = new.get("rope_theta", values.get("rope_theta", 10_000.0))
        _linear_factor(new or scaling, allowed=False)
        return {"rope_theta": theta}
    for_local, for_global = new.get(LOCAL) or {}, new.get(GLOBAL) or {}
    _linear_factor(for_local, allowed=False)
    return {
        "rope_theta": for_global.get("rope_theta", values.get("rope_theta", 1_000_000.0)),
        "rope_local_base_freq": for_local.get("rope_theta", values.get("rope_local_base_freq", 10_000.0)),
        "rope_scaling_factor": _linear_factor(for_global or scaling, allowed=True),
    }


def _linear_factor(parameters: dict[str, Any], allowed: bool) -> float:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "linear" and allowed:
        factor: float = _required(parameters, "factor")
        return factor
    if kind != "default":
        expected = "'default' or 'linear'" if allowed else "'default'"
        raise GemmaError(f"rope_type: {quoted(kind)}, expected {expected}")
    return 1.0
