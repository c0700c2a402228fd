# %% [markdown]
# # 6. Attention, and heads that share their keys
#
# After this you can compute attention by hand, read an attention map, and say why Gemma 2 has fewer key-value heads
# than query heads, and which heads belong together. About 25 minutes. In the [Gemma 2
# report](https://arxiv.org/abs/2408.00118): section 2, "Grouped-Query Attention", and table 8; the groups are from
# [Ainslie et al.](https://arxiv.org/abs/2305.13245).
#
# Before this: [5. Positions and RoPE](05_positions_and_rope.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from support import check, check_file, diagrams, lines
from support.exercises import attention as exercises
from support.figures import attention as figures
from support.plots import pieces, use_style

import gemma_np
from gemma_np.config import GLOBAL, LOCAL, RELEASED
from gemma_np.memory import cache_bytes
from gemma_np.model.attention import attend, attention, grouped_matmul, split_heads
from gemma_np.model.attention_mask import masked_softmax
from gemma_np.oracle.mistakes import inject_mistakes
from gemma_np.oracle.mistakes.attention import gqa_tile

# %%
use_style()
model = gemma_np.load()
H, K, h = model.config.num_attention_heads, model.config.num_key_value_heads, model.config.head_dim
G = H // K
ids = model.tokenizer.encode("We are such stuff\nAs dreams are made on,\nAnd our little life")
tokens = pieces(ids, model.tokenizer)
record = model.trace(ids)
T = len(ids)
print(f"T = {T} tokens; H = {H} query heads, K = {K} key-value heads, G = {G} in a group, h = {h} channels in a head")

# %% [markdown]
# ## The problem: a token does not know its neighbours
#
# Everything else in the model, the norms and the feed-forward layers, looks at one token at a time. Only attention
# moves information from token to token. What happens without it? Here, every layer sees only the token itself:

# %%
verse = """To be, or not to be, that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles,
And by opposing end them. To die, to sleep,
No more; and by a sleep to say we end
The heart-ache, and the thousand natural shocks
That flesh is heir to: 'tis a consummation
Devoutly to be wish'd. To die, to sleep.
To sleep, perchance to dream. Ay, there's the rub,"""
only_itself = replace(model.config, layer_types=(LOCAL,) * model.config.num_hidden_layers, sliding_window=1)
together, alone = model.perplexity(verse), replace(model, config=only_itself).perplexity(verse)
print(f"perplexity {together:.0f}; {alone:.0f} where each token sees only itself")

# %% tags=["check"]
assert alone > 2 * together

# %% [markdown]
# Without attention, the perplexity is more than twice as high. (This model was trained with attention and lost it
# afterwards. A model trained without any could do better than that.)
#
# ## One head: ask, compare, mix
#
# A head works like a look-up by similarity. From its normalized vector $x$ [D], each token computes three vectors of h
# channels: a **query**, what it looks for; a **key**, what it can be found by; and a **value**, what it passes on to
# the tokens that find it. For T tokens, $q$ [T, h], $k$ and $v$ [S, h], each a matrix times $x$. S is the number of
# keys; here it is T, and with a cache ([tutorial 11](11_cache_and_generation.ipynb)) it is more.
#
# $$\mathrm{scores} = \frac{q \, k^\top}{\sqrt{s}} \ [T, S]
# \qquad
# \mathrm{probs} = \mathrm{softmax}(\mathrm{scores}) \ [T, S]
# \qquad
# \mathrm{context} = \mathrm{probs} \; v \ [T, h]$$
#
# The score of a query and a key is their dot product: large when they point in the same direction. Softmax, $e^{x_j} /
# \sum_i e^{x_i}$ along each row, turns the scores into probabilities that sum to 1. Each token receives the mean of the
# values, weighted by these probabilities.
#
# By hand, for three tokens and h = 2. A token may look at itself and at those before it:

# %%
q = np.array([[1.0, 0.0], [0.0, 2.0], [2.0, 2.0]])  # [T, h]
k = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # [S, h]
v = np.array([[10.0, 0.0], [0.0, 10.0], [5.0, 5.0]])  # [S, h]
for t in range(3):
    scores = [float(q[t] @ k[j]) / math.sqrt(2) for j in range(t + 1)]
    exps = [math.exp(score) for score in scores]
    probs = [e / sum(exps) for e in exps]
    mixed = sum(p * v[j] for j, p in enumerate(probs))  # [h]
    print(f"token {t}: scores {np.round(scores, 2)}, exp {np.round(exps, 2)}", end=", ")
    print(f"probs {np.round(probs, 2)} -> {mixed.round(2)}")

# %% tags=["check"]
np.testing.assert_allclose(mixed, masked_softmax(q @ k.T / math.sqrt(2), np.tri(3, dtype=bool))[2] @ v)

# %% [markdown]
# Token 0 sees only itself and receives its own value. Token 1 has a query that fits its own key better than that of
# token 0, so it receives mostly its own value. These are the lines in the package:

# %%
lines(attention, 'tape("q"', 'tape("k"', 'tape("v"')

# %%
lines(attend, "q_scaled =", 'tape("scores"', 'tape("probs"', 'tape("context"')

# %% [markdown]
# Between these lines are the rotation of q and k ([tutorial 5](05_positions_and_rope.ipynb)), the cap ([tutorial
# 8](08_soft_capping.ipynb)) and the mask: a token may not see later tokens, or it could copy the answer when it is
# trained to predict them. [Tutorial 7](07_local_and_global_layers.ipynb) is about masks. Masked scores become
# $-\infty$, so their probabilities are zero.
#
# Here is head 3 of layer 2 by hand, from its recorded scores and values. Its values are those of key-value head 1, and
# its result is in channels 3h to 4h; both are explained below.

# %%
layer, head = 2, 3
scores = record[f"layers.{layer}.self_attn.scores_capped"][head]  # [T, S]
values = record[f"layers.{layer}.self_attn.v"][head // G]  # [S, h]

past = np.tri(T, dtype=bool)  # True where the key is not after the query
context = masked_softmax(scores, past) @ values  # [T, h]

recorded = record[f"layers.{layer}.self_attn.context"][:, head * h : (head + 1) * h]  # [T, h]
print(f"largest difference from the recorded context: {np.abs(context - recorded).max():.0e}")
print("the first four rows and columns of the probabilities:")
print(np.round(masked_softmax(scores, past)[:4, :4], 2))

# %% tags=["check"]
np.testing.assert_allclose(context, recorded, atol=1e-5)

# %% [markdown]
# The first token sees only itself, so its probability is 1. Each row sums to 1, and everything above the diagonal is
# zero.
#
# ## What heads look at
#
# An attention map has a row for each query and a column for each key; a row shows where its token looks. Here are two
# heads of layer 2. `⏎` is the end of a line, `▁` a space.

# %%
probs = record[f"layers.{layer}.self_attn.probs"]  # [H, T, S]
figures.attention_maps(probs, tokens, {0: "the token before", 3: "the last line break"})

# %% [markdown]
# The heads learned this by themselves. Head 0 looks mostly one token back, by position; head 3 looks for the last line
# break before the token, wherever it is, or for `<bos>` if there is none. Verse has lines of a similar length, so it
# helps to know where a line began.


# %%
def break_before(tokens):
    """Where the last line break before each token is, or 0, which is <bos>: [T]."""
    breaks = np.flatnonzero(np.array(tokens) == "⏎")
    return np.array([max(breaks[breaks < t], default=0) for t in range(len(tokens))])


found = np.mean(probs[3].argmax(axis=-1) == break_before(tokens))
print(f"head 0 gives {np.diagonal(probs[0], -1).mean():.0%} of its attention to the token before")
print(f"head 3 looks most at the last line break for {found:.0%} of the tokens")

# %% tags=["check"]
assert found == 1 and np.diagonal(probs[0], -1).mean() > 0.6

# %% [markdown]
# Here is what the sixteen heads of the model do on the longer verse, as mean probabilities:

# %%
verse_ids = model.tokenizer.encode(verse)
on_verse = model.trace(verse_ids)
n = np.arange(len(verse_ids))
last_break = break_before(pieces(verse_ids, model.tokenizer))  # [T]

habits = {
    "itself": lambda p: p[n, n],
    "one back": lambda p: p[n[1:], n[:-1]],
    "last line break": lambda p: p[n, last_break][last_break > 0],
}
layers = range(model.config.num_hidden_layers)
names = [f"layer {layer}, head {head}" for layer in layers for head in range(H)]
all_heads = np.concatenate([on_verse[f"layers.{layer}.self_attn.probs"] for layer in layers])  # [16, T, S]
shares = np.array([[habit(p).mean() for habit in habits.values()] for p in all_heads])  # [16, 3]

# %%
figures.habits_of_heads(shares, names, habits)

for column, habit in enumerate(habits):
    first, second = np.argsort(-shares[:, column])[:2]
    print(f"{habit}: {names[first]} {shares[first, column]:.2f}, then {names[second]} {shares[second, column]:.2f}")

# %% tags=["check"]
back, to_break = np.argsort(-shares[:, 1]), np.argsort(-shares[:, 2])
assert (names[back[0]], names[to_break[0]]) == ("layer 2, head 0", "layer 2, head 3")
assert shares[back[0], 1] > 0.52 > 0.48 > shares[back[1], 1]
assert shares[to_break[0], 2] > 0.52 > 0.48 > shares[to_break[1], 2]

# %% [markdown]
# Heads 0 and 3 of layer 2 stand out, with more than half of their attention on one habit. Most heads are harder to
# describe.
#
# ## Why the scores are divided
#
# If the channels of queries and keys are independent with variance 1, their dot product, a sum of h products, has
# variance h and a standard deviation of $\sqrt h$. The larger h, the further apart the scores, until softmax gives
# everything to the largest. Dividing by $\sqrt s$ with $s = h$ keeps the standard deviation at 1.
#
# **Predict:** Twenty random keys, $h = 256$, and no division: how much of the probability does the most likely of them
# get on average, a tenth, half or nine tenths?
#
# <details><summary>Reveal</summary>
#
# Nine tenths (0.92). With the division it gets 0.22.
#
# </details>

# %%
generator, spread = np.random.default_rng(0), {}
for size in (32, 256):  # h
    q, k = generator.standard_normal((2, 1000, size))
    scores = q @ k[:20].T  # [1000, 20]
    seen = np.ones(scores.shape, bool)
    raw, divided = (masked_softmax(s, seen).max(axis=-1).mean() for s in (scores, scores / math.sqrt(size)))
    print(f"h = {size}: standard deviation {scores.std():.1f}", end="; ")
    print(f"largest probability of 20: {raw:.2f}, divided {divided:.2f}")
    spread[size] = scores.std() / math.sqrt(size), raw / divided

# %% tags=["check"]
for deviation, ratio in spread.values():
    assert 0.9 < deviation < 1.1 and ratio > 2

# %% [markdown]
# Gemma 2 has a separate config field for $s$, `query_pre_attn_scalar`, because it is not always h:

# %%
print("              s    h  D / H")
for name in ("gemma-2-2b", "gemma-2-9b", "gemma-2-27b"):
    c = RELEASED[name]
    print(f"{name:12} {c.query_pre_attn_scalar:3} {c.head_dim:4} {c.hidden_size / c.num_attention_heads:6.0f}")

# %% tags=["check"]
two, nine, large = (RELEASED[f"gemma-2-{size}"] for size in ("2b", "9b", "27b"))
assert two.query_pre_attn_scalar == two.head_dim and nine.query_pre_attn_scalar == nine.head_dim
assert large.query_pre_attn_scalar == large.hidden_size / large.num_attention_heads != large.head_dim
assert model.config.query_pre_attn_scalar == h == model.config.hidden_size / H

# %% [markdown]
# In the 2B and the 9B it is h, in the 27B it is D / H. People who ported Gemma 2 assumed one rule or the other, and
# each is wrong for some size. In the bundled model all three numbers are the same, so it cannot show the difference:
# test your own code with sizes that differ.
#
# ## From heads to D channels and back
#
# One matrix computes all heads: `q_proj` returns H * h channels, and each head gets h neighbouring ones. Afterwards the
# heads are joined side by side again, and `o_proj` maps [T, H * h] back to [T, D].

# %%
lines(split_heads)

# %% [markdown]
# ## Grouped queries: fewer keys and values
#
# While a model writes, it keeps the keys and values of all tokens so far, in every layer. This cache grows with the
# text, unlike the weights, and all of it is read for each new token. With **multi-head attention** (MHA) each query
# head has its own keys and values. With **grouped-query attention** (GQA), G = H / K query heads share one key-value
# head: they ask different questions of the same keys. In all of Gemma 2, G = 2. Neighbours share: query head $i$ reads
# key-value head $\lfloor i / G \rfloor$.
#
# $$\mathrm{scores}_i = \frac{q_i \, k_{\lfloor i/G \rfloor}^\top}{\sqrt s} \ [T, S], \qquad i = 0 \ldots H - 1$$
#
# Here is all of attention in this model. Follow one query head down its column: it shares the wide boxes with its
# neighbour, and nothing else.

# %%
diagrams.gqa()

# %%
q, k = (record[f"layers.{layer}.self_attn.{name}"] for name in ("q_rope", "k_rope"))  # [H, T, h], [K, S, h]
print("q", q.shape, " k", k.shape)
for i in range(H):
    by_hand = q[i] @ k[i // G].T / math.sqrt(model.config.query_pre_attn_scalar)
    same = np.allclose(by_hand, record[f"layers.{layer}.self_attn.scores"][i], atol=1e-4)
    print(f"query head {i} reads key-value head {i // G}: {'as' if same else 'not as'} in the model")

# %% tags=["check"]
by_hand = np.stack([q[i] @ k[i // G].T for i in range(H)]) / math.sqrt(model.config.query_pre_attn_scalar)
np.testing.assert_allclose(by_hand, record[f"layers.{layer}.self_attn.scores"], atol=1e-4)

# %%
lines(grouped_matmul, "stacked")

# %% [markdown]
# The code does not repeat keys: it stacks the queries of a group, G * T rows, and multiplies once for each of the K
# key-value heads. If you repeat the keys instead, repeat each in place (0 0 1 1) and do not tile them (0 1 0 1). Both
# run, and both give arrays of the right shape:
#
# **Predict:** Here H = 4 and K = 2. How many query heads read the wrong keys if they are tiled?
#
# <details><summary>Reveal</summary>
#
# Two: heads 1 and 2. Heads 0 and 3 are right either way, so a test of the first head alone passes.
#
# </details>

# %%
with inject_mistakes([gqa_tile], model.config, [len(verse_ids)]):
    wrong = model.perplexity(verse)
print(f"{gqa_tile.instead}: perplexity {wrong:.0f} instead of {together:.0f}")

# %% tags=["check"]
assert wrong > 1.4 * together

# %% [markdown]
# Here is what sharing saves, for a text of 8192 tokens in float32. All layers count as global here, so only the heads
# differ; what local layers save is in [tutorial 7](07_local_and_global_layers.ipynb).

# %%
sizes = ("gemma-2-2b", "gemma-2-9b", "gemma-2-27b")


def gigabytes(name, kv_heads):
    """The size of the cache of 8192 tokens with this number of key-value heads."""
    every_layer_global = (GLOBAL,) * RELEASED[name].num_hidden_layers
    config = replace(RELEASED[name], num_key_value_heads=kv_heads, layer_types=every_layer_global)
    return cache_bytes(config, 8192) / 1e9


with_mha = [gigabytes(name, RELEASED[name].num_attention_heads) for name in sizes]
with_gqa = [gigabytes(name, RELEASED[name].num_key_value_heads) for name in sizes]
figures.cache_sizes(sizes, {"MHA: K = H": with_mha, "GQA: K = H / 2": with_gqa})

# %% tags=["check"]
np.testing.assert_allclose(with_mha, 2 * np.array(with_gqa))

# %% [markdown]
# **Predict:** Half of the keys and values are gone. Is a model that was trained this way a tenth worse, a hundredth,
# or no worse at all?
#
# <details><summary>Reveal</summary>
#
# No worse, as far as one can measure: neither in the report nor in our experiment. Read on.
#
# </details>
#
# Half, at every size. What does it cost? For table 8 of the report a 9B was trained both ways. Its mean over four
# benchmarks is 50.3 with MHA and 50.8 with GQA: no relevant difference. In
# [tutorials/experiments](experiments/README.md#table-8-gqa-against-mha) we try the same with models of the size of the
# bundled one, three seeds each; the loss is in nats per token, lower is better:

# %%
gqa, mha = json.loads(Path("experiments/gqa_against_mha.json").read_text())["rows"]
for result in (gqa, mha):
    loss, count = f"{result['mean']:.3f} ± {result['std']:.3f}", f"{result['parameters']:,}"
    print(f"{result['label'] + ':':29} {loss}   {count} parameters")

# %% tags=["check"]
assert abs(gqa["mean"] - mha["mean"]) < mha["std"]
assert gqa["parameters"] < mha["parameters"]

# %% [markdown]
# The difference is smaller than the standard deviation over the seeds with MHA, and GQA has fewer parameters.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The scores of one head. Divide them by the right number.
#
# <details><summary>Hint 1</summary>
#
# Entry [t, s] is the dot product of query t and key s, so all of them are one matrix product. Then there is one
# division.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `query_scalar` is $s$ in the formula above, and need not be h. It is its square root that divides.
#
# </details>


# %%
def head_scores(q, k, query_scalar):
    """q [T, h], k [S, h] -> scores [T, S]"""
    ...


check(head_scores, exercises.SCORES)

# %% [markdown]
# **2.** From scores to the weighted mean of the values, where no token sees later ones. Scores can be large: subtract
# the largest of each row before np.exp. It cancels in the fraction, so the result stays the same.
#
# <details><summary>Hint 1</summary>
#
# Three steps: hide the later keys, take the softmax of each row, multiply by the values.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.tri(T, dtype=bool)` is True where the key is not after the query; `np.where` and `-np.inf` hide the others, since
# the exponential of minus infinity is 0.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Hide first, and then subtract the largest of each row (`axis=-1, keepdims=True`): the largest of all may be hidden.
# After `np.exp`, divide by the sum of the row.
#
# </details>


# %%
def mix(scores, values):
    """scores [T, T], values [T, h] -> [T, h]"""
    ...


check(mix, exercises.MIX)

# %% [markdown]
# **3.** All heads at once, without the division: each query head with the key-value head of its group. There may be
# batch axes before the heads.
#
# <details><summary>Hint 1</summary>
#
# Query head $i$ reads key-value head $\lfloor i / G \rfloor$, with G = H / K. The heads are at axis -3, with or without
# a batch.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Either repeat each key-value head in place: `np.repeat` has the argument `axis`. Or reshape q to [..., K, G, T, h],
# and k to [..., K, 1, S, h].
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `swapaxes(-1, -2)` transposes the last two axes, whatever comes before. In groups, the result is [..., K, G, T, S]
# until you reshape it.
#
# </details>


# %%
def grouped_scores(q, k):
    """q [..., H, T, h], k [..., K, S, h] -> [..., H, T, S]"""
    ...


check(grouped_scores, exercises.GROUPED_SCORES)

# %% [markdown]
# **4.** Back from heads to channels, for `o_proj`: undo `split_heads`. There may be batch axes before the heads.
#
# <details><summary>Hint 1</summary>
#
# The channels of one token are spread over the heads. `reshape` reads numbers in order, so first the heads of a token
# have to lie side by side.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `context.swapaxes(-2, -3)` is [..., T, H, h].
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Now the last two axes become one. `*batch, H, T, h = context.shape` gives you the sizes, for any number of batch axes.
#
# </details>


# %%
def join_heads(context):
    """context [..., H, T, h] -> [..., T, H * h]"""
    ...


check(join_heads, exercises.MERGE_HEADS)

# %% [markdown]
# ## Now in your file
#
# Write `merge_heads`, `softmax` and `attention`, which computes everything from `q` to `o`. It calls two functions that
# you have yet to write: `attention_mask` of the next tutorial and `soft_cap` of the one after. Until then they are
# ours.
#
# The weights are those of one layer, and both their names and those of the records begin with `self_attn.` here:
# `weights["self_attn.q_proj.weight"]`, `tape("self_attn.q", ...)`. The base of the rotation is `config["rope_theta"]`.

# %%
check_file("my_gemma.py", upto="o")

# %% [markdown]
# The solutions are in [solutions/06_attention_and_gqa.py](solutions/06_attention_and_gqa.py), those of your file in
# [solutions/my_gemma](solutions/my_gemma/06_attention_and_gqa.py).
#
# ## Further reading
#
# - [gemma_np/model/attention.py](../gemma_np/model/attention.py): the whole of attention, forward and backward.
# - [gemma_np/model/attention_mask.py](../gemma_np/model/attention_mask.py): mask and softmax.
# - Vaswani et al., [Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.2.
# - Ainslie et al., [GQA: Training Generalized Multi-Query Transformer Models from Multi-Head
#   Checkpoints](https://arxiv.org/abs/2305.13245).
#
# Next: [7. Local and global layers](07_local_and_global_layers.ipynb).
