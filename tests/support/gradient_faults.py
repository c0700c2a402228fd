"""Mistakes in a training step, made in the framework's autograd code: the forward pass is right, its gradients are not.

They were written from what people do wrong in torch, not from what the oracle plants.
"""

import sys
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch

from tests.support.framework import trainable_model

functional = torch.nn.functional


def with_gradient_of(right, other):
    """Return the value of the one, with the gradient of the other."""
    return other + (right - other).detach()


def token_losses(logits, ids):
    return functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


def right_loss(logits, ids, mask):
    return (token_losses(logits, ids) * mask).sum() / mask.sum()


def mean_of_means(logits, ids, mask):
    return ((token_losses(logits, ids) * mask).sum(1) / mask.sum(1)).mean()


def labels_shifted_twice(logits, ids, mask):
    return right_loss(logits, torch.cat([ids[:, 1:], ids[:, -1:]], 1), mask)


LOSSES = {
    "loss-over-padding": lambda logits, ids, mask: token_losses(logits, ids).mean(),
    "mean-of-means": mean_of_means,
    "targets-shifted-twice": labels_shifted_twice,
    "divided-by-all-positions": lambda logits, ids, mask: (token_losses(logits, ids) * mask).mean(),
    "sum": lambda logits, ids, mask: (token_losses(logits, ids) * mask).sum(),
}
"""What is backpropagated in place of `right_loss`."""


def tanh_of(axes):
    """Replace tanh by one without a slope, for arrays of so many axes: 4 are scores, 3 are logits."""
    right = torch.tanh
    return lambda model, module: mock.patch.object(
        torch, "tanh", lambda x: with_gradient_of(right(x), x) if x.ndim == axes else right(x)
    )


def diagonal_softmax(model, module):
    right = functional.softmax

    def softmax(x, **options):
        probs = right(x, **options)
        return with_gradient_of(probs, probs.detach() * x)

    return mock.patch.object(functional, "softmax", softmax)


def repeated(function):
    """Replace the repetition of keys and values by function(right, x, copies)."""

    def plant(model, module):
        right = module.repeat_kv
        return mock.patch.object(module, "repeat_kv", lambda x, copies: function(right(x, copies), x, copies))

    return plant


def first_of_group(right, x, copies):
    is_first = (torch.arange(right.shape[1]) % copies == 0)[:, None, None]
    return torch.where(is_first, right, right.detach())


def rotated_backward(model, module):
    right = module.apply_rotary_pos_emb

    def rotate(q, k, cos, sin, *rest, **options):
        pairs = zip(right(q, k, cos, sin, *rest, **options), right(q, k, cos, -sin, *rest, **options), strict=True)
        return tuple(with_gradient_of(*pair) for pair in pairs)

    return mock.patch.object(module, "apply_rotary_pos_emb", rotate)


def norm(function):
    """Replace every norm by function(x, weight, eps)."""

    def plant(model, module):
        kind = type(model.model.norm)
        return mock.patch.object(kind, "forward", lambda part, x: function(x, part.weight, part.eps))

    return plant


def inverse_rms(x, eps):
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def norm_without_plus1(x, weight, eps):
    n = x * inverse_rms(x, eps)
    return with_gradient_of(n * (1 + weight), n * weight.detach() + n.detach() * weight)


def parts(kind, function):
    """Replace the output of parts of the model by function(part, input, output)."""

    @contextmanager
    def plant(model, module):
        found = [part for name, part in model.named_modules() if name.endswith(kind)]
        hooks = [part.register_forward_hook(lambda part, x, y: function(part, x[0], y)) for part in found]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    return plant


def last_occurrences(part, ids, y):
    flat = ids.flatten()
    is_last = torch.tensor([token not in flat[place + 1 :] for place, token in enumerate(flat)]).reshape(ids.shape)
    return torch.where(is_last[..., None], y, y.detach())


BACKWARD = {
    "attncap-not-in-gradient": tanh_of(4),
    "finalcap-not-in-gradient": tanh_of(3),
    "softmax-sum-not-in-gradient": diagonal_softmax,
    "group-not-summed": repeated(first_of_group),
    "group-averaged": repeated(lambda right, x, copies: with_gradient_of(right, right / copies)),
    "rope-forward-in-gradient": rotated_backward,
    "rms-constant-in-gradient": norm(lambda x, weight, eps: x * inverse_rms(x, eps).detach() * (1 + weight)),
    "norm-no-plus1-in-gradient": norm(norm_without_plus1),
    "silu-slope": parts("act_fn", lambda part, x, y: with_gradient_of(y, functional.silu(x))),
    "head-gradient-missing": parts("lm_head", lambda part, x, y: functional.linear(x, part.weight.detach())),
    "lookup-gradient-missing": parts("embed_tokens", lambda part, ids, y: y.detach()),
    "embed-scale-not-in-gradient": parts(
        "embed_tokens", lambda part, ids, y: with_gradient_of(y, y / part.weight.shape[1] ** 0.5)
    ),
    "repeated-tokens-not-summed": parts("embed_tokens", last_occurrences),
}

UNKNOWN = {
    "keys-detached": parts("k_proj", lambda part, x, y: y.detach()),
    "feed-forward-detached": parts("down_proj", lambda part, x, y: y.detach()),
    "half-of-attention": parts("o_proj", lambda part, x, y: with_gradient_of(y, y / 2)),
}
"""Mistakes that are in no catalogue."""


def gradients_of(config, weights, batch, fault=None):
    """Return the loss and the gradient of every weight after a step of the framework that makes a mistake."""
    model = trainable_model(config, weights)
    ids, mask = torch.tensor(batch.ids), torch.tensor(batch.loss_mask)
    plant = (BACKWARD | UNKNOWN).get(fault)
    with ExitStack() as stack:
        if plant:
            stack.enter_context(plant(model, sys.modules[type(model).__module__]))
        loss = LOSSES.get(fault, right_loss)(model(ids).logits, ids, mask)
        loss.backward()
    gradients = {name: model.get_parameter(name).grad for name in weights}
    zero = torch.zeros(())
    found = {name: (zero.expand(weights[name].shape) if grad is None else grad) for name, grad in gradients.items()}
    return {"loss": loss.detach().numpy()} | {name: grad.numpy().copy() for name, grad in found.items()}
