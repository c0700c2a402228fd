# %% [markdown]
# # 13. The backward pass by hand
#
# After this you can write the backward function of every operation in Gemma 2, check each by finite differences, and
# say in which direction each weight has to move to make a text more likely. About 35 minutes. The [Gemma 2
# report](https://arxiv.org/abs/2408.00118) takes gradients for granted; here we differentiate the architecture of its
# section 2, for the training of its section 3.
#
# Before this: [12. Speed](12_speed.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import numpy as np
from support import check, check_file, lines
from support.exercises import backward_by_hand as exercises
from support.figures import backward_by_hand as figures
from support.plots import pieces, use_style

import gemma_np
from gemma_np.model.attention import attention_backward, grouped_matmul, grouped_matmul_backward
from gemma_np.model.attention_mask import attention_mask, masked_softmax, masked_softmax_backward
from gemma_np.model.block import block, block_backward
from gemma_np.model.embedding import embed, embed_backward
from gemma_np.model.feed_forward import feed_forward, feed_forward_backward, gelu, gelu_and_slope
from gemma_np.model.rms_norm import rms_norm, rms_norm_backward
from gemma_np.model.rope import rope, rope_backward, rope_cos_sin
from gemma_np.model.soft_cap import soft_cap, soft_cap_backward
from gemma_np.model.transformer import lm_head, lm_head_backward, transformer, transformer_backward
from gemma_np.training.losses import cross_entropy
from gemma_np.training.task import Batch, next_token
from gemma_np.training.trainer import loss_and_gradients
from gemma_np.weights.linear import float_product, linear, linear_backward

# %%
use_style()
model = gemma_np.load(dtype="float64")  # float64, so rounding errors do not hide our mistakes
config, weights, tokenizer = model.config, model.weights, model.tokenizer
text = (
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer the slings and arrows of "
    "outrageous fortune, or to take arms against a sea of troubles, and by opposing end them."
)
ids = np.array(tokenizer.encode(text))
draw = np.random.default_rng(0).standard_normal
print(f"T = {len(ids) - 1} tokens are read, and as many are predicted")

# %% [markdown]
# ## The idea: pass gradients backwards
#
# Training asks for every weight: if it grows a little, how much does the loss $L$ grow? For any array $x$ in the model,
# let $dx$ be the answers: $dx_i = \partial L / \partial x_i$, an array of the same shape as $x$. Suppose a line
# computes $y = f(x)$, and $dy$ is known. Then the chain rule gives $dx$:
#
# $$dx_i = \sum_j dy_j \, \frac{\partial y_j}{\partial x_i}$$
#
# This is the **vector-Jacobian product** of $dy$ with the matrix of all derivatives, the Jacobian of $f$. The Jacobian
# itself is never built. For a single down-projection and this short text it would be huge:

# %%
T, D, F = len(ids) - 1, config.hidden_size, config.intermediate_size
jacobian = (T * D) * (T * F) * 8  # bytes: one derivative for each pair of numbers
product = (T * D + F * D) * 8
print(f"Jacobian {jacobian / 1e9:.1f} GB; dy [T, D] and the weight [D, F] {product / 1e6:.1f} MB")

# %% tags=["check"]
assert jacobian > 1e9 > 100 * product

# %% [markdown]
# Instead, each forward function has a backward function, which takes $dy$ and returns $dx$. It costs about twice as
# much: a product has two factors, and the gradient of each is a product again. The last line of the forward pass is
# undone first, because its $dy$ is known first. **Each backward line undoes a forward line**, and three rules cover
# nearly everything:
#
# - Where the forward pass *adds*, each term gets the gradient unchanged.
# - Where it *uses an array twice*, the gradients of the uses are *added*.
# - Where it *multiplies*, each factor gets $dy$ times the other factor.
#
# ## The check: finite differences
#
# A wrong gradient raises no error; a model trained with it just learns less well. So we compare every backward function
# with the definition of a derivative: move one number a little, up and down, and see how the loss changes. This takes
# two forward passes per number, so it is no way to train, but it is independent of the backward function:


# %%
def measured(loss, x, step=1e-5):
    """How fast loss(x) grows with each number of x, by central differences."""
    slopes = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        move = np.zeros_like(x)
        move[place] = step
        slopes[place] = (loss(x + move) - loss(x - move)) / (2 * step)
    return slopes


def check_gradient(gradient, loss, x):
    """Fail unless the gradient of loss(x) is the measured one."""
    if not np.allclose(gradient, measured(loss, x), rtol=1e-6, atol=1e-8):
        raise ValueError("the gradient is not the measured one")


# %% [markdown]
# For one operation, any $dy$ will do: choose it at random, and take $L = \sum_j dy_j \, f(x)_j$, whose gradient with
# respect to $f(x)$ is that $dy$. Here it is for the norm of [tutorial 4](04_rms_norm.ipynb). How large should the step
# be?

# %%
x, weight, dy, eps = draw(8), draw(8), draw(8), config.rms_norm_eps
dx, dweight = rms_norm_backward(dy, x, weight, eps)
check_gradient(dx, lambda x: (dy * rms_norm(x, weight, eps)).sum(), x)
check_gradient(dweight, lambda weight: (dy * rms_norm(x, weight, eps)).sum(), weight)

# %%
steps = np.geomspace(1e-13, 1, 40)
along = draw(8)
true = (dx * along).sum()  # how the loss changes along that direction


def errors(dtype, one_sided=False):
    """The relative error of the change that is measured along a direction, for each step."""
    x0, d, w, out = (array.astype(dtype) for array in (x, along, weight, dy))
    found = []
    for step in steps.astype(dtype):
        ahead = (out * rms_norm(x0 + step * d, w, eps)).sum()
        behind = (out * rms_norm(x0 if one_sided else x0 - step * d, w, eps)).sum()
        found.append((ahead - behind) / (step if one_sided else 2 * step))
    return np.abs(np.array(found) / true - 1)


# %%
error_of = {
    "up and down, float64": errors(np.float64),
    "up only, float64": errors(np.float64, one_sided=True),
    "up and down, float32": errors(np.float32),
}
figures.steps(steps, error_of)

for name, found in error_of.items():
    print(f"{name}: best {found.min():.0e}, with h = {steps[found.argmin()]:.0e}")

# %% tags=["check"]
both, one, coarse = error_of.values()
assert both.min() < 1e-9 < 1e-5 < min(both[0], both[-1])  # the V
assert both[np.abs(np.log10(steps) + 5).argmin()] < 1e-8 and coarse.min() > 1e-6 and np.median(coarse) > 1e-2
assert both[steps > 1e-6].min() < one.min() and both.min() < coarse.min() / 1000

# %% [markdown]
# Two errors make a V. On the right, the function curves within the step: this error falls with $h$, or with $h^2$ for
# steps up and down, because the second-order term cancels. On the left, the two losses are so similar that rounding
# dominates their difference, divided by a small $h$. In between, with $h$ around $10^{-5}$ and in float64, a correct
# gradient agrees to more than eight digits. In float32 no step gives more than six, and most give hardly any: where the
# line is flat at 1, the step was lost in rounding.
#
# ## Linear: the other factor
#
# For $y = x W^\top$ with $x$ [T, in] and $W$ [out, in], and so $y$ and $dy$ [T, out]:
#
# $$dx = dy \, W \qquad dW = dy^\top x$$
#
# The shapes alone determine this: there is only one way to get [T, in] from $dy$ and $W$. The weight is used for each
# of the $T$ tokens, so its gradient is a sum over them, which the product $dy^\top x$ computes.

# %%
lines(float_product, "return x @")

# %%
lines(linear_backward, "return")

# %%
x, W, dy = draw((3, 4)), draw((5, 4)), draw((3, 5))
dx, dW = linear_backward(dy, x, W)
check_gradient(dx, lambda x: (dy * linear(x, W)).sum(), x)
check_gradient(dW, lambda W: (dy * linear(x, W)).sum(), W)

# %% [markdown]
# ## RMSNorm: the part along x is removed
#
# One token is enough, $x$ [D], since no token touches another. We derive line by line, and measure each line before we
# build on it. The norm is $y = n \, (1 + w)$ with $n = x / r$ and $r = \sqrt{\frac{1}{D} \sum_k x_k^2 + \varepsilon}$.
# First, how does the root mean square $r$ [a number] change with $x_i$? The derivative of $\sqrt{u}$ is $1 / (2 \sqrt
# u)$, that of $u = \frac{1}{D} \sum_k x_k^2 + \varepsilon$ is $2 x_i / D$:
#
# $$\frac{\partial r}{\partial x_i} = \frac{1}{2 r} \cdot \frac{2 x_i}{D} = \frac{x_i}{D \, r} = \frac{n_i}{D}$$


# %%
def rms(x):
    return np.sqrt(np.mean(x * x) + eps)


x, weight, dy = draw(5), draw(5), draw(5)
D, r, n = len(x), rms(x), x / rms(x)
check_gradient(n / D, rms, x)

# %% [markdown]
# Next, $n_j = x_j / r$. Channel $i$ is in the numerator if $j = i$ ($\delta_{ij}$ is 1 then, otherwise 0), and always in
# the denominator, through $r$. By the quotient rule, with the line above:
#
# $$\frac{\partial n_j}{\partial x_i} = \frac{\delta_{ij}}{r} - \frac{x_j}{r^2} \, \frac{\partial r}{\partial x_i}
# = \frac{1}{r} \Big(\delta_{ij} - \frac{n_i \, n_j}{D}\Big)$$

# %%
jacobian = (np.eye(D) - np.outer(n, n) / D) / r  # row j, column i
for j in range(D):
    check_gradient(jacobian[j], lambda x, j=j: x[j] / rms(x), x)

# %% [markdown]
# Now the chain rule. The product $y = n \, (1 + w)$ gives each factor $dy$ times the other one: $dn = dy \, (1 + w)$,
# and $dw = dy \, n$, summed over the tokens, since all of them use the same $w$. Then
#
# $$dx_i = \sum_j dn_j \, \frac{\partial n_j}{\partial x_i}
# = \frac{1}{r} \Big(dn_i - n_i \cdot \frac{1}{D} \sum_j dn_j \, n_j\Big)
# \qquad\text{so}\qquad
# dx = \frac{dn - n \cdot \mathrm{mean}(dn \cdot n)}{r}$$

# %%
dn = dy * (1 + weight)
dx = (dn - n * np.mean(dn * n)) / r
check_gradient(dx, lambda x: (dy * rms_norm(x, weight, eps)).sum(), x)
check_gradient(dy * n, lambda weight: (dy * rms_norm(x, weight, eps)).sum(), weight)

# %% tags=["check"]
np.testing.assert_allclose(dx, dn @ jacobian)  # the same sum, without the Jacobian

# %% [markdown]
# What does the second term do? A longer $x$ gives the same $y$: the norm undoes the length. So the gradient must not have
# a part along $x$, and the second term removes it. Only $\varepsilon$ leaves a trace of it.

# %%
print(f"dn has a part along n: {np.mean(dn * n):.3f}; dx has {np.mean(dx * n):.1e}")

# %% tags=["check"]
assert abs(np.mean(dx * n)) < 1e-5 < abs(np.mean(dn * n))

# %%
lines(rms_norm, "return")

# %%
lines(rms_norm_backward, "n = x", "dn =", "dweight =", "dx =")

# %% [markdown]
# ## The soft cap: its slope from its output
#
# For $y = c \tanh(x / c)$, the derivative of $\tanh$ is $1 - \tanh^2$, and the two $c$ cancel. We need not compute the
# tanh again, because it is $y / c$:
#
# $$dx = dy \, \big(1 - (y / c)^2\big)$$

# %%
lines(soft_cap, "y")

# %%
lines(soft_cap_backward, "slope")

# %%
x, dy, cap = draw((3, 4)), draw((3, 4)), 2.0
check_gradient(soft_cap_backward(dy, soft_cap(x, cap), cap), lambda x: (dy * soft_cap(x, cap)).sum(), x)

# %% [markdown]
# ## RoPE: rotate back
#
# A rotation $y = R x$ is undone by $R^\top$, which is the rotation by the opposite angle: the same function, with
# $-\sin$.

# %%
lines(rope, "first, second", "return")

# %%
lines(rope_backward, "return")

# %%
cos, sin = rope_cos_sin(range(3), 4, 10_000.0, 1.0, np.float64)
x, dy = draw((3, 4)), draw((3, 4))  # [T, h]
check_gradient(rope_backward(dy, cos, sin), lambda x: (dy * rope(x, cos, sin)).sum(), x)

# %% tags=["check"]
np.testing.assert_allclose(rope_backward(rope(x, cos, sin), cos, sin), x, atol=1e-14)  # there, and back again

# %% [markdown]
# ## Masked softmax: only differences count
#
# Take one query, the scores $s$ [S] of its keys and their probabilities $p_j = e^{s_j} / Z$, which share one denominator
# $Z = \sum_k e^{s_k}$. The logarithm is easier than the fraction: $\log p_j = s_j - \log Z$. Begin with $\log Z$. The
# derivative of a logarithm is that of its argument, divided by it, and $e^{s_i}$ is its own derivative:
#
# $$\frac{\partial \log Z}{\partial s_i} = \frac{1}{Z} \, \frac{\partial Z}{\partial s_i} = \frac{e^{s_i}}{Z} = p_i$$

# %%
s, dp = draw(5), draw(5)
p = np.exp(s) / np.exp(s).sum()
check_gradient(p, lambda s: np.log(np.exp(s).sum()), s)

# %% [markdown]
# Raising one score raises its own logarithm by as much, and lowers all of them through $Z$:
#
# $$\frac{\partial \log p_j}{\partial s_i} = \delta_{ij} - p_i$$

# %%
for j in range(5):
    check_gradient(np.eye(5)[j] - p, lambda s, j=j: s[j] - np.log(np.exp(s).sum()), s)

# %% [markdown]
# Back to the probabilities. The derivative of $\log p_j$ is that of $p_j$ divided by $p_j$, so
#
# $$\frac{\partial p_j}{\partial s_i} = p_j \, (\delta_{ij} - p_i)$$

# %%
jacobian = p[:, None] * (np.eye(5) - p)  # row j, column i
for j in range(5):
    check_gradient(jacobian[j], lambda s, j=j: (np.exp(s) / np.exp(s).sum())[j], s)
print("each column sums to", np.abs(jacobian.sum(axis=0)).round(12), "since the probabilities always sum to 1")

# %% tags=["check"]
np.testing.assert_allclose(jacobian.sum(axis=0), 0, atol=1e-12)

# %% [markdown]
# And the chain rule, in which $\delta_{ij}$ picks one term of the sum:
#
# $$ds_i = \sum_j dp_j \, p_j \, (\delta_{ij} - p_i) = p_i \, \Big(dp_i - \sum_j dp_j \, p_j\Big)$$

# %%
ds = p * (dp - (dp * p).sum())
check_gradient(ds, lambda s: (dp * np.exp(s) / np.exp(s).sum()).sum(), s)

# %% tags=["check"]
np.testing.assert_allclose(ds, dp @ jacobian, atol=1e-12)  # the same sum, without the Jacobian

# %% [markdown]
# The sum is the mean of $dp$, weighted by the probabilities: a score gets a positive gradient if its $dp$ is above that
# mean. A masked key has $p_i = 0$, so its gradient is zero, and the backward function does not need the mask.

# %%
lines(masked_softmax, "hide =", "probs")

# %%
lines(masked_softmax_backward, "return")

# %%
scores, dprobs, mask = draw((2, 3, 3)), draw((2, 3, 3)), attention_mask(range(3), range(3), None)  # [H, T, S], [T, S]
dscores = masked_softmax_backward(dprobs, masked_softmax(scores, mask))
check_gradient(dscores, lambda scores: (dprobs * masked_softmax(scores, mask)).sum(), scores)

# %% tags=["check"]
np.testing.assert_allclose(dscores.sum(axis=-1), 0, atol=1e-12)  # what one key gains, the others lose
assert (dscores[:, ~mask] == 0).all()

# %% [markdown]
# ## Grouped queries: a sum over the group
#
# The $G$ query heads of a group read the same keys and values, which are used more than once, so their gradients are
# added. With the probabilities $P_g$ [T, S] of query head $g$ and $dO_g$ [T, h], the gradient of its output:
#
# $$dP_g = dO_g \, V^\top \qquad dV = \sum_{g \in \text{group}} P_g^\top \, dO_g$$
#
# and likewise for queries and keys. When the heads of a group are stacked into one tall matrix [G T, S], the product
# computes the sum:

# %%
lines(grouped_matmul, "stacked")

# %%
lines(grouped_matmul_backward, "left =", "right =", "return")

# %%
lines(
    attention_backward,
    "dprobs =",
    "dv =",
    "if config.attn",
    "dscores =",
    "dq = grouped_matmul",
    "dk = grouped_matmul_backward",
)

# %%
probs, values, dcontext = draw((4, 3, 3)), draw((2, 3, 5)), draw((4, 3, 5))  # [H, T, S], [K, S, h], [H, T, h]
dprobs = grouped_matmul(dcontext, values.swapaxes(-1, -2))  # [H, T, S]
dvalues = grouped_matmul_backward(probs, dcontext, kv_heads=2)  # [K, S, h]
check_gradient(dvalues, lambda values: (dcontext * grouped_matmul(probs, values)).sum(), values)
check_gradient(dprobs, lambda probs: (dcontext * grouped_matmul(probs, values)).sum(), probs)

# %% [markdown]
# ## GELU: one number at a time
#
# GELU works on each number alone, so its derivative is that of a function of one variable. With
# $u = \sqrt{2/\pi} \, (x + 0.044715 \, x^3)$, it is $\mathrm{gelu}(x) = \frac{x}{2} (1 + \tanh u)$. From the inside out,
# first the polynomial:
#
# $$\frac{du}{dx} = \sqrt{2/\pi} \, (1 + 3 \cdot 0.044715 \, x^2)$$


# %%
def inner(x):
    return np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)


x = np.linspace(-4, 4, 9)
du = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
check_gradient(du, lambda x: inner(x).sum(), x)

# %% [markdown]
# Then the tanh, which is $(e^u - e^{-u}) / (e^u + e^{-u})$. The derivative of the numerator is the denominator, and the
# reverse, so the quotient rule gives
#
# $$\frac{d \tanh u}{du} = \frac{(e^u + e^{-u})^2 - (e^u - e^{-u})^2}{(e^u + e^{-u})^2} = 1 - \tanh^2 u$$

# %%
u = inner(x)
check_gradient(1 - np.tanh(u) ** 2, lambda u: np.tanh(u).sum(), u)

# %% tags=["check"]
plus, minus = np.exp(u), np.exp(-u)
by_quotient = ((plus + minus) ** 2 - (plus - minus) ** 2) / (plus + minus) ** 2
np.testing.assert_allclose(by_quotient, 1 - np.tanh(u) ** 2, atol=1e-12)

# %% [markdown]
# And the product of $x / 2$ and $1 + \tanh u$: the derivative of the first times the second, and the first times the
# derivative of the second, which is a chain of the two lines above:
#
# $$\mathrm{gelu}'(x) = \frac{1 + \tanh u}{2} + \frac{x}{2} \, (1 - \tanh^2 u) \, \frac{du}{dx}$$

# %%
slope = (1 + np.tanh(u)) / 2 + x / 2 * (1 - np.tanh(u) ** 2) * du
check_gradient(slope, lambda x: gelu(x).sum(), x)
print("x    ", *(f"{number:6.0f}" for number in x))
print("slope", *(f"{number:6.3f}" for number in slope))

# %% tags=["check"]
np.testing.assert_allclose(slope, gelu_and_slope(x)[1], atol=1e-12)
assert abs(slope[0]) < 1e-3 and slope[4] == 0.5 and abs(slope[-1] - 1) < 1e-3  # off, half, on
assert slope.min() < 0 and slope.max() > 1

# %% [markdown]
# Far to the left the slope is 0, at zero it is one half, far to the right 1: a switch that turns on gradually. In between
# it goes below 0 and above 1. `gelu_and_slope` computes both, since they share the tanh.
#
# ## GeGLU: each factor gets the other
#
# For $\mathrm{hidden} = \mathrm{gelu}(\mathrm{gate}) \cdot \mathrm{up}$, all [T, F]:
#
# $$d\mathrm{up} = d\mathrm{hidden} \cdot \mathrm{gelu}(\mathrm{gate}) \qquad
# d\mathrm{gate} = d\mathrm{hidden} \cdot \mathrm{up} \cdot \mathrm{gelu}'(\mathrm{gate})$$

# %%
lines(feed_forward, "hidden =")

# %%
lines(feed_forward_backward, "activation, slope", "dup =", "slope *=", "dgate =", "return")

# %%
gate, up, dhidden = draw((3, 4)), draw((3, 4)), draw((3, 4))
activation, slope = gelu_and_slope(gate)
check_gradient(dhidden * activation, lambda up: (dhidden * gelu(gate) * up).sum(), up)
check_gradient(dhidden * up * slope, lambda gate: (dhidden * gelu(gate) * up).sum(), gate)

# %% [markdown]
# ## The embedding: add once per occurrence
#
# A lookup uses a row once for each occurrence of its token in the text, so the gradients of all occurrences are added.
# `gradient[ids] += ...` looks right but is wrong: NumPy writes each row once, and the last occurrence wins. `np.add.at`
# adds all of them.

# %%
lines(embed, "return")

# %%
lines(embed_backward, "add.at")

# %%
few, E, dx = np.array([1, 4, 1]), draw((5, 2)), draw((3, 2))  # token 1 occurs twice
dE = embed_backward(dx, few, E)
check_gradient(dE, lambda E: (dx * embed(few, E)).sum(), E)

wrong = np.zeros_like(E)
wrong[few] += dx * np.sqrt(2)
for token in (1, 4):
    print(f"token {token}: gradient {dE[token].round(3)}, by += {wrong[token].round(3)}")

# %% tags=["check"]
assert np.allclose(wrong[4], dE[4]) and not np.allclose(wrong[1], dE[1])

# %% [markdown]
# ## Cross-entropy: softmax minus one-hot
#
# At the very end is the loss of one position, $\ell = -\log P_t$ for the token $t$ that really came next. With $P =
# \mathrm{softmax}(z)$ over the logits $z$ [V], $\ell = \log \sum_j e^{z_j} - z_t$, and so
#
# $$dz = P - \mathrm{onehot}(t)$$
#
# Each logit is pushed down in proportion to its probability, and the logit of the right token is pushed up by 1 minus
# its probability. When the prediction is perfect, the gradient is zero.

# %%
lines(cross_entropy, "losses", "dlogits")

# %%
z, target = draw((3, 6)), np.array([2, 0, 5])
losses, dz = cross_entropy(z, target)
check_gradient(dz, lambda z: cross_entropy(z, target)[0].sum(), z)

# %% [markdown]
# In our text, here is a position where the right token got about a third of the probability:

# %%
logits = model.logits(ids)  # [T + 1, V]
losses, dlogits = cross_entropy(logits[:-1], ids[1:])
position = np.abs(losses - np.log(3)).argmin()
right = ids[position + 1]
order = np.argsort(-np.abs(dlogits[position]))[:10]
read = tokenizer.decode(ids[position - 6 : position + 1].tolist())
figures.logit_gradients(dlogits[position][order], pieces(order, tokenizer), order == right, read)
print(f"the right one, {tokenizer.piece(int(right))!r}, has {dlogits[position, right]:.3f}; the sum of all is 0")

# %% tags=["check"]
assert order[0] == right and (dlogits[position] < 0).sum() == 1
np.testing.assert_allclose(dlogits.sum(axis=-1), 0, atol=1e-12)

# %% [markdown]
# ## The block: along the residual stream
#
# In `x + y` both terms get $dy$ unchanged. So the gradient flows down the residual stream past each layer, and the
# gradients through attention and feed-forward are added to it. On this path it does not vanish, however deep the model
# is.

# %%
lines(block, "x + y")

# %%
lines(block_backward, "dz = dy", "dmid = dy +", "dz = dmid", "return dmid")

# %% [markdown]
# `norm_backward` is a small function inside it. Each of the four norms has an input $z$, which the record has
# (`mlp.down`, `resid_mid`, `self_attn.o`, and the stream before the layer), and two results: the gradient of $z$, which
# goes on, and that of the weight, which is kept under the weight's name.

# %%
lines(block_backward, "def norm_backward", "weight = f", "rms_norm_backward", "return dz")

# %% [markdown]
# So a half of the block is undone in three steps: its post-norm, the half itself, its pre-norm; then comes the sum.

# %% [markdown]
# In the whole model the embedding is used twice, for the lookup and as the head (the tied head of table 1). The
# gradient from the head comes first, and that from the lookup is added to it:

# %%
lines(lm_head_backward, "gradients[name]")

# %%
lines(transformer_backward, "for layer in reversed", "block_backward", "embed_backward")

# %% [markdown]
# ## The whole model
#
# The backward functions need the intermediates of the forward pass, so it runs with a record. The loss of a text is the
# mean over its positions, and `masked_mean` divides $dz$ accordingly. Here is everything together:

# %%
lines(loss_and_gradients, "logits =", "value, dlogits", "dx =", "transformer_backward")

# %%
batch = Batch(ids[None])  # [B, T + 1], B = 1
loss, gradients, record = loss_and_gradients(weights, config, batch, next_token)
print(f"loss {loss:.4f} nats; {len(gradients)} gradients, {sum(g.size for g in gradients.values()):,} numbers")

# %% tags=["check"]
assert all(gradients[name].shape == weights[name].shape for name in weights)
np.testing.assert_allclose(loss, losses.mean())

# %% [markdown]
# A million derivatives are too many to measure. A few random ones are enough, one in each of several random weights: a
# mistake in any backward function makes all gradients after it wrong.


# %%
def loss_with(name, place, change):
    """The loss when one number of one weight is changed."""
    changed = {**weights, name: weights[name].copy()}
    changed[name][place] += change
    logits = lm_head(transformer(ids[:-1], changed, config), changed, config)
    return cross_entropy(logits, ids[1:])[0].mean()


# %%
generator, slopes = np.random.default_rng(0), []
print(f"{'weight':56} {'gradient':>12} {'measured':>12}")
for name in generator.choice(sorted(weights), 8, replace=False):
    place = tuple(generator.integers(size) for size in weights[name].shape)
    slope = (loss_with(name, place, 1e-4) - loss_with(name, place, -1e-4)) / 2e-4
    slopes.append((gradients[name][place], slope))
    print(f"{name.removeprefix('model.'):56} {gradients[name][place]:12.8f} {slope:12.8f}")

# %% tags=["check"]
np.testing.assert_allclose(*np.transpose(slopes), rtol=1e-4, atol=1e-8)

# %% [markdown]
# What are gradients for? A gradient points in the direction in which the loss grows, so a small step in the opposite
# direction makes it shrink, and the text becomes more likely. That is training, except for the details, which are in
# [tutorial 14](14_training_a_tiny_gemma.ipynb).

# %%
moved = {name: weight - 0.1 * gradients[name] for name, weight in weights.items()}
after, _, _ = loss_and_gradients(moved, config, batch, next_token)
print(f"loss {loss:.3f} nats, and {after:.3f} after one step of 0.1 against the gradient")

# %% tags=["check"]
assert after < loss - 0.5

# %% [markdown]
# ## Which weights have the largest gradients
#
# Here is the size of each weight's gradient on this text, as a root mean square over its elements, so large and small
# matrices are comparable.

# %%
kinds = [f"self_attn.{letter}_proj" for letter in "vokq"]
kinds += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
kinds += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
sizes = {
    kind.split(".")[-1]: [
        np.sqrt(np.mean(gradients[f"model.layers.{layer}.{kind}.weight"] ** 2))
        for layer in range(config.num_hidden_layers)
    ]
    for kind in kinds
}
figures.gradient_sizes(sizes)

# %% tags=["check"]
v, o, k, q = (np.array(sizes[f"{letter}_proj"]) for letter in "vokq")  # [layers] each
assert (v > o).all() and (o > q).all() and (v > 2 * k).all() and (k > q).all()

# %% [markdown]
# In every layer, the value matrix has a larger gradient than the query and key matrices. A change of a value goes
# straight into the output; a change of a query or a key only shifts probability between values, through a softmax that
# removes whatever all scores have in common. And the key matrix has a larger gradient than the query matrix: one reason
# is that each key head collects the gradients of a group of two query heads.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The backward function of the soft cap.
#
# <details><summary>Hint 1</summary>
#
# You do not need x; y contains $\tanh(x / c)$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The tanh is `y / cap`, and the slope is 1 minus its square.
#
# </details>


# %%
def cap_gradient(dy, y, cap):
    """dy [...], y = cap * tanh(x / cap) [...] -> dx [...]"""
    ...


check(cap_gradient, exercises.SOFT_CAP)

# %% [markdown]
# **2.** The backward function of softmax.
#
# <details><summary>Hint 1</summary>
#
# Each query has a sum of its own; `np.sum` has the arguments `axis` and `keepdims`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The sum is that of `dprobs * probs` over the keys. Subtract it from `dprobs`, then multiply by `probs`.
#
# </details>


# %%
def softmax_gradient(dprobs, probs):
    """dprobs and probs [..., T, S] -> dscores [..., T, S]"""
    ...


check(softmax_gradient, exercises.SOFTMAX)

# %% [markdown]
# **3.** The gradient of the values that a group shares.
#
# <details><summary>Hint 1</summary>
#
# Query heads 0 to G - 1 share head 0, the next G share head 1, and so on.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# First the product for each query head, `probs.swapaxes(-1, -2) @ dcontext`: [H, S, h].
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Then reshape H to [K, G], and sum over the axis of G.
#
# </details>


# %%
def shared_gradient(probs, dcontext, kv_heads):
    """probs [H, T, S], dcontext [H, T, h] -> dvalues [K, S, h], K = kv_heads"""
    ...


check(shared_gradient, exercises.SHARED)

# %% [markdown]
# **4.** The block, assembled from the backward functions of its pieces. `back.attention(dz)` and
# `back.feed_forward(dz)` return the gradient of their piece's input, and `back.norm(dz, z, name)` that of $z$, the
# *input* of the norm of this name. (The gradients of the weights are put aside.) The norms are `input_layernorm`,
# `post_attention_layernorm`, `pre_feedforward_layernorm` and `post_feedforward_layernorm`; their inputs are `x` and
# three of the records: `resid_mid`, the stream between the halves, and `self_attn.o` and `mlp.down`, the outputs of
# attention and feed-forward.
#
# <details><summary>Hint 1</summary>
#
# Write the forward pass on paper, eight lines: norm, attention, norm, `x + y`; norm, feed-forward, norm, `x + y`. Now
# undo them from the last one up.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# At `x + y` both terms get the whole gradient. So it takes two ways, into the half and past it, and where they meet
# again you add.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The feed-forward half: `dz = back.norm(dy, record["mlp.down"], "post_feedforward_layernorm")`, then
# `back.feed_forward(dz)`, then the norm whose input is `resid_mid`; add `dy`. That sum is to the half of attention what
# `dy` was to this one.
#
# </details>


# %%
def block_gradient(dy, x, record, back):
    """dy and x [..., T, D], record of the layer {name: array}, back: the pieces -> dx [..., T, D]"""
    ...


check(block_gradient, exercises.BLOCK)

# %% [markdown]
# ## Now in your file
#
# Write `log_softmax` and `cross_entropy`, then the backward functions up to `gemma_backward`. They get the record of
# the forward pass, which your tape has kept. The check compares the loss and all gradients, and tries the usual
# mistakes if one differs.

# %%
check_file("my_gemma.py", upto="gradients")

# %% [markdown]
# The solutions are in [solutions/13_backward_by_hand.py](solutions/13_backward_by_hand.py), those of your file in
# [solutions/my_gemma](solutions/my_gemma/13_backward_by_hand.py).
#
# ## Further reading
#
# - [gemma_np/model](../gemma_np/model): each forward function has its backward beside it;
#   [attention.py](../gemma_np/model/attention.py) has the longest.
# - [tests/support/finite_differences.py](../tests/support/finite_differences.py): a sharper version of this check: one
#   random direction for all arguments, two step sizes, extrapolated.
# - Baydin et al., [Automatic Differentiation in Machine Learning: a Survey](https://arxiv.org/abs/1502.05767): how
#   frameworks derive these functions automatically.
#
# Next: [14. Training a tiny Gemma](14_training_a_tiny_gemma.ipynb).
