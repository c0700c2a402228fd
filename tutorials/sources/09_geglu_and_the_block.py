# %% [markdown]
# # 9. GeGLU, and the block
#
# After this you can write the gated feed-forward layer, say what its gate does to real tokens, and combine attention,
# feed-forward and the four norms into a whole layer. About 20 minutes. In the [Gemma 2
# report](https://arxiv.org/abs/2408.00118): section 2, "Post-norm and pre-norm with RMSNorm", and in table 1 the rows
# on the non-linearity and the feed-forward size; GeGLU itself is from [Shazeer](https://arxiv.org/abs/2002.05202).
#
# Before this: [8. Soft-capping](08_soft_capping.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import numpy as np
from support import check, check_file, diagrams, lines
from support.exercises import geglu_and_the_block as exercises
from support.figures import geglu_and_the_block as figures
from support.plots import pieces, use_style

import gemma_np
from gemma_np.config import RELEASED
from gemma_np.model.attention import attention
from gemma_np.model.block import block, pre_feedforward_name
from gemma_np.model.feed_forward import feed_forward, gelu
from gemma_np.model.rms_norm import rms_norm
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes
from gemma_np.oracle.mistakes.feed_forward import gelu_exact, silu
from gemma_np.scope import Scope
from gemma_np.weights.linear import linear

# %%
use_style()
model = gemma_np.load()
config = model.config
ids = model.tokenizer.encode("To be, or not to be, that is the question.")
tokens = pieces(ids, model.tokenizer)
record = model.trace(ids)
layers = range(config.num_hidden_layers)
print(f"T = {len(ids)} tokens, D = {config.hidden_size} channels, F = {config.intermediate_size} hidden channels")

# %% [markdown]
# ## The second half of a layer
#
# Attention moves information between tokens: a weighted mean of values, each of which is a matrix times the normalized
# stream. The model also needs a non-linear step on each token *by itself*: without one, a matrix after a matrix is just
# another matrix. That step is the feed-forward layer. It also holds most of the weights:

# %%
for name, shape in [("bundled model", config), ("Gemma 2 2B", RELEASED["gemma-2-2b"])]:
    count = shape.parameter_count()
    share = count["feed-forward"] / (sum(count.values()) - count["embedding"])
    print(f"{name}: {count['feed-forward']:,} weights in the feed-forward layers, {share:.0%} of all but the embedding")

# %% tags=["check"]
for shape in (config, RELEASED["gemma-2-2b"]):
    count = shape.parameter_count()
    assert count["feed-forward"] > 0.7 * (sum(count.values()) - count["embedding"])

# %% [markdown]
# ## The formula
#
# For the normalized stream $x$ [T, D], with $W_\text{gate}$ and $W_\text{up}$ [F, D] and $W_\text{down}$ [D, F], all
# stored as [out, in]:
#
# $$\text{gate} = x W_\text{gate}^\top \;\; [T, F] \qquad \text{up} = x W_\text{up}^\top \;\; [T, F]$$
#
# $$\text{hidden} = \mathrm{gelu}(\text{gate}) \odot \text{up} \;\; [T, F]
# \qquad
# \text{down} = \text{hidden}\, W_\text{down}^\top \;\; [T, D]$$

# %% [markdown]
# By hand, for a vector of two channels and two hidden channels. The gates are 1 and -2. The gelu of 1 is 0.841, that of
# -2 is -0.045; the formula is below.

# %%
x = np.array([1.0, 2.0])  # [D]
W_gate = np.array([[1.0, 0.0], [0.0, -1.0]])  # [F, D]
W_up = np.array([[0.0, 1.0], [1.0, 0.0]])  # [F, D]
W_down = np.array([[1.0, 1.0], [0.0, 1.0]])  # [D, F]
gate, up = W_gate @ x, W_up @ x  # [F] each
hidden = gelu(gate) * up  # [F]
down = W_down @ hidden  # [D]
for f in range(2):
    print(f"gate {W_gate[f]} . {x} = {gate[f]:2g}, up {W_up[f]} . {x} = {up[f]:g}", end=", ")
    print(f"hidden = gelu({gate[f]:2g}) * {up[f]:g} = {gelu(gate[f]):6.3f} * {up[f]:g} = {hidden[f]:6.3f}")
for d in range(2):
    print(f"down {W_down[d]} . {hidden.round(3)} = {down[d]:.3f}")

# %% tags=["check"]
tiny = {"gate_proj.weight": W_gate, "up_proj.weight": W_up, "down_proj.weight": W_down}
np.testing.assert_allclose(feed_forward(x, tiny), down)

# %% [markdown]
# The open gate lets most of its `up` pass, the closed one almost nothing. In the package:

# %%
lines(feed_forward, "gate = ", "up = ", "hidden = ", "down")

# %% [markdown]
# So there are F hidden channels, and each has three vectors of length D: a row of $W_\text{gate}$ says *when* it opens,
# a row of $W_\text{up}$ says *what* it measures, a column of $W_\text{down}$ says what it writes. The $\odot$ is an
# element-wise product. No line looks at another token: tokens in reverse order give the same results in reverse order.
# This also holds for the norm, but not for attention.

# %%
first = Scope(model.weights) / "model" / "layers.0"
x = record["embedding"]  # [T, D]
halves = {
    "norm": lambda x: rms_norm(x, first["input_layernorm.weight"], config.rms_norm_eps),
    "feed-forward": lambda x: feed_forward(x, first / "mlp"),
    "attention": lambda x: attention(x, first / "self_attn", config, layer=0),
}
by_itself = {name: np.allclose(part(x[::-1]), part(x)[::-1], rtol=1e-3, atol=1e-3) for name, part in halves.items()}
print("each token by itself:", by_itself)

# %% tags=["check"]
assert by_itself == {"norm": True, "feed-forward": True, "attention": False}
np.testing.assert_allclose(
    linear(record["layers.0.pre_feedforward_layernorm"], first["mlp.gate_proj.weight"]),
    record["layers.0.mlp.gate"],
    rtol=1e-3,
    atol=1e-4,
)

# %% [markdown]
# (In table 1 of the report, "Feedforward dim" counts gate and up together, which is $2F$; the `intermediate_size` of
# the published config is $F$.)
#
# ## GELU, in its tanh form
#
# GELU is $x$ times the probability that a standard normal number is below $x$. For large $x$ it is $x$; for very
# negative $x$ it is 0; in between it bends smoothly and dips slightly below zero. The exact probability needs the error
# function; Gemma uses an approximation with tanh:
#
# $$\mathrm{gelu}(x) = \tfrac{x}{2} \left(1 + \tanh\!\left(\sqrt{2/\pi}\,(x + 0.044715\,x^3)\right)\right)$$

# %%
lines(gelu)

# %% [markdown]
# The code computes it in one buffer: $x^2$, then $1 + 0.044715\,x^2$, then times $x$. Two functions are often used by
# mistake: GELU with erf, and SiLU, $x \cdot \mathrm{sigmoid}(x)$, which Llama and many others have.

# %%
line = np.linspace(-5, 5, 2001)
gates = np.concatenate([record[f"layers.{layer}.mlp.gate"].ravel() for layer in layers])
figures.gelu_and_silu(line, gelu(line), silu.faulty(line), gelu_exact.faulty(line), gates)

erf_error = np.abs(gelu_exact.faulty(line) - gelu(line))
silu_error = np.abs(silu.faulty(line) - gelu(line))
print(f"largest distance: erf {erf_error.max():.2e}, SiLU {silu_error.max():.2f}; lowest point {gelu(line).min():.2f}")
off = np.abs(silu.faulty(gates) - gelu(gates)).mean() / np.abs(gelu(gates)).mean()
print(f"of the gates of these tokens, {np.mean(gates < 0):.0%} are below zero")
print(f"for these gates, the mean distance of SiLU is {off:.0%} of the mean size of gelu")

# %% tags=["check"]
assert 4.7e-4 < erf_error.max() < 4.8e-4 and 0.15 < silu_error.max() < 0.25 and 0.2 < off < 0.3
assert 0.6 < np.mean(gates < 0) < 0.8 and -0.18 < gelu(line).min() < -0.16

# %% [markdown]
# The two GELUs never differ by more than 0.0005. SiLU differs by up to 0.2. Where most of the real gates (grey) are, it
# differs by less, but gelu is small there too: on average, SiLU is off by a quarter of it.
#
# ## What the gate does
#
# Each dot is one hidden channel of layer 1 at one token. Left of zero the gate is closed: at most 17% of `up` gets
# through, with the opposite sign. Right of zero it is open, and `up` passes with its own sign, the more the larger the
# gate.
#
# **Predict:** How many of the gates are open? And how much of the sum of squares of all hidden channels do these have?
#
# <details><summary>Reveal</summary>
#
# A good quarter (27 %) are open, and they have 94 % of it.
#
# </details>

# %%
gate, up, hidden = (record[f"layers.1.mlp.{part}"] for part in ("gate", "up", "hidden"))  # [T, F] each
figures.gates(gate, up, hidden)

opened = gate > 0
passed = np.sum(hidden[opened] ** 2) / np.sum(hidden**2)
print(f"the gate is above zero for {np.mean(opened):.0%} of the dots; they have {passed:.0%} of the sum of squares")
print(f"half of the gates above zero are below {np.median(gate[opened]):.2f}")

# %% tags=["check"]
assert np.mean(opened) < 0.3 and passed > 0.9 and np.median(gate[opened]) < 0.3

# %% [markdown]
# Most open gates are open only a little. So for each token, a few channels carry nearly everything. Which ones differs
# from token to token:

# %%
strength = np.sort(hidden**2, axis=-1)[:, ::-1]  # [T, F], the largest first
tenth = config.intermediate_size // 10
share = (strength[:, :tenth].sum(axis=-1) / strength.sum(axis=-1)).mean()
print(f"the strongest tenth of the channels of a token has {share:.0%} of its sum of squares")

strongest = np.argsort(np.abs(hidden).max(axis=0))[::-1][:40]  # [40] of the F channels
figures.strongest_channels(hidden[:, strongest], tokens)

both = tokens.index("▁be"), len(tokens) - 1 - tokens[::-1].index("▁be")
alike = np.corrcoef(hidden[both[0]], hidden[both[1]])[0, 1]
apart = np.corrcoef(hidden[both[0]], hidden[tokens.index("▁the")])[0, 1]
print(f"correlation over the F channels: ▁be and ▁be {alike:.2f}, ▁be and ▁the {apart:.2f}")

# %% tags=["check"]
assert share > 0.85 and alike > 0.7 and apart < 0.3

# %% [markdown]
# Most of the plot is white. The two rows of `▁be` are very similar, because these channels look at their own token;
# where the rows differ, attention has added information from other tokens.
#
# ## The block
#
# A layer has two halves, each with a norm before it and a norm after it. For the stream $x$ [T, D]:
#
# $$m = x + \mathrm{norm}_2(\mathrm{attention}(\mathrm{norm}_1(x))) \qquad
# x' = m + \mathrm{norm}_4(\mathrm{feedforward}(\mathrm{norm}_3(m)))$$
#
# with the names `input_layernorm`, `post_attention_layernorm`, `pre_feedforward_layernorm`,
# `post_feedforward_layernorm` for the norms 1 to 4. In the picture, follow the thick line: nothing lies on it but two
# sums.

# %%
diagrams.block()

# %% [markdown]
# By hand, for a stream of two channels. The outputs of the two halves are made up, and both post-norms have $w = 0$, so
# they only divide by the root mean square:

# %%
stream = np.array([3.0, 4.0])  # [D]
for half, out in (("attention", np.array([7.0, 1.0])), ("feed-forward", np.array([100.0, 700.0]))):
    root = np.sqrt(np.mean(out**2))
    added = out / root  # what the post-norm returns
    print(f"{half}: {out} / {root:g} = {added}", end=", ")
    print(f"stream: {stream} + {added} = {stream + added}")
    stream = stream + added

# %% tags=["check"]
before, outputs = np.array([3.0, 4.0]), np.array([[7.0, 1.0], [100.0, 700.0]])
np.testing.assert_allclose(stream, before + rms_norm(outputs, np.zeros(2), eps=0).sum(axis=0))

# %% [markdown]
# The second output is a hundred times as large as the first, but what it adds is of the same size. In the package:

# %%
lines(block, "y = ", "if config", "x = ", "return tape")

# %% [markdown]
# The stream $x$ itself is never normalized, multiplied or replaced, only added to. So the output of the last layer is a
# plain sum: the embedding, plus the output of each half of each layer.

# %%
attention_adds = [record[f"layers.{layer}.post_attention_layernorm"] for layer in layers]  # [T, D] each
feed_forward_adds = [record[f"layers.{layer}.post_feedforward_layernorm"] for layer in layers]  # [T, D] each
total = record["embedding"] + sum(attention_adds) + sum(feed_forward_adds)
difference = np.abs(total - record["layers.3.resid_post"]).max()
print(f"largest difference from the output of the last layer: {difference:.0e}")

# %% tags=["check"]
np.testing.assert_allclose(total, record["layers.3.resid_post"], rtol=1e-4, atol=1e-4)


# %%
def size(x):
    """The root mean square over the channels, [..., T, D] -> [..., T]."""
    return np.sqrt(np.mean(x**2, axis=-1))


streams = [record["embedding"]] + [record[f"layers.{layer}.resid_post"] for layer in layers]  # [T, D] each
before = [size(stream).mean() for stream in streams[:-1]]
by_attention = [size(added).mean() for added in attention_adds]
by_feed_forward = [size(added).mean() for added in feed_forward_adds]
figures.what_each_half_adds(by_attention, by_feed_forward, before)

for half, sizes in (("attention", by_attention), ("feed-forward", by_feed_forward)):
    relative = [f"{added / stream:.2f}" for added, stream in zip(sizes, before, strict=True)]
    print(f"what {half} adds, relative to the stream before:", *relative)

# %% tags=["check"]
assert all(after > mid for after, mid in zip(by_feed_forward, by_attention, strict=True))
assert by_attention == sorted(by_attention) and by_feed_forward == sorted(by_feed_forward)
for sizes in (by_attention, by_feed_forward):
    assert np.all(np.diff(np.divide(sizes, before)) < 0)

# %% [markdown]
# In this model the feed-forward adds more than attention in every layer, and both add more in later layers. But the
# stream grows as well, so relative to it they add less and less.
#
# ## Why a norm on both sides
#
# The norm before a half (pre-norm) brings its input to one size; [tutorial 4](04_rms_norm.ipynb) showed why. The norm
# after it (post-norm) does the same for its output. Without it, how much a half adds depends on the size of its
# matrices, which may grow from step to step in training. With it, the size of what is added is set by one learned
# vector, $1 + w$. It still varies somewhat, because $w$ differs from channel to channel. Here is the range over the
# tokens before and after the norm:

# %%
for layer in (0, 3):
    for part, norm in [("self_attn.o", "post_attention_layernorm"), ("mlp.down", "post_feedforward_layernorm")]:
        raw, normed = size(record[f"layers.{layer}.{part}"]), size(record[f"layers.{layer}.{norm}"])
        print(f"layer {layer} {part:12} {raw.min():.2f} to {raw.max():.2f}", end=", ")
        print(f"normalized {normed.min():.2f} to {normed.max():.2f}")

# %% tags=["check"]
for layer in (0, 3):
    for part, norm in [("self_attn.o", "post_attention_layernorm"), ("mlp.down", "post_feedforward_layernorm")]:
        raw, normed = size(record[f"layers.{layer}.{part}"]), size(record[f"layers.{layer}.{norm}"])
        assert normed.max() / normed.min() < 1.4 < 1.7 < raw.max() / raw.min()

# %% [markdown]
# **Predict:** All `down` matrices are multiplied by ten. What happens to the logits?
#
# <details><summary>Reveal</summary>
#
# Nothing: the norm after the feed-forward takes the factor out again.
#
# </details>
#
# To see this, multiply the `down` matrices by ten: almost nothing changes. What remains comes from the small
# $\varepsilon$ in the norm.

# %%
louder = dict(model.weights)
for layer in layers:
    louder[f"model.layers.{layer}.mlp.down_proj.weight"] = 10 * louder[f"model.layers.{layer}.mlp.down_proj.weight"]
same = gemma_np.Gemma(config, louder, model.tokenizer).logits(ids)
difference = np.abs(same - record["logits_capped"]).max()
print(f"largest difference of the logits: {difference:.1e}, of logits up to {np.abs(same).max():.0f}")

# %% tags=["check"]
assert difference < 1e-3

# %% [markdown]
# Gemma 1 has no post-norms. It has two norms per layer, and calls the second `post_attention_layernorm` after its
# place, although it normalizes the input of the feed-forward. Gemma 2 gave the old name to another norm:

# %%
lines(pre_feedforward_name, "return")

# %% [markdown]
# When porting Gemma 2 from Gemma 1, it is easy to swap the two.
#
# ## What the mistakes cost
#
# The catalogue of mistakes has six for this part. We inject each into the model, which then reads a speech.
#
# **Predict:** One port uses GELU with erf, another SiLU. Their perplexities tell you that something is wrong. True?
#
# <details><summary>Reveal</summary>
#
# Not for erf: its perplexity is the same to the second decimal. With SiLU it rises by 4 %, from 40.5 to 42.2, which
# nobody would notice without the right number.
#
# </details>

# %%
SPEECH = """HAMLET. To be, or not to be, that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles,
And by opposing end them."""
HERE = ("gelu-exact", "silu", "norm-names-crossed", "postnorm-missing", "gate-up-swapped", "postnorm-misplaced")

# %%
length = len(model.tokenizer.encode(SPEECH)) - 1  # the last token is predicted, not read
right = model.perplexity(SPEECH)
wrong = {}
for mistake in (mistake for mistake in CATALOGUE if mistake.id in HERE):
    with inject_mistakes([mistake], config, [length]):
        wrong[mistake.id] = model.perplexity(SPEECH)

print(f"perplexity {right:8.2f}  no mistake")
for name in sorted(wrong, key=wrong.get):
    print(f"perplexity {wrong[name]:8.2f}  {name}")

# %% tags=["check"]
assert abs(wrong["gelu-exact"] / right - 1) < 1e-3
assert 1.02 * right < wrong["silu"] < 1.1 * right
assert min(wrong[name] for name in HERE if name not in ("gelu-exact", "silu")) > 2.5 * right

# %% [markdown]
# Four of them ruin the text and are found quickly, above all the swapped norms. SiLU only makes the model a little
# worse: it looks like a slightly weaker model. GELU with erf does not show in the perplexity at all. Only comparing the
# hidden channels with those of a correct run reveals it; [tutorial 19](19_finding_the_bug.ipynb) does that.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** GELU in its tanh form.
#
# <details><summary>Hint 1</summary>
#
# `np.tanh` works on whole arrays; the cube is `x * x * x`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Three steps: the inner sum $x + 0.044715\, x^3$, times $\sqrt{2 / \pi}$; its tanh; and $x / 2$ times 1 plus the tanh.
#
# </details>


# %%
def tanh_gelu(x):
    """x [...] -> [...]"""
    ...


check(tanh_gelu, exercises.GELU)

# %% [markdown]
# **2.** The feed-forward layer. You may use the package's `gelu`, and `linear(x, weight)`, which is `x @ weight.T`.
#
# <details><summary>Hint 1</summary>
#
# Three products with a weight: two of `x`, one of what comes of them.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `gelu` applies to only one of the first two products, the gate.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Multiply `gelu` of the gate by up, [..., T, F], and map the result back to D channels.
#
# </details>


# %%
def geglu(x, gate_weight, up_weight, down_weight):
    """x [..., T, D], gate_weight and up_weight [F, D], down_weight [D, F] -> [..., T, D]"""
    ...


check(geglu, exercises.FEED_FORWARD)

# %% [markdown]
# **3.** The block, from its parts. `weights["input_layernorm.weight"]` [D] is the weight of the first norm, and so on;
# `attention(y, weights / "self_attn", config, layer)` and `feed_forward(y, weights / "mlp")` are the halves, and
# `rms_norm(y, weight, config.rms_norm_eps)` is the norm.
#
# <details><summary>Hint 1</summary>
#
# Two lines per half are enough; what is added is normalized, the stream is not.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The first half: `y = attention(...)` of the normalized `x`, then `x = x + ...` the normalized `y`. The second half is
# the same with `feed_forward`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The norms in order: `input_layernorm`, `post_attention_layernorm`, `pre_feedforward_layernorm`,
# `post_feedforward_layernorm`.
#
# </details>


# %%
def one_layer(x, weights, config, layer):
    """x [..., T, D], the layer's weights -> the stream after the layer [..., T, D]"""
    ...


check(one_layer, exercises.BLOCK)

# %% [markdown]
# ## Now in your file
#
# Write `gelu`, `feed_forward` and `block`. The names of the records of the norms are also those of their weights.
# `block` passes the weights of its layer on as they are, so those of the feed-forward are
# `weights["mlp.gate_proj.weight"]` and so on.

# %%
check_file("my_gemma.py", upto="resid_post")

# %% [markdown]
# The solutions are in [solutions/09_geglu_and_the_block.py](solutions/09_geglu_and_the_block.py), those of your file in
# [solutions/my_gemma](solutions/my_gemma/09_geglu_and_the_block.py).
#
# ## Further reading
#
# - [gemma_np/model/feed_forward.py](../gemma_np/model/feed_forward.py): the layer with its backward pass.
# - [gemma_np/model/block.py](../gemma_np/model/block.py): one layer, for Gemma 1 as well.
# - Shazeer, [GLU Variants Improve Transformer](https://arxiv.org/abs/2002.05202); Hendrycks and Gimpel,
#   [Gaussian Error Linear Units](https://arxiv.org/abs/1606.08415).
#
# Next: [10. The whole model](10_the_whole_model.ipynb).
