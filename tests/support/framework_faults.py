"""The mistakes of the oracle's catalogue, made in the framework's model: the dumps of wrong implementations."""

import sys
from contextlib import contextmanager
from unittest import mock

import torch

SOME_PASSES = ("decode-mask-index", "ring-positions", "decode-positions")
"""Mistakes that show only in several passes."""


@contextmanager
def planted_in_framework(name, model, config):
    """Make the named mistake in the framework's model of this config; undo it on leaving the `with` block."""
    plant = FAULTS[name]
    with mock.patch.dict(model.__dict__):
        undo = plant(model, config, sys.modules[type(model).__module__])
        try:
            yield model
        finally:
            for step in reversed(undo or []):
                step()


def replace(owner, name, value):
    """Set an attribute; return a function that restores it."""
    missing = object()
    before = owner.__dict__.get(name, missing) if not isinstance(owner, type(sys)) else getattr(owner, name)
    setattr(owner, name, value)
    return lambda: delattr(owner, name) if before is missing else setattr(owner, name, before)


def hook(part, function):
    """Make a module return function(module, input, output); return a function that undoes this."""
    handle = part.register_forward_hook(lambda module, inputs, output: function(module, inputs[0], output))
    return handle.remove


def norms(model):
    return [part for part in model.modules() if type(part).__name__.endswith("RMSNorm")]


def layers(model):
    return model.model.layers


def normalised(x, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def scaled_embedding(factor):
    def plant(model, config, module):
        D = config.hidden_size
        return [hook(model.model.embed_tokens, lambda part, x, y: y * factor(D))]

    return plant


def other_norm(function):
    def plant(model, config, module):
        return [hook(norm, lambda part, x, y: function(normalised(x, part.eps), part.weight)) for norm in norms(model)]

    return plant


def other_rotation(function):
    """Rotate with function(q, k, cos, sin, right) -> q, k, where right is the framework's own function."""

    def plant(model, config, module):
        right = module.apply_rotary_pos_emb
        return [
            replace(
                module, "apply_rotary_pos_emb", lambda q, k, cos, sin, *rest, **named: function(q, k, cos, sin, right)
            )
        ]

    return plant


def interleaved(q, k, cos, sin, right):
    half = q.shape[-1] // 2
    cos, sin = cos[..., :half].unsqueeze(1), sin[..., :half].unsqueeze(1)

    def turn(x):
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)

    return turn(q), turn(k)


def in_bfloat16(q, k, cos, sin, right):
    return right(q, k, cos.bfloat16().to(q.dtype), sin.bfloat16().to(q.dtype))


def scaled_frequencies(kind, factor):
    """Multiply the rotation frequencies of one kind of layer by factor(config, frequencies)."""

    def plant(model, config, module):
        rotary = model.model.rotary_emb
        name = f"{kind}_inv_freq"
        before = getattr(rotary, name)
        setattr(rotary, name, before * factor(config, before))
        return [lambda: setattr(rotary, name, before)]

    return plant


def global_base_everywhere(model, config, module):
    rotary = model.model.rotary_emb
    before = rotary.sliding_attention_inv_freq
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    rotary.sliding_attention_inv_freq = (config.rope_theta**-exponents).to(before.dtype)
    return [lambda: setattr(rotary, "sliding_attention_inv_freq", before)]


def stalled_positions(model, config, module):
    rotary = model.model.rotary_emb
    right = rotary.forward

    def forward(x, position_ids, *rest, **named):
        return right(x, position_ids - position_ids.min(), *rest, **named)

    return [replace(rotary, "forward", forward)]


def without_qk_norm(model, config, module):
    return [
        hook(norm, lambda part, x, y: x)
        for layer in layers(model)
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm)
    ]


def scores_divided_by(number):
    def plant(model, config, module):
        return [replace(layer.self_attn, "scaling", number(config) ** -0.5) for layer in layers(model)]

    return plant


def without_attention_cap(model, config, module):
    return [replace(layer.self_attn, "attn_logit_softcapping", None) for layer in layers(model)]


def other_cap_formula(model, config, module):
    tanh = torch.tanh
    return [replace(torch, "tanh", lambda y: y * tanh(y))]


def other_mask(mask_of, after_cap=False):
    """Replace the attention mask with mask_of(config, layer, query positions, key positions) -> visible [T, S]."""

    def plant(model, config, module):
        def eager(part, query, key, value, attention_mask, scaling, softcap=None, **rest):
            T, S = query.shape[2], key.shape[2]
            end = part.gemma_np_end if hasattr(part, "gemma_np_end") else S
            queries, keys = torch.arange(end - T, end)[:, None], torch.arange(end - S, end)
            seen = mask_of(config, part.layer_idx, queries, keys)
            groups = part.num_key_value_groups
            scores = query @ module.repeat_kv(key, groups).transpose(2, 3) * scaling
            if after_cap:
                scores = softcap * torch.tanh(scores.masked_fill(~seen, -torch.inf) / softcap)
            else:
                scores = softcap * torch.tanh(scores / softcap) if softcap else scores
                scores = scores.masked_fill(~seen, -torch.inf)
            probs = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
            return (probs @ module.repeat_kv(value, groups)).transpose(1, 2).contiguous(), probs

        undo = [replace(module, "eager_attention_forward", eager)]
        # A sliding cache returns only its last keys. The positions given to the rotation tell where they end.
        rotary = model.model.rotary_emb
        right = rotary.forward

        def forward(x, position_ids, *rest, **named):
            for layer in layers(model):
                layer.self_attn.gemma_np_end = int(position_ids.max()) + 1
            return right(x, position_ids, *rest, **named)

        return [*undo, replace(rotary, "forward", forward)]

    return plant


def causal(queries, keys, window):
    distance = queries - keys
    return (distance >= 0) & (distance < window) if window else distance >= 0


def by_row(config, layer, queries, keys):
    return causal(queries - queries.min(), keys, config.window(layer))


def by_slot(config, layer, queries, keys):
    window = config.window(layer)
    seen = causal(queries, keys, window)
    one_by_one = len(queries) == 1
    return seen & (keys % window <= queries % window) if window and one_by_one else seen


def window_of(choose):
    return other_mask(lambda config, layer, queries, keys: causal(queries, keys, choose(config, layer)))


def on_post_norms(function):
    def plant(model, config, module):
        return [
            hook(norm, function)
            for layer in layers(model)
            for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm)
        ]

    return plant


def post_norm_behind_the_sum(model, config, module):
    def forward_of(layer):
        def forward(hidden_states, *rest, **named):
            y, _ = layer.self_attn(layer.input_layernorm(hidden_states), *rest, **named)
            x = layer.post_attention_layernorm(hidden_states + y)
            return x + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x)))

        return forward

    return [replace(layer, "forward", forward_of(layer)) for layer in layers(model)]


def crossed_norms(model, config, module):
    undo = []
    for layer in layers(model):
        a, b = layer.post_attention_layernorm, layer.pre_feedforward_layernorm
        first, second = a.weight, b.weight
        undo += [replace_module(a, "weight", second), replace_module(b, "weight", first)]
    return undo


def activation(function):
    return lambda model, config, module: [replace_module(layer.mlp, "act_fn", function) for layer in layers(model)]


def replace_module(part, name, value):
    before = getattr(part, name)
    setattr(part, name, value)
    return lambda: setattr(part, name, before)


def gelu_on_up(model, config, module):
    def forward_of(mlp):
        return lambda x: mlp.down_proj(mlp.gate_proj(x) * mlp.act_fn(mlp.up_proj(x)))

    return [replace(layer.mlp, "forward", forward_of(layer.mlp)) for layer in layers(model)]


def final_cap(number):
    def plant(model, config, module):
        before = model.config.final_logit_softcapping
        model.config.final_logit_softcapping = number(config)
        return [lambda: setattr(model.config, "final_logit_softcapping", before)]

    return plant


def transposed_head(model, config, module):
    before = model.lm_head.weight
    E = before.detach()
    model.lm_head.weight = torch.nn.Parameter(E.reshape(E.shape[::-1]).T.contiguous())
    return [lambda: setattr(model.lm_head, "weight", before)]


FAULTS = {
    "embed-scale-absent": scaled_embedding(lambda D: D**-0.5),
    "embed-scale-twice": scaled_embedding(lambda D: D**0.5),
    "embed-scale-rounding": scaled_embedding(lambda D: float(torch.tensor(D**0.5).bfloat16()) / D**0.5),
    "norm-no-plus1": other_norm(lambda n, w: n * w),
    "norm-plus1-twice": other_norm(lambda n, w: n * (2 + w)),
    "norm-cast-early": other_norm(lambda n, w: n.bfloat16().to(w.dtype) * (1 + w)),
    "rope-bf16": other_rotation(in_bfloat16),
    "rope-interleaved": other_rotation(interleaved),
    "rope-theta-one": global_base_everywhere,
    "rope-scale-missing": scaled_frequencies("full_attention", lambda config, f: config.rope_scaling_factor),
    "rope-scale-everywhere": scaled_frequencies("sliding_attention", lambda config, f: 1 / config.rope_scaling_factor),
    "qk-norm-missing": without_qk_norm,
    "qscale-hidden-over-heads": scores_divided_by(lambda config: config.hidden_size / config.num_attention_heads),
    "qscale-head-dim": scores_divided_by(lambda config: config.head_dim),
    "attncap-missing": without_attention_cap,
    "attncap-after-mask": other_mask(
        lambda config, layer, queries, keys: causal(queries, keys, config.window(layer)), after_cap=True
    ),
    "cap-formula": other_cap_formula,
    "window-parity": window_of(lambda config, layer: None if config.window(layer) else config.sliding_window),
    "window-off-by-one": window_of(lambda config, layer: config.window(layer) and config.window(layer) + 1),
    "window-ignored": window_of(lambda config, layer: None),
    "window-all-layers": window_of(lambda config, layer: config.sliding_window),
    "gqa-tile": lambda model, config, module: [
        replace(module, "repeat_kv", lambda x, groups: x.repeat(1, groups, 1, 1))
    ],
    "decode-mask-index": other_mask(by_row),
    "ring-positions": other_mask(by_slot),
    "decode-positions": stalled_positions,
    "postnorm-missing": on_post_norms(lambda part, x, y: x),
    "postnorm-misplaced": post_norm_behind_the_sum,
    "norm-names-crossed": crossed_norms,
    "gelu-exact": activation(torch.nn.GELU()),
    "silu": activation(torch.nn.SiLU()),
    "gate-up-swapped": gelu_on_up,
    "finalcap-missing": final_cap(lambda config: 1e30),
    "finalcap-50": final_cap(lambda config: config.attn_logit_softcapping),
    "head-transposed": transposed_head,
}
