# %% [markdown]
# # 5. Positions and RoPE
#
# After this you can give attention the position of each token, explain why only the distance between two tokens counts,
# and avoid the common mistakes. About 20 minutes. In the [Gemma 2 report](https://arxiv.org/abs/2408.00118): section 2,
# "Rotary Position Embeddings (RoPE)", from [Su et al.](https://arxiv.org/abs/2104.09864).
#
# Before this: [4. RMSNorm, and why 1 + w](04_rms_norm.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import math
from dataclasses import replace

import ml_dtypes
import numpy as np
from support import check, check_file, lines
from support.exercises import positions_and_rope as exercises
from support.figures import positions_and_rope as figures
from support.plots import pieces, use_style
from support.sliders import Slider, explore

import gemma_np
from gemma_np.config import GLOBAL, RELEASED
from gemma_np.gemma import Gemma
from gemma_np.model.attention import attend
from gemma_np.model.rope import rope, rope_cos_sin
from gemma_np.oracle.mistakes import inject_mistakes
from gemma_np.oracle.mistakes.rope import rope_interleaved

# %%
use_style()
model = gemma_np.load()
config = model.config
h = config.head_dim
text = (
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer The slings and arrows of"
    " outrageous fortune, Or to take arms against a sea of troubles"
)
ids = model.tokenizer.encode(text)
tokens = pieces(ids, model.tokenizer)
record = model.trace(ids)
print(f"T = {len(ids)} tokens, H = {config.num_attention_heads} heads of h = {h} channels")

# %% [markdown]
# ## The problem: attention does not see the order
#
# [Tutorial 6](06_attention_and_gqa.ipynb) is about attention. What we need here: each token has a *query* $q$ [h] (what
# it looks for) and a *key* $k$ [h] (what it offers). How much one token attends to another depends on the dot product
# $q \cdot k$, the *score*. Both are the token's vector times a matrix, and in layer 0 that vector depends only on the
# token itself. So the two "be" of "To be, or not to be" have the same key, and no query can tell which came first:

# %%
key = record["layers.0.self_attn.k"]  # [K, T, h]
first_be, second_be = (place for place, token in enumerate(tokens) if token == "▁be")
print(f"▁be is at positions {first_be} and {second_be}")

# %% tags=["check"]
np.testing.assert_allclose(key[:, first_be], key[:, second_be], rtol=1e-4, atol=1e-5)

# %% [markdown]
# To see what that does to a whole layer, here is the same model with positions switched off. Config fields are enough
# for that: every layer is global, and all positions are divided by a huge number, so all tokens are at position 0. Now
# shuffle all tokens except `<bos>` and the last, and look at the output of attention in layer 0 for the last token:
#
# **Predict:** What changes in that output? And, without positions, in the logits of the last token?
#
# <details><summary>Reveal</summary>
#
# In the output of layer 0, nothing: attention is a weighted mean, and the order of its terms does not matter. The
# logits do change. Each token sees only those before it, so after layer 0 the vectors of the shuffled tokens are
# different ones.
#
# </details>

# %%
blind_config = replace(config, layer_types=(GLOBAL,) * config.num_hidden_layers, rope_scaling_factor=1e12)
blind = Gemma(blind_config, model.weights, model.tokenizer)
middle = np.random.default_rng(0).permutation(ids[1:-1])
shuffled = np.array([ids[0], *middle, ids[-1]])


def change(some_model, name):
    """The relative change of the last token's record when the tokens before it are shuffled."""
    before, after = (some_model.trace(order)[name][-1] for order in (np.array(ids), shuffled))
    return np.linalg.norm(after - before) / np.linalg.norm(before)


for name in ("layers.0.self_attn.o", "logits"):
    print(f"{name:22} with RoPE {change(model, name):.2f}, without {change(blind, name):.7f}")
print(f"perplexity of the text: {model.perplexity(text):.0f}, without positions {blind.perplexity(text):.0f}")

# %% tags=["check"]
assert change(blind, "layers.0.self_attn.o") < 1e-5 < 0.05 < change(model, "layers.0.self_attn.o")
assert change(blind, "logits") > 0.01
assert blind.perplexity(text) > 1.3 * model.perplexity(text)

# %% [markdown]
# Without positions, layer 0 cannot tell a sentence from its shuffled words: only the last digit of float32 changes. The
# logits still change a little. A token sees only the tokens before it, so the vectors that later layers read depend on
# *which tokens came before*. That is not enough: the perplexity is much worse. (Of course, this model was trained with
# positions; one that was trained without them could do better.)
#
# ## The idea: rotate the vector
#
# Take two channels of a query as a point in the plane and rotate it by an angle that is proportional to the token's
# position. Do the same with each key. When both tokens move on by one position, both vectors rotate by the same angle,
# and the angle *between* them stays the same. The dot product of two vectors depends on their lengths and the angle
# between them. So the score depends on the distance between the tokens, not on their positions.
#
# Here is one pair of channels, rotated by 90 degrees per position. Such a rotation takes $(a, b)$ to $(-b, a)$:

# %%
q, k = np.array([1.0, 2.0]), np.array([3.0, 1.0])  # h = 2: one pair
angles = np.array([0, 90, 180, 270]) * math.pi / 180  # of positions 0 to 3
cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]  # [T, h/2]
qs, ks = rope(np.tile(q, (4, 1)), cos, sin).round(9) + 0.0, rope(np.tile(k, (4, 1)), cos, sin).round(9) + 0.0
for p in range(4):
    print(f"position {p}: query {qs[p]}, key {ks[p]}")
for p in range(1, 4):
    (a, b), (c, d) = qs[p], ks[p - 1]
    print(f"query at {p}, key at {p - 1}: {a:g} * {c:g} + {b:g} * {d:g} = {a * c + b * d:g}")

# %% tags=["check"]
assert np.vecdot(qs[1:], ks[:-1]).tolist() == [-5, -5, -5]

# %% [markdown]
# The vectors differ from position to position, but the score of a query and the key one position before it is always
# the same.
#
# With the same angle for all pairs, positions would repeat after one full turn. So each pair of channels has its own
# speed, from fast to slow, like the hands of a clock. For a head of $h$ channels there are $h/2$ pairs; pair $i$ at
# position $p$ is rotated by
#
# $$\alpha_{p,i} = \frac{p}{s} \, b^{-2i/h} \qquad i = 0, \dots, h/2 - 1, \qquad \text{base } b = 10{,}000,\ s = 1 \text{ in Gemma 2}$$
#
# The cosines and sines of all angles are arrays [T, h/2]:

# %%
lines(rope_cos_sin, "frequencies =", "angles =", "cos, sin =")

# %% [markdown]
# Gemma pairs channel $i$ with channel $i + h/2$, the first half with the second. For $x$ [..., T, h]:
#
# $$\begin{aligned}
# y_i &= x_i \cos \alpha_i - x_{i + h/2} \sin \alpha_i \\
# y_{i + h/2} &= x_{i + h/2} \cos \alpha_i + x_i \sin \alpha_i
# \end{aligned}$$

# %%
lines(rope, "def", "half = ", "first, second", "return")

# %% [markdown]
# Attention rotates queries and keys, but not values. (Gemma 3 also normalizes queries and keys, *before* it rotates
# them; [tutorial 18](18_gemma_1_2_and_3.ipynb).)

# %%
lines(attend, "positions = range", "cos, sin =", "rope(q", "rope(k")

# %% [markdown]
# Here is a real query of the model, rotated to positions 0 to 20; three of its 16 pairs are shown.
#
# **Predict:** How many full turns does pair 0 make in 20 positions? And how far does pair 15, the last, rotate in 255?
#
# <details><summary>Reveal</summary>
#
# Pair 0 makes three, at one radian per position. Pair 15 rotates by 0.045 radians, less than three degrees.
#
# </details>

# %%
base, divisor = config.rope(layer=1)
cos, sin = rope_cos_sin(range(config.max_position_embeddings), h, base, divisor, np.float64)  # [256, h/2]
query = record["layers.1.self_attn.q"][0, second_be].astype(np.float64)  # [h]
rotated = rope(np.tile(query, (21, 1)), cos[:21], sin[:21])  # [21, h]
figures.rotated_pairs(rotated, shown=(0, 2, 5))

# %% tags=["check"]
np.testing.assert_allclose(np.linalg.norm(rotated, axis=-1), np.linalg.norm(query))
assert np.array_equal(rotated[0], query)
assert 20 * base ** (-2 * 5 / h) < 2 * math.pi / 4
assert 3 * 2 * math.pi < 20

# %% [markdown]
# The ring marks position 0, where the query is unchanged. Pair 0 rotates by one radian per step and completes three
# full turns; pair 5 makes less than a quarter of one. The length never changes. Here are all pairs, for all positions
# that this model can read:

# %%
figures.cosines_of_angles(cos)

last = len(cos) - 1
turns, angle_of_last = last / (2 * math.pi), last * base ** (-(h - 2) / h)
print(f"at position {last}, pair 0 has made {turns:.1f} turns", end=", ")
print(f"and pair {h // 2 - 1} has rotated by {angle_of_last:.3f} radians")

# %% tags=["check"]
assert angle_of_last < 0.1

# %% [markdown]
# The fast pairs distinguish neighbours, the slow ones distinguish near from far. The slowest hardly rotate at all
# within 256 positions: their part of the score is nearly independent of the distance.
#
# ## Only the distance counts
#
# As a formula, with $R_p$ for the rotation at position $p$: $(R_p q) \cdot (R_t k) = q \cdot (R_{t-p} k)$. Here are a
# query and a key of the model, five tokens apart, at every possible position:

# %%
key = record["layers.1.self_attn.k"][0, first_be].astype(np.float64)  # [h]
queries, keys = rope(np.tile(query, (256, 1)), cos, sin), rope(np.tile(key, (256, 1)), cos, sin)  # [256, h] each
scores = np.vecdot(queries[5:], keys[:-5])  # [251]
print(f"at (5, 0): {scores[0]:.9f}   at (100, 95): {scores[95]:.9f}   at (255, 250): {scores[250]:.9f}")

# %% tags=["check"]
np.testing.assert_allclose(scores, scores[0], rtol=1e-9)
assert abs(scores[0] - query @ key) > 0.1

# %% [markdown]
# So we can plot a score against the distance alone. Below, the unrotated queries and keys of this text are placed at
# each distance; each line is the mean over all pairs of tokens, for one head.

# %%
nearness = {}
for layer in (1, 2):
    q, k = (record[f"layers.{layer}.self_attn.{name}"].astype(np.float64) for name in "qk")  # [H, T, h], [K, T, h]
    q, k = q.mean(axis=1), k.mean(axis=1)  # the mean of all dot products is the dot product of the means
    k = np.repeat(k, config.num_attention_heads // config.num_key_value_heads, axis=0)  # [H, h]
    scores = rope(q[:, None, :], cos, sin) @ k[..., None] / math.sqrt(config.query_pre_attn_scalar)  # [H, 256, 1]
    kind = "local" if config.window(layer) else "global"
    nearness[f"layer {layer}, {kind}"] = scores[:, : config.window(layer), 0]  # [H, distances that it looks at]
figures.scores_by_distance(nearness)

for name, line in nearness.items():
    print(f"{name}: near (0 to 3) {line[:, :4].mean():5.2f}, far (32 to 63) {line[:, 32:64].mean():5.2f}")
previous = nearness["layer 2, local"][0]
print("in layer 2, the maximum of head 0 is at distance", previous.argmax())

# %% tags=["check"]
for line in nearness.values():
    assert line[:, :4].mean() > line[:, 32:64].mean() + 2
assert previous[1] > np.delete(previous, 1).max() + 1 and len(previous) == 64

# %% [markdown]
# Nothing forces the model to prefer near tokens; RoPE makes it possible, and the model learned it in training. Head 0
# of layer 2 even singles out the previous token, with its fast pairs. (These are means over one text: for a single pair
# of tokens, their content matters as well.) Layer 2 is local and never looks back more than 63 tokens ([tutorial
# 7](07_local_and_global_layers.ipynb)), so its lines end there.
#
# ## The base
#
# The base determines how slow the slowest pair is. After how many tokens does a pair complete one turn, in the heads of
# 256 channels of the released models? Gemma 2 has the base 10,000 and reads 8,192 tokens. Gemma 3 reads 32,768 or, from
# the 4B on, 131,072. Its global layers have the base 1,000,000 and, from the 4B on, also divide positions by 8; its
# local layers keep 10,000.

# %%
gemma2, gemma3 = RELEASED["gemma-2-2b"], RELEASED["gemma-3-4b"]
kinds = {
    "10,000 (Gemma 2; local layers of Gemma 3)": gemma2.rope(0),
    "1,000,000 (Gemma 3 270M and 1B, global)": RELEASED["gemma-3-1b"].rope(5),
    "1,000,000, positions / 8 (Gemma 3 4B, global)": gemma3.rope(5),
}
pair = np.arange(128)
wavelengths = {label: 2 * math.pi * s * b ** (2 * pair / 256) for label, (b, s) in kinds.items()}  # [h/2] each
figures.tokens_for_a_turn(wavelengths)

slowest = [wavelength[-1] for wavelength in wavelengths.values()]
print("tokens for a full turn of the slowest pair:", [f"{tokens:,.0f}" for tokens in slowest])

# %% tags=["check"]
assert gemma3.rope(0) == gemma2.rope(0) == (10_000, 1) and gemma3.rope(5) == (1_000_000, 8)
assert (gemma2.max_position_embeddings, gemma3.max_position_embeddings) == (8192, 131_072)
assert RELEASED["gemma-3-1b"].max_position_embeddings == 32_768
assert gemma2.head_dim == gemma3.head_dim == 256
assert 8192 < slowest[0] < 131_072 < slowest[1]

# %% [markdown]
# With base 10,000, even the slowest pair would complete a turn within Gemma 3's context, so no pair could tell a
# position from one that is a full turn away. With 1,000,000 many pairs are slow enough.
#
# Move both sliders. On the left is each of the 128 pairs, as a clock hand that has rotated from (1, 0) to the distance
# of the slider; the dark ones are fast. On the right is the mean of their cosines, which is the score of a query and a
# key that are both all ones, relative to its value at distance 0.
#
# **Try:** Set the distance to 8,192. From which base on is there a pair that has not made a full turn? And does a
# larger base tell near tokens from far ones better or worse?
#
# <details><summary>Reveal</summary>
#
# From $10^{3.5}$ on. Worse: with $10^4$ the score has fallen below one half at a distance of 64 tokens, with $10^7$
# only at about 1,000.
#
# </details>


# %%
def clock_hands(figure, exponent, distance):
    left, right = figure.subplots(1, 2)
    distances = range(0, 8193, 16)
    cos, sin = rope_cos_sin(distances, 256, 10.0**exponent, 1, np.float64)  # [513, h/2]
    now = distance // 16
    left.scatter(cos[now], sin[now], c=pair, s=20)
    turned = np.count_nonzero(2 * math.pi * 10.0 ** (exponent * pair / 128) <= distance)
    left.set(aspect="equal", xlabel="cosine", ylabel="sine", title=f"{turned} of 128 made a full turn")
    right.plot(distances, cos.mean(axis=1))
    right.plot(distance, cos[now].mean(), "o", color="C5")
    right.set(ylim=(-0.1, 1), xlabel="distance (tokens)", title=f"score, base 10^{exponent:g}")


base_slider = Slider("base (power of ten)", start=4.0, low=2.0, high=7.0, step=0.5)
explore(clock_hands, exponent=base_slider, distance=Slider("distance (tokens)", 2048, 0, 8192, step=16))

# %% [markdown]
# ## What goes wrong
#
# **Predict:** A port rotates the wrong pairs, channel 2i with channel 2i + 1. Which of these tests finds it? A
# rotation keeps the length of a vector; only the distance of two tokens counts; the logits of a single token are
# right.
#
# <details><summary>Reveal</summary>
#
# None of them: other pairs rotate as well, and at position 0 nothing rotates.
#
# </details>
#
# **Pairs (2i, 2i + 1).** The paper pairs neighbouring channels, and so does much code; Gemma's weights were trained
# with halves. The wrong pairs are also rotations: they keep the length, and only the distance counts, so tests of these
# properties pass. And at position 0 every angle is 0, so a test with one token passes as well:

# %%
right_one, right = model.logits(ids[:1]), model.perplexity(text)
with inject_mistakes([rope_interleaved], config, [1]):
    wrong_one = model.logits(ids[:1])
with inject_mistakes([rope_interleaved], config, [len(ids)]):
    wrong = model.perplexity(text)
print(f"one token: logits equal: {np.array_equal(right_one, wrong_one)}")
print(f"{len(ids)} tokens: perplexity {right:.0f}, with wrong pairs {wrong:.0f}")

# %% tags=["check"]
queries, keys = (rope_interleaved.faulty(np.tile(vector, (256, 1)), cos, sin) for vector in (query, key))
np.testing.assert_allclose(np.vecdot(queries[5:], keys[:-5]), queries[5] @ keys[0], rtol=1e-9)
assert np.array_equal(right_one, wrong_one)
assert 1.3 * right < wrong < 2 * right

# %% [markdown]
# That is worse, but far from the 2,048 of guessing: such a model just looks badly trained. To find the mistake,
# compare the numbers with those of a correct implementation, at a position other than 0.
#
# **Imprecise angles.** An angle grows to thousands of radians, and the cosine depends only on the remainder after whole
# turns. So a small relative error of the angle becomes a large error of the rotation. At Gemma 2's last position, with
# the arithmetic in float64, float32 and bfloat16:

# %%
frequencies = 10_000.0 ** -(np.arange(0, 256, 2) / 256)
exact = 8191 * frequencies
for dtype in (np.float32, ml_dtypes.bfloat16):
    rounded = (np.array(8191, dtype) * frequencies.astype(dtype)).astype(np.float64)
    error = np.abs(rounded - exact).max()
    print(f"{np.dtype(dtype).name:9} largest error of an angle at position 8191: {error:.5f} radians")

# %% tags=["check"]
in_float32 = np.float32(8191) * frequencies.astype(np.float32)
assert 1e-4 < np.abs(in_float32 - exact).max() < 1e-3
assert np.array(8191, ml_dtypes.bfloat16) == 8192

# %% [markdown]
# float32 is off by less than a thousandth of a radian, which does little harm. bfloat16 has 8 significant bits:
# position 8191 itself becomes 8192, and the fast pairs point in arbitrary directions. Released implementations had this
# bug, and short texts do not show it. That is why `rope_cos_sin` computes angles in float64, whatever the dtype of the
# model, and rounds only cosine and sine.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The cosine and sine of all angles. `divisor` is $s$: 8 on the global layers of Gemma 3 from the 4B on,
# otherwise 1.
#
# <details><summary>Hint 1</summary>
#
# There is one angle for each position and each pair, [T, h/2]. It is a product: of what depends on the position, and of
# what depends on the pair.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.outer` returns the products of all pairs of elements of two vectors.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The vectors are `positions / divisor` and `base ** (-2 * pair / head_dim)`, with `pair = np.arange(head_dim // 2)`.
#
# </details>


# %%
def cos_and_sin(positions, head_dim, base, divisor):
    """positions [T] -> cos [T, h/2], sin [T, h/2]"""
    ...


check(cos_and_sin, exercises.ANGLES)

# %% [markdown]
# **2.** Rotate the pairs.
#
# <details><summary>Hint 1</summary>
#
# Channel $i$ and channel $i + h/2$ are a pair. `x[..., :half]` is the first half of the channels; `np.concatenate` with
# `axis=-1` joins two halves.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A rotation turns $(a, b)$ into $(a \cos - b \sin,\ b \cos + a \sin)$. Both results need both original halves.
#
# </details>


# %%
def rotate(x, cos, sin):
    """x [..., T, h], cos and sin [T, h/2] -> [..., T, h]"""
    ...


check(rotate, exercises.ROPE)

# %% [markdown]
# **3.** When a model writes text, it reads one token at a time, or a chunk of several, and keeps the keys of the tokens
# before. Rotate the keys of a chunk that comes after `start` tokens. Use your own two functions; the divisor is 1.
#
# <details><summary>Hint 1</summary>
#
# The tokens before the chunk have positions 0 to start - 1.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The chunk has T = `x.shape[-2]` tokens, with the positions `np.arange(start, start + T)`. The rest are your two
# functions.
#
# </details>


# %%
def rotate_chunk(x, start, base):
    """x [..., T, h] -> [..., T, h]"""
    ...


check(rotate_chunk, exercises.CHUNK)

# %% [markdown]
# ## Now in your file
#
# Write `split_heads`, which cuts H·h channels into H heads of h consecutive ones, and `rope`, which is exercises 1 and
# 2 in one function. It takes the positions themselves: a chunk in the middle of a text begins elsewhere than at 0, and
# the gradient of tutorial 13 rotates by negative ones.

# %%
check_file("my_gemma.py", upto="k_rope")

# %% [markdown]
# The solutions are in [solutions/05_positions_and_rope.py](solutions/05_positions_and_rope.py), those of your file in
# [solutions/my_gemma](solutions/my_gemma/05_positions_and_rope.py).
#
# ## Further reading
#
# - [gemma_np/model/rope.py](../gemma_np/model/rope.py), the whole file: 46 lines with the backward pass.
# - `GemmaConfig.rope` in [gemma_np/config.py](../gemma_np/config.py): which layer has which base.
# - Su et al., [RoFormer](https://arxiv.org/abs/2104.09864), section 3; the
#   [Gemma 3 report](https://arxiv.org/abs/2503.19786), section 2, for the second base.
#
# Next: [6. Attention and GQA](06_attention_and_gqa.ipynb).
