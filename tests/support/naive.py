"""Gemma in plain loops: each operation written from the papers, one number at a time, without NumPy.

Vectors are lists of floats, so that all arithmetic is Python's own float64. It is slow, and easy to check by reading.
"""

import cmath
import math


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def linear(x, weight):
    return [dot(x, row) for row in weight]


def add(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


def embed(token, embedding):
    row = embedding[token]
    return [value * math.sqrt(len(row)) for value in row]


def rms_norm(x, weight, eps):
    rms = math.sqrt(sum(value**2 for value in x) / len(x) + eps)
    return [value / rms * (1 + w) for value, w in zip(x, weight, strict=True)]


def rope(x, position, base, divisor):
    """Rotate the complex numbers whose real and imaginary parts are channels i and i + h/2."""
    half = len(x) // 2
    turned = [0.0] * len(x)
    for i in range(half):
        angle = position / divisor / base ** (2 * i / len(x))
        z = complex(x[i], x[i + half]) * cmath.exp(1j * angle)
        turned[i], turned[i + half] = z.real, z.imag
    return turned


def soft_cap(x, cap):
    return cap * math.tanh(x / cap)


def attention_mask(query_position, key_position, window):
    if key_position > query_position:
        return False
    return window is None or key_position > query_position - window


def masked_softmax(scores, mask):
    largest = max(score for score, seen in zip(scores, mask, strict=True) if seen)
    weights = [math.exp(score - largest) if seen else 0.0 for score, seen in zip(scores, mask, strict=True)]
    return [weight / sum(weights) for weight in weights]


def gelu(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def feed_forward(x, weights):
    """Compute GeGLU with the weights of one layer, named `mlp.gate_proj.weight` and so on."""
    gate = linear(x, weights["mlp.gate_proj.weight"])
    up = linear(x, weights["mlp.up_proj.weight"])
    hidden = [gelu(g) * u for g, u in zip(gate, up, strict=True)]
    return linear(hidden, weights["mlp.down_proj.weight"])


def head(x, index, size):
    return x[index * size : (index + 1) * size]


def attention(xs, weights, config, layer):
    """Compute attention over xs, one vector for each token; weights are named `self_attn.q_proj.weight` and so on."""
    h, G = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    base, divisor = config.rope(layer)

    def projected(x, position, which, index):
        vector = head(linear(x, weights[f"self_attn.{which}_proj.weight"]), index, h)
        if config.has_qk_norm:
            vector = rms_norm(vector, weights[f"self_attn.{which}_norm.weight"], config.rms_norm_eps)
        return rope(vector, position, base, divisor)

    outputs = []
    for t, x in enumerate(xs):
        mixed = []
        for query_head in range(config.num_attention_heads):
            key_head = query_head // G
            q = projected(x, t, "q", query_head)
            scores = []
            for s, y in enumerate(xs):
                score = dot(q, projected(y, s, "k", key_head)) / math.sqrt(config.query_pre_attn_scalar)
                if config.attn_logit_softcapping:
                    score = soft_cap(score, config.attn_logit_softcapping)
                scores.append(score)
            mask = [attention_mask(t, s, config.window(layer)) for s in range(len(xs))]
            probs = masked_softmax(scores, mask)
            values = [head(linear(y, weights["self_attn.v_proj.weight"]), key_head, h) for y in xs]
            mixed += [dot(probs, [value[channel] for value in values]) for channel in range(h)]
        outputs.append(linear(mixed, weights["self_attn.o_proj.weight"]))
    return outputs


def block(xs, weights, config, layer):
    """Compute one layer, with the weights of that layer."""

    def norm(name, ys):
        return [rms_norm(y, weights[f"{name}.weight"], config.rms_norm_eps) for y in ys]

    ys = attention(norm("input_layernorm", xs), weights, config, layer)
    if config.model_type == "gemma":
        xs = [add(x, y) for x, y in zip(xs, ys, strict=True)]
        ys = [feed_forward(y, weights) for y in norm("post_attention_layernorm", xs)]
    else:
        xs = [add(x, y) for x, y in zip(xs, norm("post_attention_layernorm", ys), strict=True)]
        ys = [feed_forward(y, weights) for y in norm("pre_feedforward_layernorm", xs)]
        ys = norm("post_feedforward_layernorm", ys)
    return [add(x, y) for x, y in zip(xs, ys, strict=True)]


def logits(ids, weights, config):
    """Return the logits of the next token after each of the ids; weights have their published names."""
    weights = {name: weight.tolist() for name, weight in weights.items()}
    embedding = weights["model.embed_tokens.weight"]
    xs = [embed(token, embedding) for token in ids]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        xs = block(xs, own, config, layer)
    result = []
    for x in xs:
        scores = linear(rms_norm(x, weights["model.norm.weight"], config.rms_norm_eps), embedding)
        if config.final_logit_softcapping:
            scores = [soft_cap(score, config.final_logit_softcapping) for score in scores]
        result.append(scores)
    return result
