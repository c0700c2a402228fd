# %% [markdown]
# # 7. Local and global layers
#
# After this you can write the mask of any layer from positions alone, say how far a Gemma sees and what its windows
# save, and keep keys in a ring buffer without losing track of their positions. About 25 minutes. In the [Gemma 2
# report](https://arxiv.org/abs/2408.00118): section 2, "Local Sliding Window and Global Attention", and table 10; the
# window is from [Longformer](https://arxiv.org/abs/2004.05150).
#
# Before this: [6. Attention, and heads that share their keys](06_attention_and_gqa.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from support import check, check_file, diagrams, lines
from support.exercises import local_and_global_layers as exercises
from support.figures import local_and_global_layers as figures
from support.plots import use_style
from support.sliders import Slider, explore

import gemma_np
from gemma_np.config import GLOBAL, LOCAL, RELEASED, GemmaConfig
from gemma_np.memory import cache_bytes
from gemma_np.model.attention_mask import attention_mask, masked_softmax
from gemma_np.model.kv_cache import KVCache, LayerCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes

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
To sleep, perchance to dream. Ay, there's the rub,
For in that sleep of death what dreams may come,
When we have shuffled off this mortal coil,
Must give us pause. There's the respect
That makes calamity of so long life."""

# %%
use_style()
model = gemma_np.load()
ids = model.tokenizer.encode(verse)
T, window, layers = len(ids), model.config.sliding_window, range(model.config.num_hidden_layers)
record = model.trace(ids)
print(f"T = {T} tokens, a window of {window}; layers: {', '.join(model.config.layer_types)}")

# %% tags=["check"]
assert len(ids) > 3 * window

# %% [markdown]
# ## The problem: everything looks at everything
#
# In a layer where each token sees all tokens before it, a text of T tokens has about $T^2 / 2$ scores, and each new
# token reads the keys and values of the whole text. Yet most of what a token needs is close by. So Gemma 2 makes every
# other layer **local**: even layers, from layer 0 on, see the last 4096 tokens; odd layers are **global** and see all
# 8192. The bundled model does the same at its scale, with a window of 64 and at most 256 tokens.
#
# ## The window, from positions
#
# Let $p$ [T] be the positions of the queries and $r$ [S] those of the keys. A query sees a key that is not in its
# future, and, in a local layer with window $W$, one that is fewer than $W$ positions back:
#
# $$\mathrm{visible}_{ij} = (0 \le p_i - r_j) \wedge (p_i - r_j < W) \ [T, S]$$

# %%
lines(attention_mask, "distance")

# %% [markdown]
# **Predict:** How far back does a query see with a window of 64?
#
# <details><summary>Reveal</summary>
#
# 63 positions. The window counts the token itself. A port that compares with $\le$ instead of $<$ sees one more.
#
# </details>
#
# So $W$ includes the token itself: it sees itself and $W - 1$ others. Here is a window of 2 over four tokens; rows are
# queries, columns are keys:

# %%
narrow, wide = attention_mask(range(4), range(4), 2), attention_mask(range(4), range(4), None)
for query in range(4):
    print(f"query {query}: window of 2 {narrow[query].astype(int)}   global {wide[query].astype(int)}")

distances = np.arange(4)[:, None] - np.arange(4)  # how many steps back a key is
print("distances of query 3:", distances[3], " fewer than 2 and not negative:", narrow[3].astype(int))

# %% tags=["check"]
assert np.array_equal(narrow, (distances >= 0) & (distances < 2))
assert narrow.sum(axis=1).tolist() == [1, 2, 2, 2]

# %% [markdown]
# The config says which layers have a window, and softmax gives masked keys a probability of exactly zero:

# %%
lines(GemmaConfig.window)

# %%
lines(masked_softmax, "hide", "exp", "/=")

# %% [markdown]
# Above are the masks of a local and a global layer for this text; below are the attention probabilities of layers 2 and
# 3, as the mean of their four heads. Masked keys are blank.

# %%
titles = {2: "Layer 2, local", 3: "Layer 3, global"}
masks = {titles[n]: attention_mask(range(T), range(T), model.config.window(n)) for n in titles}  # [T, S] each
probs = {titles[n]: record[f"layers.{n}.self_attn.probs"] for n in titles}  # [H, T, S] each
figures.masks_and_probabilities(masks, {title: heads.mean(axis=0) for title, heads in probs.items()})

# %% tags=["check"]
for layer, title in titles.items():
    above_zero = np.count_nonzero(probs[title], axis=-1)  # [H, T]
    assert np.all(above_zero == np.minimum(np.arange(T) + 1, model.config.window(layer) or T))

# %% [markdown]
# In every head, the query at position $i$ has $\min(i + 1, W)$ probabilities above zero in the local layer, and $i + 1$
# in the global one. The global layer also looks mostly close by. How much of its attention falls outside the window?

# %%
far = np.arange(T)[:, None] - np.arange(T) >= window  # [T, S]
outside = []
for layer in layers:
    probs = record[f"layers.{layer}.self_attn.probs"]  # [H, T, S]
    outside.append(np.where(far, probs, 0).sum(axis=-1)[:, window:].mean())
    print(f"layer {layer}: {outside[-1]:.3f} of its attention is outside the window")

# %% tags=["check"]
assert outside[0] == outside[2] == 0
assert 0.04 < outside[1] < 0.08 and 0.1 < outside[3] < 1 / 7

# %% [markdown]
# Less than a seventh. Most of what this model uses is within 64 tokens.
#
# ## How far a token sees in the end
#
# **Predict:** Four layers, all of them local, with a window of 64. How many tokens can influence the last one: 64, 253
# or 256?
#
# <details><summary>Reveal</summary>
#
# 253: the token itself, and 63 more with each layer.
#
# </details>
#
# Local layers do not make the whole model short-sighted. The neighbours that a token sees in layer 1 have already
# gathered information from their own neighbours in layer 0. With local layers alone, each layer adds $W - 1$ positions.
# With a global layer among them, one step reaches everything. Read the picture from the last token upwards: the lines
# lead to all that it has seen, with a window of 3.

# %%
diagrams.reach()

# %% [markdown]
# The same in numbers, for four tokens and a window of 2. What a token has seen after a layer is all that the tokens in
# its window had seen before it:

# %%
reached = np.eye(4, dtype=bool)  # before the first layer, each token knows only itself
for layer in range(3):
    reached = narrow @ reached
    print(f"local layers passed: {layer + 1}; token 3 has seen {np.flatnonzero(reached[3]).tolist()}")
print("global layers passed: 1; token 3 has seen", np.flatnonzero(wide[3]).tolist())

# %% tags=["check"]
assert reached[3].all()

# %% [markdown]
# We can try both: replace one token of the text, and see whether and how much the vector of the *last* token changes
# after each layer.

# %%
places = np.arange(0, T - 1, 6)  # every sixth token is tried
[other] = model.tokenizer.encode(" love", bos=False)


def last_vectors(text, config):
    """The residual stream of the last token after each layer: ids [T] -> [layers, D]."""
    kept = []

    def tape(name, value):
        if name.endswith("resid_post"):
            kept.append(value[-1].copy())
        return value

    transformer(text, model.weights, config, tape=tape)
    return np.stack(kept)


# %%
def changes(config):
    """The relative change of the last token's vector when a token is replaced: [layers, places]."""
    before = last_vectors(ids, config)  # [layers, D]
    size, found = np.linalg.norm(before, axis=-1), []
    for place in places:
        after = last_vectors([*ids[:place], other, *ids[place + 1 :]], config)
        found.append(np.linalg.norm(after - before, axis=-1) / size)
    return np.stack(found, axis=1)


# %%
def reach(config):
    """Which positions can influence the last one after each layer, from the masks alone: bool [layers, T]."""
    reached, rows = np.eye(T, dtype=bool), []
    for layer in layers:
        reached = attention_mask(range(T), range(T), config.window(layer)) @ reached  # through any token it sees
        rows.append(reached[-1])
    return np.stack(rows)


# %%
all_local = replace(model.config, layer_types=(LOCAL,) * len(layers))
configs = {"local and global in turn": model.config, "all layers local": all_local}
change = {title: changes(config) for title, config in configs.items()}  # [layers, places] each
reached = {title: reach(config) for title, config in configs.items()}  # [layers, T] each
figures.effects_of_one_token(places, change, reached)

for title in configs:
    seen = reached[title].sum(axis=1).tolist()
    print(f"{title}: after each layer the last token has seen {seen} of {T} positions")

# %% tags=["check"]
for title in configs:
    assert np.all(change[title][~reached[title][:, places]] < 1e-7)
in_turn, local = change.values()
assert np.all(in_turn[1:] > 1e-5)
assert local[-1, places < 40].max() < in_turn[-1, places < 40].min() / 30
assert reach(all_local).sum(axis=1).tolist() == [min(1 + n * (window - 1), T) for n in (1, 2, 3, 4)]

# %% [markdown]
# The dotted line is the last token. Where a coloured line ends, the masks let nothing through from further back, and
# the model agrees: beyond that point nothing changes except for rounding. On the right, with local layers alone, the
# reach grows by 63 positions per layer, and what comes from far away, through three or four other tokens, fades to
# almost nothing. On the left, as in Gemma 2, a single global layer gives access to the whole text, and every replaced
# token has an effect. Global layers carry information over long distances; local layers are the cheap half.
#
# Set the window and the layers yourself. Each row is a layer of eight, and dark is what the last of 128 tokens has
# seen by then.
#
# **Try:** Without a global layer (9), how wide must the window be for the last token to see all 128? And with one?
#
# <details><summary>Reveal</summary>
#
# 17: 1 + 8 · 16 is 129. With a global layer any window is enough, even 1.
#
# </details>


# %%
def seen_by_the_last(figure, window, every):
    reached, rows = np.eye(128, dtype=bool), []
    for layer in range(8):
        is_global = layer % every == every - 1
        reached = attention_mask(range(128), range(128), None if is_global else window) @ reached
        rows.append(reached[-1])
    axes = figure.subplots()
    axes.imshow(rows, aspect="auto", cmap="Blues", vmin=0, vmax=1.4, interpolation="nearest")
    axes.grid(False)
    axes.set(xlabel="position", ylabel="layer", yticks=range(8))
    axes.set_title(f"seen after each layer: {', '.join(str(row.sum()) for row in rows)} of 128")


every = Slider("one global layer in (layers)", start=6, low=1, high=9)
explore(seen_by_the_last, window=Slider("window (tokens)", 16, 1, 64), every=every)

# %% [markdown]
# ## What it saves
#
# A local layer never looks at a key that has left its window, so it need not keep it. Here is the cache of a text of
# 8192 tokens, with the windows of Gemma 2 and without:

# %%
sizes = ("gemma-2-2b", "gemma-2-9b", "gemma-2-27b")


def without_windows(config):
    """The same config with global layers only."""
    return replace(config, layer_types=(GLOBAL,) * config.num_hidden_layers)


every = [cache_bytes(without_windows(RELEASED[name]), 8192) / 1e9 for name in sizes]
in_turn = [cache_bytes(RELEASED[name], 8192) / 1e9 for name in sizes]
figures.cache_sizes(sizes, {"all layers global": every, "every other with a window of 4096": in_turn})

newer = RELEASED["gemma-3-27b"]
left = cache_bytes(newer, 131_072) / cache_bytes(without_windows(newer), 131_072)
print(f"gemma-3-27b at 131,072 tokens: {left:.2f} of the memory")

# %% tags=["check"]
np.testing.assert_allclose(in_turn, 0.75 * np.array(every))
assert left < 0.2

# %% [markdown]
# A quarter less: half of the layers keep half of the text. A longer text and a shorter window save more. Gemma 3, with
# five local layers for each global one, windows of 1024 and texts of 131,072 tokens, keeps less than a fifth ([tutorial
# 18](18_gemma_1_2_and_3.ipynb)).
#
# ## A ring of slots
#
# The cache of a local layer has exactly $W$ slots. Position $p$ goes to slot $p \bmod W$, where it overwrites position
# $p - W$, which has just left the window. Here is such a ring of four slots; each key contains its own position, so we
# can see where it is stored.

# %%
lines(LayerCache.append, "end - start <= 1", "% self.slots", "self.keys[..., new, :] =", "positions = end - 1")

# %%
ring, steps = LayerCache((1, 4, 1), np.float32), 10
held = np.full((4, steps), np.nan)  # [slots, steps]
for step in range(steps):
    token = np.full((1, 1, 1), step, np.float32)
    keys, values, positions = ring.append(token, token)
    held[: keys.shape[-2], step] = keys[0, :, 0]
figures.slots_of_a_ring(held)
print(f"at position {step}, the slots hold {keys[0, :, 0].astype(int)}, and `append` returns {positions}")

# %% tags=["check"]
assert np.array_equal(keys[0, :, 0], positions)
assert attention_mask([step], positions, 4).all()
for step in range(steps):
    assert set(held[~np.isnan(held[:, step]), step]) == set(range(max(0, step - 3), step + 1))

# %% [markdown]
# From position 4 on, a new key replaces the oldest, and most of the time the slots are not in the order of positions.
# Softmax and the weighted mean do not depend on the order, and keys are rotated before they are stored. The mask does
# depend on positions, so `append` returns the position of each slot, and `attention_mask` needs nothing else. Token by
# token through such rings, the model gets the same results as in one pass:

# %%
cache = KVCache(model.config)
rows = []
for id in ids[:100]:  # longer than the window
    x = transformer([id], model.weights, model.config, cache)
    rows.append(lm_head(x[-1], model.weights, model.config))
print("slots of the four layers:", [layer.slots for layer in cache.layers])

# %% tags=["check"]
np.testing.assert_allclose(rows, record["logits_capped"][:100], atol=1e-3)
assert [layer.slots for layer in cache.layers] == [64, 256, 64, 256]

# %% [markdown]
# ## A narrower window at inference
#
# **Predict:** The bundled model was trained with a window of 64. At which window does it become a tenth worse, if
# nothing else changes: 32, 16 or 8?
#
# <details><summary>Reveal</summary>
#
# At 8. At 32 and 16 its perplexity is at most 2 % higher.
#
# </details>
#
# Table 10 of the report asks what happens when the window of a trained model is narrowed, with no further training: at
# 4096, 2048 and 1024, its perplexity is 1.63, 1.63 and 1.64. So a narrower window saves time and memory at almost no
# cost. Below are the bundled model on our verse, and, from
# [tutorials/experiments](experiments/README.md#table-10-the-window-narrowed-at-inference), three models of its size,
# trained with a window of 64, on two whole plays:

# %%
narrowed = json.loads(Path("experiments/window_at_inference.json").read_text())["rows"]
mean = {row["label"]: row["mean"] for row in narrowed}
perplexity = {}
for width in (64, 32, 16, 8, 4, 1):
    perplexity[width] = replace(model, config=replace(model.config, sliding_window=width)).perplexity(verse)
    loss = mean[f"window {width}"]
    print(f"window {width:2}: perplexity {perplexity[width]:5.1f}   experiment: {loss:.3f} nats ({np.exp(loss):.1f})")

# %% tags=["check"]
assert perplexity[16] < 1.02 * perplexity[64] and mean["window 16"] < mean["window 64"] + 0.02
assert perplexity[8] > 1.1 * perplexity[64] and mean["window 8"] > mean["window 64"] + 0.04
assert perplexity[1] > 1.6 * perplexity[64] and mean["window 1"] > mean["window 64"] + 0.4

# %% [markdown]
# Narrowing the window to a quarter costs almost nothing here either: global layers still see what local ones no longer
# do. It only hurts when the window is eight tokens wide or less.
#
# ## Mistakes that stay hidden
#
# For a text that is no longer than the window, both kinds of layers have the same mask. A test on short prompts cannot
# find these mistakes:

# %%
named = {mistake.id: mistake for mistake in CATALOGUE if "window" in mistake.id}
short = "\n".join(verse.splitlines()[:2])
found = {}
for text in (short, verse):
    n = len(model.tokenizer.encode(text))
    print(f"{n} tokens: perplexity {model.perplexity(text):.1f}")
    for mistake in named.values():
        with inject_mistakes([mistake], model.config, [n]):
            found[mistake.id, text] = model.perplexity(text)
        print(f"  {found[mistake.id, text]:.1f}  {mistake.id}: {mistake.instead}")

# %% tags=["check"]
right = model.perplexity(verse)
assert all(found[id, short] == model.perplexity(short) for id in named)
assert all(abs(found[id, verse] / right - 1) < 0.01 for id in ("window-off-by-one", "window-all-layers"))
assert len(model.tokenizer.encode(short)) < window
assert found["window-ignored", verse] > 1.15 * right and found["window-parity", verse] > 1.15 * right

# %% [markdown]
# The long text shows that the window belongs to the *model*: local heads that suddenly see more than in training do
# harm. One key too many, or windows in the global layers, hardly matter here, where little attention goes far. To find
# such mistakes, compare masks or intermediates; generated text does not show them.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** Which query sees which key, from their positions, in any order.
#
# <details><summary>Hint 1</summary>
#
# What decides is the distance between two positions: `query_positions[:, None] - key_positions` has the shape [T, S].
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Two conditions: the distance is not negative, and it is less than the window, if there is one. `&` combines arrays of
# bool.
#
# </details>


# %%
def can_see(query_positions, key_positions, window):
    """query_positions [T], key_positions [S], window a number or None -> bool [T, S]"""
    ...


check(can_see, exercises.VISIBLE)

# %% [markdown]
# **2.** The mask of a layer of Gemma 2, for a text that starts at position 0.
#
# <details><summary>Hint 1</summary>
#
# Which layers have the window at all? Layer 0 does.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Every other layer is local: those with an even number. Queries and keys are both `np.arange(T)`, for your `can_see`.
#
# </details>


# %%
def layer_mask(layer, T, window):
    """layer, T and window are numbers -> bool [T, T]"""
    ...


check(layer_mask, exercises.LAYER_MASK)

# %% [markdown]
# **3.** The ring: which position does each slot hold after `length` tokens (at least as many as there are slots)?
#
# <details><summary>Hint 1</summary>
#
# Look at one column of the plot above.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# You may fill the ring in a loop over all positions: position p goes to slot `p % slots`, and later ones overwrite
# earlier ones.
#
# </details>


# %%
def slot_positions(length, slots):
    """length and slots are numbers -> positions, integers [slots]"""
    ...


check(slot_positions, exercises.SLOT_POSITIONS)

# %% [markdown]
# **4.** A long text is read in chunks. A local layer has read `start` tokens, and now reads T more at once. The queries
# of this chunk meet two sorts of keys: first those in the ring of `window` slots, slot by slot, as the tokens before
# have left it, then those of the chunk itself. Which query sees which key? (As long as the ring is not full, only its
# first `start` slots hold a key.)
#
# <details><summary>Hint 1</summary>
#
# Your `can_see` needs nothing but positions, and does not care about their order. So: what are the positions of the
# queries, and of the keys?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The queries are at `start` to `start + T - 1`. The keys are first those in the slots, then those of the chunk itself;
# `np.concatenate` joins the two.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `min(start, window)` slots hold a key. Fill an array of this length in a loop over the positions before `start`, as in
# exercise 3.
#
# </details>


# %%
def chunk_mask(start, T, window):
    """start, T and window are numbers -> bool [T, S], S = min(start, window) + T"""
    ...


check(chunk_mask, exercises.CHUNK_MASK)

# %% [markdown]
# ## Now in your file
#
# Write `layer_window`, which reads the window of a layer from the config, and `attention_mask`. The text of the check
# is longer than the window, so that a window off by one shows.

# %%
check_file("my_gemma.py", upto="probs")

# %% [markdown]
# The solutions are in [solutions/07_local_and_global_layers.py](solutions/07_local_and_global_layers.py), those of your
# file in [solutions/my_gemma](solutions/my_gemma/07_local_and_global_layers.py).
#
# ## Further reading
#
# - [gemma_np/model/attention_mask.py](../gemma_np/model/attention_mask.py): mask and softmax, 40 lines.
# - [gemma_np/model/kv_cache.py](../gemma_np/model/kv_cache.py): the ring, also when several tokens wrap at once.
# - Beltagy et al., [Longformer](https://arxiv.org/abs/2004.05150): local attention, and how its reach grows with depth.
# - Jiang et al., [Mistral 7B](https://arxiv.org/abs/2310.06825), section 2: the window and the ring.
#
# Next: [8. Soft-capping](08_soft_capping.ipynb).
