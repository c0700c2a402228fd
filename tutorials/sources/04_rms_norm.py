# %% [markdown]
# # 4. RMSNorm, and why 1 + w
#
# After this you can normalize a vector as Gemma does, say what the norm keeps and what it removes, and explain why 1 is
# added to the stored weight. About 15 minutes. In the [Gemma 2 report](https://arxiv.org/abs/2408.00118): section 2,
# "Post-norm and pre-norm with RMSNorm"; the norm itself is from [Zhang and Sennrich](https://arxiv.org/abs/1910.07467).
#
# Before this: [3. The embedding and the head](03_embedding_and_head.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import math

import numpy as np
from support import check, check_file, lines
from support.exercises import rms_norm as exercises
from support.figures import rms_norm as figures
from support.plots import pieces, use_style

import gemma_np
from gemma_np.model.rms_norm import rms_norm
from gemma_np.oracle.mistakes import inject_mistakes
from gemma_np.oracle.mistakes.norms import norm_no_plus1

# %%
use_style()
model = gemma_np.load()
ids = model.tokenizer.encode("To be, or not to be, that is the question.")
tokens = pieces(ids, model.tokenizer)
record = model.trace(ids)
print(f"T = {len(ids)} tokens, D = {model.config.hidden_size} channels, {model.config.num_hidden_layers} layers")

# %% [markdown]
# ## The problem: the residual stream grows
#
# Each token has one vector of D channels that passes through the whole model: it starts as the token's embedding, and
# each layer reads it and adds its result. These vectors, [T, D] for a text, are called the *residual stream*. Nothing
# scales them down again. Here is their size after each layer of the bundled model, as a root mean square over the D
# channels. (`record` is the result of `model.trace(ids)`, as in tutorial 3; `resid_post` is the stream after a layer.)

# %%
layers = range(model.config.num_hidden_layers)
stream = np.stack([record["embedding"]] + [record[f"layers.{layer}.resid_post"] for layer in layers])  # [L + 1, T, D]
rms = np.sqrt(np.mean(stream**2, axis=-1))  # [L + 1, T]
figures.growth(rms)

growth = rms[-1].mean() / rms[0].mean()
print(f"it grows {growth:.1f}-fold in {len(layers)} layers")

# %% tags=["check"]
assert 7 < growth < 8

# %% [markdown]
# In four layers it grows more than sevenfold. A matrix that learned to read vectors of one size would have to cope with
# all of these, so attention and feed-forward each first normalize their input to one size.
#
# ## The formula
#
# For a vector $x$ [D] and a weight $w$ [D]:
#
# $$\mathrm{rms}(x) = \sqrt{\frac{1}{D} \sum_i x_i^2 + \varepsilon}
# \qquad
# \mathrm{norm}(x)_i = \frac{x_i}{\mathrm{rms}(x)} \, (1 + w_i)$$
#
# By hand, for the vector (3, 4) and the weight (0, 1), with $\varepsilon = 0$:

# %%
small, w = np.array([3.0, 4.0]), np.array([0.0, 1.0])
mean_square = (3 * 3 + 4 * 4) / 2
print(f"mean square (9 + 16) / 2 = {mean_square}, its root {math.sqrt(mean_square):.4f}")
print("divided by the root:", small / math.sqrt(mean_square))
print("times 1 + w, which is (1, 2):", small / math.sqrt(mean_square) * (1 + w))

# %% tags=["check"]
np.testing.assert_allclose(rms_norm(small, w, eps=0), small / math.sqrt(mean_square) * (1 + w))

# %% [markdown]
# After the division the mean square is 1; then the weight scales the channels. These are the lines of code. They work
# for any number of axes before the last, so for a vector, a text or a batch of texts, and each token has its own mean:

# %%
lines(rms_norm, "def", "mean_square", "return")

# %% [markdown]
# `np.vecdot(x, x)` is $\sum_i x_i^2$ in one pass, without an intermediate array of squares. $\varepsilon$ prevents a
# division by zero for a vector of zeros:

# %%
nothing = np.zeros(4)
rms_norm(nothing, weight=np.zeros(4), eps=model.config.rms_norm_eps)

# %% tags=["check"]
assert np.array_equal(rms_norm(nothing, np.zeros(4), model.config.rms_norm_eps), nothing)

# %% [markdown]
# ## What it keeps, and what it removes
#
# **Predict:** A vector becomes 100 times as long before it is normalized. How does the result change?
#
# <details><summary>Reveal</summary>
#
# It does not, apart from $\varepsilon$: the root mean square grows 100-fold as well.
#
# </details>
#
# With $w = 0$ every vector lands on a sphere of radius $\sqrt D$: its direction is kept, its length is lost. So a
# vector and 100 times that vector give the same result. Unlike LayerNorm, RMSNorm does not subtract the mean, so adding
# a constant to all channels does change the result. We try it with `resid_mid`, the stream in the middle of a layer,
# after attention and before the feed-forward.

# %%
x = record["layers.3.resid_mid"]  # [T, D]
zero = np.zeros(x.shape[-1], x.dtype)  # [D]
plain = rms_norm(x, zero, eps=model.config.rms_norm_eps)
lengths = np.linalg.norm(plain, axis=-1)  # [T]
print(f"lengths {lengths.min():.4f} to {lengths.max():.4f}, sqrt(D) = {math.sqrt(x.shape[-1]):.4f}")

longer, shifted = (rms_norm(other, zero, eps=1e-6) for other in (100 * x, x + 1))
print(f"the result changes by at most {np.abs(longer - plain).max():.0e} for 100 x", end=", ")
print(f"by {np.abs(shifted - plain).max():.2f} for x + 1")

# %% tags=["check"]
np.testing.assert_allclose(lengths, math.sqrt(x.shape[-1]), rtol=1e-5)
np.testing.assert_allclose(longer, plain, rtol=1e-4, atol=1e-6)
assert np.abs(shifted - plain).max() > 0.1

# %% [markdown]
# ## Why 1 + w
#
# The weight scales each channel up or down again. Gemma stores the difference from 1: a weight of zero means "leave the
# channel as it is", not "silence it", and training starts from $w = 0$. Weight decay pulls weights towards zero in
# training ([tutorial 14](14_training_a_tiny_gemma.ipynb)), so it would pull the norms towards the identity; here only
# matrices are decayed.
#
# These are the weights that the bundled model has learned. Each layer has four norms: attention and the feed-forward
# each have one for their input (`input`, `pre_feedforward`) and one for their output (`post_attention`,
# `post_feedforward`). [Tutorial 9](09_geglu_and_the_block.ipynb) puts them together.

# %%
norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
names = [f"layer {layer}, {norm}" for layer in layers for norm in norms]
learned = np.stack(
    [model.weights[f"model.layers.{layer}.{norm}_layernorm.weight"] for layer in layers for norm in norms]
)
figures.factors(1 + learned, names)

print(f"w between {learned.min():.2f} and {learned.max():.2f}")
small = np.count_nonzero(1 + learned < 0.1, axis=1)  # for each norm
print(f"factors below 0.1: {small.sum()}, of which {small.max()} in one norm: {names[small.argmax()]}")

# %% tags=["check"]
assert -1 <= learned.min() < -0.99 and 1 < learned.max() < 1.5
assert names[small.argmax()] == "layer 0, post_attention" and small.max() > 0.6 * small.sum()

# %% [markdown]
# No $w$ is below -1, although nothing forbids it: no norm changes the sign of a channel. A few channels are nearly
# silenced: their $w$ is close to -1. Most of these are in what attention adds in layer 0.
#
# **Predict:** Someone forgets the 1, and multiplies by w. The right model has a perplexity of 41 on our line. What is
# the perplexity then: about 50, 150 or 900?
#
# <details><summary>Reveal</summary>
#
# About 900. A channel that the model leaves as it is has $w = 0$; without the 1 it is silenced.
#
# </details>
#
# Leaving out the 1 is one of the most common mistakes in reimplementations of Gemma; adding it twice is another,
# because GGUF files already store $1 + w$. How much does the first one hurt? It is in the package's catalogue of
# mistakes. (The catalogue belongs to the *oracle*, the part of the package that finds what is wrong with a port;
# [tutorial 19](19_finding_the_bug.ipynb).) As in tutorial 3, `inject_mistakes([mistake], config, [length])` makes the
# model commit it inside the `with` block; the length is the number of tokens that are read at once.

# %%
text = "To be, or not to be, that is the question."
right = model.perplexity(text)
with inject_mistakes([norm_no_plus1], model.config, [len(ids)]):
    wrong = model.perplexity(text)
print(f"{norm_no_plus1.instead}: perplexity {wrong:.0f} instead of {right:.0f}")

# %% tags=["check"]
assert wrong > model.config.vocab_size / 3 and wrong > 15 * right and model.config.vocab_size == 2048

# %% [markdown]
# Guessing uniformly among all 2,048 tokens has a perplexity of 2,048. So with this mistake little is left of what the
# model has learned.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** Write the norm. Try it without looking at the lines above.
#
# <details><summary>Hint 1</summary>
#
# Which numbers does a result depend on? Those of its own token, so the mean runs over the last axis.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.mean` has the arguments `axis` and `keepdims`: with `keepdims=True` the mean can divide `x`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `mean_square = np.mean(x * x, axis=-1, keepdims=True)`. Divide by the root of `mean_square + eps`, multiply by `1 +
# weight`.
#
# </details>


# %%
def normalize(x, weight, eps):
    """x [..., D], weight [D] -> [..., D]"""
    ...


check(normalize, exercises.NORM)

# %% [markdown]
# **2.** The gradient of $x$, which [tutorial 13](13_backward_by_hand.ipynb) needs. With $n = x / \mathrm{rms}(x)$ and
# $g = dy \cdot (1 + w)$, it is $dx = (g - n \cdot \mathrm{mean}(g \cdot n)) / \mathrm{rms}(x)$: a longer $x$ gives the
# same result, so the second term removes the part along $x$.
#
# <details><summary>Hint 1</summary>
#
# The mean is also one number per token.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Compute the root mean square as in exercise 1, with eps; then $n$, then $g$, then the formula, one line each.
#
# </details>


# %%
def input_gradient(dy, x, weight, eps):
    """dy and x [..., D], weight [D] -> dx [..., D]"""
    ...


check(input_gradient, exercises.INPUT_GRADIENT)

# %% [markdown]
# ## Now in your file
#
# Write `rms_norm`, as in exercise 1. The functions of later tutorials are ours until you get there, so the whole model
# runs already, with your norm in all of its 17 places.

# %%
check_file("my_gemma.py", upto="input_layernorm")

# %% [markdown]
# The solutions are in [solutions/04_rms_norm.py](solutions/04_rms_norm.py), those of your file in
# [solutions/my_gemma](solutions/my_gemma/04_rms_norm.py).
#
# ## Further reading
#
# - [gemma_np/model/rms_norm.py](../gemma_np/model/rms_norm.py), the whole file: 30 lines with its backward pass.
# - [gemma_np/model/block.py](../gemma_np/model/block.py): the place of the four norms in a layer.
# - Zhang and Sennrich, [Root Mean Square Layer Normalization](https://arxiv.org/abs/1910.07467).
#
# Next: [5. Positions and RoPE](05_positions_and_rope.ipynb).
