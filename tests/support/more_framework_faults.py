"""Further mistakes, made in the framework's model, of which the oracle's catalogue knows nothing.

They were written without knowledge of how the oracle searches. Each row of FAULTS tells which record is wrong first.
"""

import math
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import linear, relu

from gemma_np.config import GLOBAL, LOCAL
from tests.support.framework_faults import (
    causal,
    hook,
    interleaved,
    layers,
    normalised,
    norms,
    replace,
    scaled_embedding,
)

EVERY = ("gemma", "gemma2", "gemma3_text")
POST_NORMED = ("gemma2", "gemma3_text")
UNCAPPED = ("gemma", "gemma3_text")
GEMMA2, GEMMA3 = ("gemma2",), ("gemma3_text",)


class Fault(NamedTuple):
    """One mistake: what it computes instead, how to plant it, where, and in which record it shows first."""

    id: str
    sentence: str
    plant: Callable  # (model, config, module) -> functions that undo it
    model_types: tuple[str, ...]
    kind: str  # `layers.*` stands for every faulty layer; a number, for the only one
    passes: bool = False  # shows only in passes after the first
    past_window: bool = False  # shows only in a text at least as long as the window
    held_out: bool = False


@contextmanager
def planted(name, theirs, config):
    """Make the named mistake in the framework's model of this config; undo it on leaving the `with` block."""
    fault = next(fault for fault in FAULTS if fault.id == name)
    undo = fault.plant(theirs, config, sys.modules[type(theirs).__module__])
    try:
        yield theirs
    finally:
        for step in reversed(undo):
            step()


def chosen(model, config, where):
    """Return all layers, those of a kind (LOCAL or GLOBAL), or the one of that number."""
    kinds = enumerate(config.layer_types)
    return [layers(model)[number] for number, kind in kinds if where is None or where in (number, kind)]


def together(*plants):
    return lambda model, config, module: [step for plant in plants for step in plant(model, config, module)]


def part_of(layer, path):
    """Return a part of a layer. Gemma 1 calls its norm before the feed-forward post_attention_layernorm."""
    if path == "pre_feedforward_layernorm" and not hasattr(layer, path):
        path = "post_attention_layernorm"
    return layer.get_submodule(path)


def at(path, function):
    """Make a part of the model return function(part, input, output)."""
    return lambda model, config, module: [hook(model.get_submodule(path), function)]


def in_layers(path, function, where=None):
    """Make a part of each layer return function(part, input, output)."""

    def plant(model, config, module):
        return [hook(part_of(layer, path), function) for layer in chosen(model, config, where)]

    return plant


def in_every_norm(function):
    return lambda model, config, module: [hook(norm, function) for norm in norms(model)]


def norm_with(function):
    """Return, for a hook, the norm that computes function(x, weight, eps) in float32."""
    return lambda part, x, y: function(x.float(), part.weight.float(), part.eps).type_as(x)


def only_w(x, weight, eps):
    return normalised(x, eps) * weight


def unchanged(part, x, y):
    return x


def weights(paths, function, where=None):
    """Replace the weights at these paths of each layer with function(config, *weights), which returns as many."""

    def plant(model, config, module):
        undo = []
        for layer in chosen(model, config, where):
            parts = [part_of(layer, path) for path in paths.split()]
            others = function(config, *(part.weight.detach() for part in parts))
            undo += [with_weight(part, torch.nn.Parameter(other)) for part, other in zip(parts, others, strict=True)]
        return undo

    return plant


def with_weight(part, weight):
    before = part.weight
    part.weight = weight
    return lambda: setattr(part, "weight", before)


def exchanged(config, first, second):
    return second, first


def read_transposed(config, weight):
    """Return what [out, in] numbers mean to a program that takes them for [in, out]."""
    return [weight.reshape(weight.shape[::-1]).T.contiguous()]


def weights_of_layer(source, fragment=""):
    """Give each layer the weights of layer source(number, number of layers): those with the fragment in their name."""

    def plant(model, config, module):
        right = [dict(layer.named_parameters()) for layer in layers(model)]
        return [
            with_weight(layer.get_submodule(name.removesuffix(".weight")), right[source(number, len(right))][name])
            for number, layer in enumerate(layers(model))
            for name in right[number]
            if fragment in name
        ]

    return plant


def halves_exchanged(config, weight):
    return [weight.unflatten(0, (-1, 2, config.head_dim // 2)).flip(1).flatten(0, 2)]


def pairs_side_by_side(config, *each):
    """Put the channels i and i + h/2 of every head next to each other, as the rotation of neighbours wants them."""
    return [weight.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).flatten(0, 2) for weight in each]


def heads_by_place_in_group(config, weight):
    return [weight.unflatten(0, (config.num_key_value_heads, -1, config.head_dim)).transpose(0, 1).flatten(0, 2)]


def grouped_but_split_flat(config, *each):
    """Join q, k and v group by group (its queries, key and value); split that as if all q came first, then all k."""
    joined = torch.cat([weight.unflatten(0, (config.num_key_value_heads, -1)) for weight in each], dim=1).flatten(0, 1)
    return [part.contiguous() for part in joined.split([len(weight) for weight in each])]


def joined_but_split_by_turns(config, gate, up):
    both = torch.cat([gate, up])
    return both[0::2].contiguous(), both[1::2].contiguous()


def without_last_row(config, weight):
    return [torch.cat([weight[:-1], torch.zeros_like(weight[-1:])])]


def with_stray_bias(part, x, y):
    """Add the bias that a new linear layer has before training."""
    bound = part.in_features**-0.5
    bias = torch.empty(part.out_features).uniform_(-bound, bound, generator=torch.Generator().manual_seed(0))
    return y + bias.to(y.dtype)


def from_half_of_the_input(part, x, y):
    half = x.shape[-1] // 2
    return linear(x[..., :half], part.weight[:, :half])


def in_dtype(dtype):
    """Return, for a hook, a linear layer that computes in this dtype."""
    return lambda part, x, y: linear(x.to(dtype), part.weight.to(dtype)).to(y.dtype)


def rounded(x):
    return x.bfloat16().to(x.dtype)


class Attention:
    """The attention of one layer in steps, which a fault may replace; it records what the recorded one would."""

    def __init__(self, part, config, module):
        self.part, self.config, self.module = part, config, module
        self.window = config.window(part.layer_idx)
        self.softcap = getattr(part, "attn_logit_softcapping", None)

    def __call__(self, hidden_states, position_embeddings, position_ids, cache=None, gemma_np_record=None, **named):
        part = self.part
        cache = named.get("past_key_values") if cache is None else cache  # its name in older versions
        q, k, v = (
            project(hidden_states).unflatten(-1, (-1, part.head_dim)).transpose(1, 2)
            for project in (part.q_proj, part.k_proj, part.v_proj)
        )
        self.positions = position_ids[0]
        q, k = self.rotate(*self.norm(q, k), *position_embeddings)
        keys, values = (k, v) if cache is None else cache.update(k, v, part.layer_idx)
        end = int(self.positions[-1]) + 1
        self.key_positions = torch.arange(end - keys.shape[2], end)
        scores = self.scores(q, keys)
        capped = self.cap(scores)
        probs = self.probs(capped, self.visible(self.positions[:, None], self.key_positions))
        context = self.merge(self.mix(probs, values))
        if gemma_np_record is not None:
            record = {"q_rope": q, "k_rope": k, "scores": scores, "probs": probs}
            record |= {"scores_capped": capped} if self.softcap else {}
            gemma_np_record.update({f"layers.{part.layer_idx}.self_attn.{name}": x for name, x in record.items()})
        return part.o_proj(context), probs

    def norm(self, q, k):
        return (self.part.q_norm(q), self.part.k_norm(k)) if self.config.has_qk_norm else (q, k)

    def rotate(self, q, k, cos, sin):
        return self.module.apply_rotary_pos_emb(q, k, cos, sin)

    def scores(self, q, keys):
        return q @ self.repeat(keys).transpose(2, 3) * self.part.scaling

    def cap(self, scores):
        return self.softcap * torch.tanh(scores / self.softcap) if self.softcap else scores

    def visible(self, queries, keys):
        return causal(queries, keys, self.window)

    def probs(self, scores, seen):
        return torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1, dtype=torch.float32).to(scores.dtype)

    def mix(self, probs, values):
        return probs @ self.repeat(values)

    def merge(self, heads):
        return heads.transpose(1, 2).flatten(2)

    def repeat(self, x):
        return self.module.repeat_kv(x, self.part.num_key_value_groups)

    def cos_sin(self, positions, base=None, divisor=None):
        """Return the cosines and sines [1, T, h] of this layer's angles, or of others."""
        right_base, right_divisor = self.config.rope(self.part.layer_idx)
        exponents = torch.arange(0, self.part.head_dim, 2) / self.part.head_dim
        turns = torch.outer(positions / (divisor or right_divisor), (base or right_base) ** -exponents)
        return cos_sin_of(turns, self.part.q_proj.weight.dtype)


def cos_sin_of(turns, dtype):
    turns = torch.cat([turns, turns], dim=-1)[None]
    return turns.cos().to(dtype), turns.sin().to(dtype)


def attention(where=None, **steps):
    """Replace steps of the attention, by name, with step(attention, right, ...), where right is the right step."""

    def plant(model, config, module):
        undo = []
        for layer in chosen(model, config, where):
            faulty = Attention(layer.self_attn, config, module)
            for name, step in steps.items():
                setattr(faulty, name, partial(step, faulty, getattr(faulty, name)))
            undo.append(replace(layer.self_attn, "forward", faulty))
        return undo

    return plant


def angles(cos_sin, where=None):
    """Rotate by cos_sin(attention, positions) -> cos, sin."""
    return attention(where, rotate=lambda a, right, q, k, cos, sin: right(q, k, *cos_sin(a, a.positions)))


def rotation(function, where=None):
    """Rotate with function(q, k, cos, sin, right) -> q, k."""
    return attention(where, rotate=lambda a, right, q, k, cos, sin: function(q, k, cos, sin, right))


def in_float16(a, positions):
    base, divisor = a.config.rope(a.part.layer_idx)
    frequencies = base ** -(torch.arange(0, a.part.head_dim, 2) / a.part.head_dim)
    return cos_sin_of(torch.outer((positions / divisor).half(), frequencies.half()).float(), a.part.q_proj.weight.dtype)


def first_channels_only(q, k, cos, sin, right):
    """Rotate only the first channels, about half of them, as other models do."""
    n = 2 * (q.shape[-1] // 4)
    half = cos.shape[-1] // 2
    cos, sin = (torch.cat([x[..., : n // 2], x[..., half : half + n // 2]], dim=-1) for x in (cos, sin))
    turned = right(q[..., :n], k[..., :n], cos, sin)
    return tuple(torch.cat([first, x[..., n:]], dim=-1) for first, x in zip(turned, (q, k), strict=True))


def half_not_negated(q, k, cos, sin, right):
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return tuple(x * cos + x.roll(x.shape[-1] // 2, -1) * sin for x in (q, k))


def angles_of_neighbours(q, k, cos, sin, right):
    """Give channels 2i and 2i + 1 the same angle, but rotate i with i + h/2."""
    half = cos.shape[-1] // 2
    return right(q, k, *(x[..., :half].repeat_interleave(2, dim=-1) for x in (cos, sin)))


def query_ahead(a, right, q, k, cos, sin):
    return right(q, k, *a.cos_sin(a.positions + 1))[0], right(q, k, cos, sin)[1]


def ahead_when_decoding(a, right, q, k, cos, sin):
    return right(q, k, *a.cos_sin(a.positions + 1)) if a.positions[0] > 0 else right(q, k, cos, sin)


def norm_after_rotation(a, right, q, k, cos, sin):
    q, k = right(q, k, cos, sin)
    return a.part.q_norm(q), a.part.k_norm(k)


def over_all_heads(part, x, y):
    mean = x.float().pow(2).mean((1, 3), keepdim=True)
    return (x.float() * torch.rsqrt(mean + part.eps) * (1 + part.weight.float())).type_as(x)


def rotated_values(a, right, probs, values):
    return right(probs, a.module.apply_rotary_pos_emb(values, values, *a.cos_sin(a.key_positions))[0])


def keys_cached_unrotated(a, right, q, keys):
    cos, sin = a.cos_sin(a.key_positions)
    unrotated = a.module.apply_rotary_pos_emb(keys, keys, cos, -sin)[0]
    new = q.shape[2]
    return right(q, torch.cat([unrotated[:, :, :-new], keys[:, :, -new:]], dim=2))


def values_from_keys(model, config, module):
    """Mix the rotated keys instead of the values."""
    stored = {}

    def scores(a, right, q, keys):
        stored[a.part.layer_idx] = keys
        return right(q, keys)

    return attention(scores=scores, mix=lambda a, right, probs, values: right(probs, stored[a.part.layer_idx]))(
        model, config, module
    )


def cached_values_late(a, right, probs, values):
    new = probs.shape[2]
    return right(probs, torch.cat([values[:, :, :-new].roll(1, 2), values[:, :, -new:]], dim=2))


def scale(number, where=None):
    """Divide the scores by the root of number(config)."""

    def scores(a, right, q, keys):
        return right(q, keys) / a.part.scaling * number(a.config) ** -0.5

    return attention(where, scores=scores)


def tiled(x, heads):
    return x.repeat(1, heads // x.shape[1], 1, 1)


def kv_heads(function):
    return attention(
        scores=lambda a, right, q, keys: right(q, function(keys)),
        mix=lambda a, right, probs, values: right(probs, function(values)),
    )


def cap(function, where=None):
    """Compute function(scores, cap) instead of the soft cap."""
    return attention(where, cap=lambda a, right, scores: function(scores, a.softcap))


def soft(x, limit):
    return limit * torch.tanh(x / limit)


def clipped(x, limit):
    return x.clamp(-limit, limit)


def mask(function, where=None):
    """Let the query at position q see the keys at positions k where function(q, k, window, right) is true.

    The window is that of the config, on global layers, too; right is the right mask.
    """

    def visible(a, right, queries, keys):
        return function(queries, keys, a.config.sliding_window, right(queries, keys))

    return attention(where, visible=visible)


def hidden_self(queries, keys, window, right):
    return right & ((keys < queries) | (queries == 0))


def probs_with(function):
    """Compute the probabilities as function(scores, visible, right)."""
    return attention(probs=lambda a, right, scores, seen: function(scores, seen, right))


def over_queries(scores, seen, right):
    return torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-2)


def with_one_more_in_the_sum(scores, seen, right):
    null = torch.zeros_like(scores[..., :1])
    padded = torch.cat([null, scores.masked_fill(~seen, -torch.inf)], dim=-1)
    return torch.softmax(padded, dim=-1)[..., 1:]


def feed_forward(function, where=None):
    """Compute function(gate, up, activation) between the projections of the feed-forward."""

    def forward_of(mlp):
        return lambda x: mlp.down_proj(function(mlp.gate_proj(x), mlp.up_proj(x), mlp.act_fn))

    def plant(model, config, module):
        return [replace(layer.mlp, "forward", forward_of(layer.mlp)) for layer in chosen(model, config, where)]

    return plant


def gated_by(function, where=None):
    return feed_forward(lambda gate, up, activation: function(gate) * up, where)


def tanh_gelu(x, root=(2 / math.pi) ** 0.5, cubic=0.044715):
    return 0.5 * x * (1 + torch.tanh(root * (x + cubic * x**3)))


def block(function, where=None):
    """Compute a layer as function(layer, x, attend, feed); attend and feed include the norms around them."""

    def forward_of(layer):
        has_post_norms = hasattr(layer, "post_feedforward_layernorm")

        def forward(hidden_states, *rest, **named):
            def attend(x):
                y, _ = layer.self_attn(layer.input_layernorm(x), *rest, **named)
                return layer.post_attention_layernorm(y) if has_post_norms else y

            return function(layer, hidden_states, attend, feed)

        def feed(x):
            y = layer.mlp(part_of(layer, "pre_feedforward_layernorm")(x))
            return layer.post_feedforward_layernorm(y) if has_post_norms else y

        return forward

    def plant(model, config, module):
        return [replace(layer, "forward", forward_of(layer)) for layer in chosen(model, config, where)]

    return plant


def after_attention(function):
    """Continue with function(x, y) after attention, where x is the residual stream and y what is added to it."""

    def whole(layer, x, attend, feed):
        x = function(x, attend(x))
        return x + feed(x)

    return block(whole)


def after_feed_forward(function, where=None):
    """Return function(start, middle, y): the residual stream before attention and after it, and what is added."""

    def whole(layer, x, attend, feed):
        middle = x + attend(x)
        return function(x, middle, feed(middle))

    return block(whole, where)


def normed_skip(layer, x, attend, feed):
    middle = type(layer.input_layernorm).forward(layer.input_layernorm, x) + attend(x)
    return middle + feed(middle)


def shifted_kinds(model, config, module):
    kinds = list(config.layer_types)
    return [replace(model.config, "layer_types", kinds[-1:] + kinds[:-1])]


def norm_before_last_layer(model, config, module):
    stored = []

    def keep(part, x, y):
        stored[:] = [y]
        return y

    def other(part, x, y):
        return type(part).forward(part, stored[0])

    return [hook(layers(model)[-2], keep), hook(model.model.norm, other)]


def untied_head(part, x, y):
    weight = torch.randn(part.weight.shape, generator=torch.Generator().manual_seed(0)) * part.in_features**-0.5
    return linear(x, weight.to(x.dtype))


def final_cap(function):
    """Compute function(logits, cap) instead of the final soft cap."""

    def plant(model, config, module):
        stored = []

        def keep(part, inputs, output):
            stored[:] = [output]

        def other(part, inputs, output):
            output.logits = function(stored[0], config.final_logit_softcapping)
            return output

        return [model.lm_head.register_forward_hook(keep).remove, model.register_forward_hook(other).remove]

    return plant


def capped_before_head(model, config, module):
    limit = config.final_logit_softcapping
    before = at("lm_head", lambda part, x, y: linear(soft(x, limit), part.weight))
    return together(before, final_cap(lambda logits, limit: logits))(model, config, module)


EMBEDDING = [
    Fault(
        "embed-divided",
        "The embedding is divided by sqrt(D) instead of multiplied.",
        scaled_embedding(lambda D: 1 / D),
        EVERY,
        "embedding",
    ),
    Fault(
        "embed-scale-whole-number",
        "The embedding is multiplied by the whole part of sqrt(D).",
        scaled_embedding(lambda D: int(D**0.5) / D**0.5),
        EVERY,
        "embedding",
    ),
    Fault(
        "embed-normalised",
        "The embedding is normalised to a mean square of 1 instead of scaled.",
        at("model.embed_tokens", lambda part, x, y: normalised(y, 1e-6)),
        EVERY,
        "embedding",
    ),
    Fault(
        "embed-scale-first-pass",
        "The embedding is scaled only in the prompt, not in the tokens that follow one by one.",
        at("model.embed_tokens", lambda part, x, y: y if x.shape[1] > 1 else y / part.embed_scale.to(y.dtype)),
        EVERY,
        "embedding",
        passes=True,
    ),
]

NORMS = [
    Fault(
        "norm-eps-outside-root",
        "Every norm adds eps to the root of the mean square instead of to the mean square itself.",
        in_every_norm(norm_with(lambda x, w, eps: x / (x.pow(2).mean(-1, keepdim=True).sqrt() + eps) * (1 + w))),
        EVERY,
        "layers.*.input_layernorm",
    ),
    Fault(
        "norm-eps-too-large",
        "Every norm has an eps ten times as large.",
        in_every_norm(norm_with(lambda x, w, eps: normalised(x, 10 * eps) * (1 + w))),
        EVERY,
        "layers.*.input_layernorm",
    ),
    Fault(
        "norm-subtracts-mean",
        "Every norm subtracts the mean first, as LayerNorm does.",
        in_every_norm(norm_with(lambda x, w, eps: normalised(x - x.mean(-1, keepdim=True), eps) * (1 + w))),
        EVERY,
        "layers.*.input_layernorm",
    ),
    Fault(
        "norm-l2-length",
        "Every norm divides by the length of the vector, not by its root mean square.",
        in_every_norm(norm_with(lambda x, w, eps: normalised(x, eps) * x.shape[-1] ** -0.5 * (1 + w))),
        EVERY,
        "layers.*.input_layernorm",
    ),
    Fault(
        "norm-squares-bf16",
        "Every norm computes the mean square in bfloat16.",
        in_every_norm(
            norm_with(
                lambda x, w, eps: x * torch.rsqrt(x.bfloat16().pow(2).mean(-1, keepdim=True).float() + eps) * (1 + w)
            )
        ),
        EVERY,
        "layers.*.input_layernorm",
    ),
    Fault(
        "norm-first-layer-weights",
        "All layers use the norm weights of the first.",
        weights_of_layer(lambda number, count: 0, "norm"),
        EVERY,
        "layers.*.input_layernorm",
    ),
    Fault(
        "input-norm-next-layer",
        "The norm before attention has the weight of the next layer.",
        weights_of_layer(lambda number, count: (number + 1) % count, "input_layernorm"),
        EVERY,
        "layers.*.input_layernorm",
    ),
    Fault(
        "input-norm-over-tokens",
        "The norm before attention takes the mean square over the tokens instead of the channels.",
        in_layers(
            "input_layernorm",
            norm_with(lambda x, w, eps: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + eps) * (1 + w)),
        ),
        EVERY,
        "layers.*.input_layernorm",
    ),
    Fault(
        "input-norm-missing-at-first",
        "The first layer's attention gets the embedding without a norm.",
        in_layers("input_layernorm", unchanged, 0),
        EVERY,
        "layers.0.input_layernorm",
    ),
    Fault(
        "pre-ff-norm-no-plus1",
        "The norm before the feed-forward multiplies by w instead of 1 + w.",
        in_layers("pre_feedforward_layernorm", norm_with(only_w)),
        EVERY,
        "layers.*.pre_feedforward_layernorm",
    ),
    Fault(
        "pre-ff-norm-missing",
        "The feed-forward gets the residual stream without a norm.",
        in_layers("pre_feedforward_layernorm", unchanged),
        EVERY,
        "layers.*.pre_feedforward_layernorm",
    ),
    Fault(
        "post-norm-weights-exchanged",
        "The norms after attention and after the feed-forward have each other's weights.",
        weights("post_attention_layernorm post_feedforward_layernorm", exchanged),
        POST_NORMED,
        "layers.*.post_attention_layernorm",
    ),
    Fault(
        "post-attention-norm-local-missing",
        "Local layers add the output of attention without its norm.",
        in_layers("post_attention_layernorm", unchanged, LOCAL),
        POST_NORMED,
        "layers.*.post_attention_layernorm",
    ),
    Fault(
        "post-ff-norm-missing-once",
        "Layer 1 adds the output of its feed-forward without a norm.",
        in_layers("post_feedforward_layernorm", unchanged, 1),
        POST_NORMED,
        "layers.1.post_feedforward_layernorm",
    ),
    Fault(
        "norms-of-llama",
        "The weight named post_attention_layernorm normalises the input of the feed-forward, and outputs have no norm.",
        together(
            weights("post_attention_layernorm pre_feedforward_layernorm", exchanged),
            in_layers("post_attention_layernorm", unchanged),
            in_layers("post_feedforward_layernorm", unchanged),
        ),
        POST_NORMED,
        "layers.*.post_attention_layernorm",
    ),
    Fault(
        "q-norm-no-plus1",
        "The norm of the queries multiplies by w instead of 1 + w.",
        in_layers("self_attn.q_norm", norm_with(only_w)),
        GEMMA3,
        "layers.*.self_attn.q_norm",
    ),
    Fault(
        "k-norm-missing",
        "Queries are normalised, keys are not.",
        in_layers("self_attn.k_norm", unchanged),
        GEMMA3,
        "layers.*.self_attn.k_norm",
    ),
    Fault(
        "qk-norm-over-all-heads",
        "The norms of queries and keys take one mean square over all heads.",
        together(in_layers("self_attn.q_norm", over_all_heads), in_layers("self_attn.k_norm", over_all_heads)),
        GEMMA3,
        "layers.*.self_attn.q_norm",
    ),
    Fault(
        "qk-norm-after-rope",
        "Queries and keys are normalised after their rotation instead of before.",
        attention(norm=lambda a, right, q, k: (q, k), rotate=norm_after_rotation),
        GEMMA3,
        "layers.*.self_attn.q_norm",
    ),
    Fault(
        "final-norm-missing",
        "The head gets the residual stream without a norm.",
        at("model.norm", unchanged),
        EVERY,
        "norm",
    ),
]

PROJECTIONS = [
    Fault(
        "q-transposed",
        "The weight of the queries is read as [in, out].",
        weights("self_attn.q_proj", read_transposed),
        EVERY,
        "layers.*.self_attn.q",
    ),
    Fault(
        "q-halves-exchanged",
        "The halves of each head of the queries' weight are exchanged.",
        weights("self_attn.q_proj", halves_exchanged),
        EVERY,
        "layers.*.self_attn.q",
    ),
    Fault(
        "qk-permuted",
        "The weights of queries and keys are permuted for a rotation of neighbours, but halves are rotated.",
        weights("self_attn.q_proj self_attn.k_proj", pairs_side_by_side),
        EVERY,
        "layers.*.self_attn.q",
    ),
    Fault(
        "q-heads-regrouped",
        "The query heads are ordered by their place in the group, not by group.",
        weights("self_attn.q_proj", heads_by_place_in_group),
        EVERY,
        "layers.*.self_attn.q",
    ),
    Fault(
        "qkv-split-flat",
        "A joint weight of queries, keys and values, stored group by group, is split as if all queries came first.",
        weights("self_attn.q_proj self_attn.k_proj self_attn.v_proj", grouped_but_split_flat),
        EVERY,
        "layers.*.self_attn.q",
    ),
    Fault(
        "q-of-layer-0",
        "Layer 1 has the query weight of layer 0.",
        weights_of_layer(lambda number, count: 0 if number == 1 else number, "q_proj"),
        EVERY,
        "layers.1.self_attn.q",
    ),
    Fault(
        "k-v-exchanged",
        "Keys and values have each other's weights.",
        weights("self_attn.k_proj self_attn.v_proj", exchanged),
        EVERY,
        "layers.*.self_attn.k",
    ),
    Fault(
        "v-stray-bias",
        "The values get a bias, which was never loaded.",
        in_layers("self_attn.v_proj", with_stray_bias),
        EVERY,
        "layers.*.self_attn.v",
    ),
    Fault(
        "o-half-of-heads",
        "Only the first half of the heads reaches the output of attention, as when two devices forget to add.",
        in_layers("self_attn.o_proj", from_half_of_the_input),
        EVERY,
        "layers.*.self_attn.o",
    ),
    Fault(
        "gate-up-weights-exchanged",
        "Gate and up have each other's weights.",
        weights("mlp.gate_proj mlp.up_proj", exchanged),
        EVERY,
        "layers.*.mlp.gate",
    ),
    Fault(
        "gate-up-split-by-turns",
        "A joint weight of gate and up is split into even and odd rows instead of halves.",
        weights("mlp.gate_proj mlp.up_proj", joined_but_split_by_turns),
        EVERY,
        "layers.*.mlp.gate",
    ),
    Fault(
        "up-last-row-zero",
        "The last row of the up weight is zero: a loop ended too early.",
        weights("mlp.up_proj", without_last_row),
        EVERY,
        "layers.*.mlp.up",
    ),
    Fault(
        "down-doubled",
        "The output of the feed-forward is doubled, as when two devices add what both have.",
        in_layers("mlp.down_proj", lambda part, x, y: 2 * y),
        EVERY,
        "layers.*.mlp.down",
    ),
]

ROPE = [
    Fault(
        "rope-base-tenfold",
        "The base of the rotation is ten times as large.",
        angles(lambda a, positions: a.cos_sin(positions, base=10 * a.config.rope(a.part.layer_idx)[0])),
        EVERY,
        "layers.*.self_attn.q_rope",
    ),
    Fault(
        "rope-local-base-everywhere",
        "Global layers rotate with the base of the local ones.",
        angles(lambda a, positions: a.cos_sin(positions, base=a.config.rope_local_base_freq), GLOBAL),
        GEMMA3,
        "layers.*.self_attn.q_rope",
    ),
    Fault(
        "rope-scale-inverted",
        "Global layers multiply the positions by the scaling factor instead of dividing them.",
        angles(lambda a, positions: a.cos_sin(positions, divisor=1 / a.config.rope_scaling_factor), GLOBAL),
        GEMMA3,
        "layers.*.self_attn.q_rope",
    ),
    Fault(
        "rope-exponent-halved",
        "The exponent of the frequencies is -i / h instead of -2i / h.",
        angles(lambda a, positions: a.cos_sin(positions, base=a.config.rope(a.part.layer_idx)[0] ** 0.5)),
        EVERY,
        "layers.*.self_attn.q_rope",
    ),
    Fault(
        "rope-opposite",
        "Queries and keys are rotated in the opposite direction.",
        rotation(lambda q, k, cos, sin, right: right(q, k, cos, -sin)),
        EVERY,
        "layers.*.self_attn.q_rope",
    ),
    Fault(
        "rope-half-not-negated",
        "The rotation does not negate the second half that it moves to the front.",
        rotation(half_not_negated),
        EVERY,
        "layers.*.self_attn.q_rope",
    ),
    Fault(
        "rope-angles-of-neighbours",
        "Neighbouring channels get the same angle, but channels i and i + h/2 are rotated together.",
        rotation(angles_of_neighbours),
        EVERY,
        "layers.*.self_attn.q_rope",
    ),
    Fault(
        "rope-interleaved-q",
        "Queries are rotated by neighbouring channels, keys by halves.",
        rotation(
            lambda q, k, cos, sin, right: (interleaved(q, k, cos, sin, right)[0], right(q, k, cos, sin)[1]),
        ),
        EVERY,
        "layers.*.self_attn.q_rope",
    ),
    Fault(
        "rope-first-channels",
        "Only the first half of the channels is rotated.",
        rotation(first_channels_only),
        EVERY,
        "layers.*.self_attn.q_rope",
    ),
    Fault(
        "rope-twice",
        "Queries and keys are rotated twice.",
        rotation(lambda q, k, cos, sin, right: right(*right(q, k, cos, sin), cos, sin)),
        EVERY,
        "layers.*.self_attn.q_rope",
    ),
    Fault(
        "rope-not-on-k",
        "Keys are not rotated.",
        rotation(lambda q, k, cos, sin, right: (right(q, k, cos, sin)[0], k)),
        EVERY,
        "layers.*.self_attn.k_rope",
    ),
    Fault(
        "rope-global-absent",
        "Global layers do not rotate.",
        rotation(lambda q, k, cos, sin, right: (q, k), GLOBAL),
        POST_NORMED,
        "layers.*.self_attn.q_rope",
    ),
    Fault(
        "rope-query-ahead",
        "Queries are rotated as if they were one position later; keys are not.",
        attention(rotate=query_ahead),
        EVERY,
        "layers.*.self_attn.q_rope",
    ),
    Fault(
        "rope-ahead-when-decoding",
        "The tokens after the prompt are rotated as if they were one position later.",
        attention(rotate=ahead_when_decoding),
        EVERY,
        "layers.*.self_attn.q_rope",
        passes=True,
    ),
    Fault(
        "rope-position-in-window",
        "Local layers rotate by the position modulo the window.",
        angles(lambda a, positions: a.cos_sin(positions % a.window), LOCAL),
        POST_NORMED,
        "layers.*.self_attn.q_rope",
        past_window=True,
    ),
    Fault(
        "rope-float16",
        "The angles of the rotation are computed in float16.",
        angles(in_float16),
        EVERY,
        "layers.*.self_attn.q_rope",
    ),
    Fault(
        "rope-on-v",
        "The values are rotated, too.",
        attention(mix=rotated_values),
        EVERY,
        "layers.*.self_attn.context",
    ),
    Fault(
        "layer-kinds-shifted",
        "The order of local and global layers is shifted by one, for the mask as well as for the rotation.",
        shifted_kinds,
        GEMMA3,
        "layers.*.self_attn.q_rope",
    ),
]

SCORES = [
    Fault(
        "scale-absent",
        "The scores are not scaled.",
        scale(lambda config: 1),
        EVERY,
        "layers.*.self_attn.scores",
    ),
    Fault(
        "scale-twice",
        "The scores are divided by query_pre_attn_scalar instead of its root.",
        scale(lambda config: config.query_pre_attn_scalar**2),
        EVERY,
        "layers.*.self_attn.scores",
    ),
    Fault(
        "scale-hidden",
        "The scores are divided by sqrt(D).",
        scale(lambda config: config.hidden_size),
        EVERY,
        "layers.*.self_attn.scores",
    ),
    Fault(
        "scale-absent-once",
        "The scores of layer 1 are not scaled.",
        scale(lambda config: 1, 1),
        EVERY,
        "layers.1.self_attn.scores",
    ),
    Fault(
        "scale-head-dim-global",
        "Global layers divide the scores by the root of the head dimension; local layers are right.",
        scale(lambda config: config.head_dim, GLOBAL),
        POST_NORMED,
        "layers.*.self_attn.scores",
    ),
    Fault(
        "kv-first-head",
        "All query heads use the first key-value head.",
        kv_heads(lambda x: x[:, :1].expand_as(x)),
        EVERY,
        "layers.*.self_attn.scores",
    ),
    Fault(
        "scores-bf16",
        "The scores are computed in bfloat16.",
        attention(scores=lambda a, right, q, keys: right(q.bfloat16(), keys.bfloat16()).to(q.dtype)),
        EVERY,
        "layers.*.self_attn.scores",
    ),
    Fault(
        "keys-cached-unrotated",
        "Keys are cached before their rotation, so those of earlier passes are not rotated.",
        attention(scores=keys_cached_unrotated),
        EVERY,
        "layers.*.self_attn.scores",
        passes=True,
    ),
    Fault(
        "cap-before-scale",
        "The cap is applied to the scores before they are scaled.",
        attention(
            scores=lambda a, right, q, keys: right(q, keys) / a.part.scaling,
            cap=lambda a, right, scores: right(scores) * a.part.scaling,
        ),
        GEMMA2,
        "layers.*.self_attn.scores",
    ),
    Fault(
        "attncap-of-logits",
        "The scores are capped at the value for the logits.",
        attention(cap=lambda a, right, scores: soft(scores, a.config.final_logit_softcapping)),
        GEMMA2,
        "layers.*.self_attn.scores_capped",
    ),
    Fault(
        "attncap-clip",
        "The scores are clipped at the cap instead of bent by tanh.",
        cap(clipped),
        GEMMA2,
        "layers.*.self_attn.scores_capped",
    ),
    Fault(
        "attncap-twice",
        "The cap is applied twice to the scores.",
        cap(lambda scores, limit: soft(soft(scores, limit), limit)),
        GEMMA2,
        "layers.*.self_attn.scores_capped",
    ),
    Fault(
        "attncap-local-only",
        "Only local layers cap their scores.",
        cap(lambda scores, limit: scores, GLOBAL),
        GEMMA2,
        "layers.*.self_attn.scores_capped",
    ),
    Fault(
        "attncap-left-in",
        "The scores are capped at 50, as in Gemma 2.",
        probs_with(lambda scores, seen, right: right(soft(scores, 50), seen)),
        UNCAPPED,
        "layers.*.self_attn.probs",
    ),
]

MASK = [
    Fault(
        "window-one-less",
        "Local layers see one key less.",
        mask(lambda q, k, window, right: causal(q, k, window - 1), LOCAL),
        POST_NORMED,
        "layers.*.self_attn.probs",
        past_window=True,
    ),
    Fault(
        "window-double",
        "Local layers see twice as many keys.",
        mask(lambda q, k, window, right: causal(q, k, 2 * window), LOCAL),
        POST_NORMED,
        "layers.*.self_attn.probs",
        past_window=True,
    ),
    Fault(
        "window-half",
        "Local layers see half as many keys: the window is taken to be centred.",
        mask(lambda q, k, window, right: causal(q, k, max(1, window // 2)), LOCAL),
        POST_NORMED,
        "layers.*.self_attn.probs",
    ),
    Fault(
        "window-by-blocks",
        "Local layers see only the keys of their own block of as many tokens as the window.",
        mask(lambda q, k, window, right: right & (q // window == k // window), LOCAL),
        POST_NORMED,
        "layers.*.self_attn.probs",
        past_window=True,
    ),
    Fault(
        "window-with-first-token",
        "Local layers also see the first token, however far away it is.",
        mask(lambda q, k, window, right: right | (k == 0), LOCAL),
        POST_NORMED,
        "layers.*.self_attn.probs",
        past_window=True,
    ),
    Fault(
        "window-both-ways",
        "Local layers see as far into the future as into the past.",
        mask(lambda q, k, window, right: (q - k).abs() < window, LOCAL),
        POST_NORMED,
        "layers.*.self_attn.probs",
    ),
    Fault(
        "window-absent-when-decoding",
        "Local layers see all keys when there is a single new token.",
        mask(lambda q, k, window, right: right if len(q) > 1 else k <= q, LOCAL),
        POST_NORMED,
        "layers.*.self_attn.probs",
        passes=True,
        past_window=True,
    ),
    Fault(
        "window-global-when-decoding",
        "Global layers see only the window when there is a single new token, since the cache forgets the rest.",
        mask(lambda q, k, window, right: right if len(q) > 1 else causal(q, k, window), GLOBAL),
        POST_NORMED,
        "layers.*.self_attn.probs",
        passes=True,
        past_window=True,
    ),
    Fault(
        "mask-absent",
        "Every token sees every other token of the text so far, later ones, too.",
        mask(lambda q, k, window, right: torch.ones_like(right)),
        EVERY,
        "layers.*.self_attn.probs",
    ),
    Fault(
        "mask-without-self",
        "No token except the first sees itself.",
        mask(hidden_self),
        EVERY,
        "layers.*.self_attn.probs",
    ),
    Fault(
        "mask-hides-first-token",
        "Only the first token sees the first token, as if it were padding.",
        mask(lambda q, k, window, right: right & ((k > 0) | (q == 0))),
        EVERY,
        "layers.*.self_attn.probs",
    ),
]

PROBS = [
    Fault(
        "mask-after-softmax",
        "Hidden keys take part in the softmax and are set to zero after it.",
        probs_with(lambda scores, seen, right: right(scores, torch.ones_like(seen)) * seen),
        EVERY,
        "layers.*.self_attn.probs",
    ),
    Fault(
        "mask-by-product",
        "The scores of hidden keys are set to zero instead of minus infinity.",
        probs_with(lambda scores, seen, right: right(scores * seen, torch.ones_like(seen))),
        EVERY,
        "layers.*.self_attn.probs",
    ),
    Fault(
        "softmax-over-queries",
        "The softmax is taken over the queries instead of the keys.",
        probs_with(over_queries),
        EVERY,
        "layers.*.self_attn.probs",
    ),
    Fault(
        "softmax-one-more",
        "The softmax has 1 added to its sum.",
        probs_with(with_one_more_in_the_sum),
        EVERY,
        "layers.*.self_attn.probs",
    ),
    Fault(
        "softmax-base-2",
        "The softmax has powers of 2 instead of e.",
        probs_with(lambda scores, seen, right: right(scores * math.log(2), seen)),
        EVERY,
        "layers.*.self_attn.probs",
    ),
    Fault(
        "probs-bf16",
        "The probabilities are rounded to bfloat16.",
        probs_with(lambda scores, seen, right: rounded(right(scores, seen))),
        EVERY,
        "layers.*.self_attn.probs",
    ),
    Fault(
        "values-tiled",
        "Query head i uses the values of head i modulo K; its keys are right.",
        attention(mix=lambda a, right, probs, values: probs @ tiled(values, probs.shape[1])),
        EVERY,
        "layers.*.self_attn.context",
    ),
    Fault(
        "values-from-k",
        "The probabilities weight the keys instead of the values.",
        values_from_keys,
        EVERY,
        "layers.*.self_attn.context",
    ),
    Fault(
        "cached-values-late",
        "The cached values are one position behind the cached keys.",
        attention(mix=cached_values_late),
        EVERY,
        "layers.*.self_attn.context",
        passes=True,
    ),
    Fault(
        "heads-not-transposed",
        "Context vectors [H, T, h] are taken for [T, H*h] without exchanging the axes.",
        attention(merge=lambda a, right, heads: heads.contiguous().view(right(heads).shape)),
        EVERY,
        "layers.*.self_attn.context",
    ),
    Fault(
        "heads-interleaved",
        "The channels of different heads alternate in the context vectors.",
        attention(merge=lambda a, right, heads: heads.permute(0, 2, 3, 1).flatten(2)),
        EVERY,
        "layers.*.self_attn.context",
    ),
]

FEED_FORWARD = [
    Fault("relu", "The activation is ReLU.", gated_by(relu), EVERY, "layers.*.mlp.hidden"),
    Fault(
        "relu-once",
        "The activation of layer 1 is ReLU.",
        gated_by(relu, 1),
        EVERY,
        "layers.1.mlp.hidden",
    ),
    Fault(
        "squared-relu",
        "The activation is the square of ReLU.",
        gated_by(lambda x: relu(x) ** 2),
        EVERY,
        "layers.*.mlp.hidden",
    ),
    Fault(
        "quick-gelu",
        "The activation is x * sigmoid(1.702 x).",
        gated_by(lambda x: x * torch.sigmoid(1.702 * x)),
        EVERY,
        "layers.*.mlp.hidden",
    ),
    Fault(
        "gelu-cubic-mistyped",
        "The cubic constant of GELU is 0.44715 instead of 0.044715.",
        gated_by(lambda x: tanh_gelu(x, cubic=0.44715)),
        EVERY,
        "layers.*.mlp.hidden",
    ),
    Fault(
        "gelu-without-root",
        "The constant of GELU is 2 / pi instead of its root.",
        gated_by(lambda x: tanh_gelu(x, root=2 / math.pi)),
        EVERY,
        "layers.*.mlp.hidden",
    ),
    Fault(
        "gelu-of-product",
        "The activation is applied to gate times up.",
        feed_forward(lambda gate, up, activation: activation(gate * up)),
        EVERY,
        "layers.*.mlp.hidden",
    ),
    Fault(
        "up-missing",
        "The activated gate is not multiplied by up.",
        feed_forward(lambda gate, up, activation: activation(gate)),
        EVERY,
        "layers.*.mlp.hidden",
    ),
    Fault(
        "up-plus-1",
        "The activated gate is multiplied by up + 1.",
        feed_forward(lambda gate, up, activation: activation(gate) * (up + 1)),
        EVERY,
        "layers.*.mlp.hidden",
    ),
]

RESIDUALS = [
    Fault(
        "skip-attention-missing",
        "The output of attention replaces the residual stream.",
        after_attention(lambda x, y: y),
        EVERY,
        "layers.*.resid_mid",
    ),
    Fault(
        "skip-attention-doubled",
        "The residual stream is added twice to the output of attention.",
        after_attention(lambda x, y: x + x + y),
        EVERY,
        "layers.*.resid_mid",
    ),
    Fault(
        "skip-attention-scaled",
        "The residual stream after attention is multiplied by sqrt(1/2).",
        after_attention(lambda x, y: (x + y) * math.sqrt(0.5)),
        EVERY,
        "layers.*.resid_mid",
    ),
    Fault(
        "skip-attention-normed",
        "The output of attention is added to the input of attention after its norm.",
        block(normed_skip),
        EVERY,
        "layers.*.resid_mid",
    ),
    Fault(
        "residual-bf16",
        "The residual stream after attention is rounded to bfloat16.",
        after_attention(lambda x, y: rounded(x + y)),
        EVERY,
        "layers.*.resid_mid",
    ),
    Fault(
        "blocks-parallel",
        "Attention and feed-forward read the same residual stream, side by side.",
        block(lambda layer, x, attend, feed: x + attend(x) + feed(x)),
        EVERY,
        "layers.*.resid_mid",
    ),
    Fault(
        "skip-ff-stale",
        "The output of the feed-forward is added to the residual stream from before attention.",
        after_feed_forward(lambda start, middle, y: start + y),
        EVERY,
        "layers.*.resid_post",
    ),
    Fault(
        "layer-ignored",
        "The output of layer 1 is ignored: layer 2, or the final norm, reads its input.",
        after_feed_forward(lambda start, middle, y: start, 1),
        EVERY,
        "layers.1.resid_post",
    ),
    Fault(
        "layer-0-twice",
        "Layer 1 has all weights of layer 0.",
        weights_of_layer(lambda number, count: 0 if number == 1 else number),
        EVERY,
        "layers.1.input_layernorm",
    ),
    Fault(
        "layers-exchanged",
        "Layers 0 and 1 have each other's weights.",
        weights_of_layer(lambda number, count: 1 - number if number < 2 else number),
        EVERY,
        "layers.*.input_layernorm",
    ),
    Fault(
        "layers-reversed",
        "The layers have their weights in reverse order.",
        weights_of_layer(lambda number, count: count - 1 - number),
        POST_NORMED,
        "layers.*.input_layernorm",
    ),
    Fault(
        "last-layer-unused",
        "The final norm reads the residual stream before the last layer.",
        norm_before_last_layer,
        EVERY,
        "norm",
    ),
]

HEAD = [
    Fault(
        "head-scaled",
        "The head uses the scaled embedding: logits are sqrt(D) times as large.",
        at("lm_head", lambda part, x, y: y * part.in_features**0.5),
        EVERY,
        "logits",
    ),
    Fault(
        "head-one-id-late",
        "Each logit is that of the previous id.",
        at("lm_head", lambda part, x, y: y.roll(1, -1)),
        EVERY,
        "logits",
    ),
    Fault(
        "head-parts-exchanged",
        "The two parts of the vocabulary are joined in the wrong order.",
        at("lm_head", lambda part, x, y: y.roll(part.out_features // 2, -1)),
        EVERY,
        "logits",
    ),
    Fault("head-untied", "The head has a random matrix of its own.", at("lm_head", untied_head), EVERY, "logits"),
    Fault(
        "logits-log-probs",
        "The logits are log probabilities.",
        at("lm_head", lambda part, x, y: torch.log_softmax(y, dim=-1)),
        EVERY,
        "logits",
    ),
    Fault(
        "logits-float16",
        "The head computes in float16.",
        at("lm_head", in_dtype(torch.float16)),
        EVERY,
        "logits",
    ),
    Fault(
        "finalcap-left-in",
        "The logits are capped at 30, as in Gemma 2.",
        at("lm_head", lambda part, x, y: soft(y, 30)),
        UNCAPPED,
        "logits",
    ),
    Fault(
        "finalcap-before-head",
        "The cap is applied to the input of the head instead of the logits.",
        capped_before_head,
        GEMMA2,
        "logits",
    ),
    Fault(
        "finalcap-half",
        "The logits are capped at half the value.",
        final_cap(lambda logits, limit: soft(logits, limit / 2)),
        GEMMA2,
        "logits_capped",
    ),
    Fault(
        "finalcap-twice",
        "The final cap is applied twice.",
        final_cap(lambda logits, limit: soft(soft(logits, limit), limit)),
        GEMMA2,
        "logits_capped",
    ),
    Fault(
        "finalcap-not-multiplied",
        "The capped logit is tanh(logit / cap): the multiplication by the cap is missing.",
        final_cap(lambda logits, limit: torch.tanh(logits / limit)),
        GEMMA2,
        "logits_capped",
    ),
]


def a_third(names):
    """Return a random third of the names, always the same."""
    return frozenset(Random(7).sample(sorted(names), len(names) // 3))


ROWS = [*EMBEDDING, *NORMS, *PROJECTIONS, *ROPE, *SCORES, *MASK, *PROBS, *FEED_FORWARD, *RESIDUALS, *HEAD]
HELD_OUT = a_third([fault.id for fault in ROWS])
FAULTS = tuple(fault._replace(held_out=fault.id in HELD_OUT) for fault in ROWS)

ID_FAULTS = {
    "bos-missing": lambda ids: ids[1:],
    "bos-doubled": lambda ids: np.concatenate([ids[:1], ids]),
    "bos-doubled-and-cut": lambda ids: np.concatenate([ids[:1], ids[:-1]]),
    "text-one-ahead": lambda ids: np.concatenate([ids[1:], ids[-1:]]),
    "bos-at-the-end": lambda ids: np.roll(ids, -1),
    "ids-one-too-large": lambda ids: (ids + 1) % (ids.max() + 1),
    "ids-one-too-small": lambda ids: np.maximum(ids - 1, 0),
    "text-reversed": lambda ids: np.concatenate([ids[:1], ids[:0:-1]]),
    "two-tokens-exchanged": lambda ids: ids[[0, 2, 1, *range(3, len(ids))]],
    "start-overwritten-by-padding": lambda ids: np.concatenate([np.zeros_like(ids[:2]), ids[2:]]),
}
"""Mistakes in the ids [T] given to the model: functions of the right ids. The first two change the length."""

HELD_OUT_IDS = a_third(ID_FAULTS)
