# %% [markdown]
# # 11. The cache, and generating text
#
# After this you can read a prompt once, keep its keys and values, and generate token after token from them, also
# through a ring that holds only a window; and choose a token from a distribution in four ways. About 20 minutes. In the
# [Gemma 2 report](https://arxiv.org/abs/2408.00118): section 2, "Grouped-Query Attention" and "Local Sliding Window and
# Global Attention", which both make the cache smaller, and table 1.
#
# Before this: [10. The whole model](10_the_whole_model.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import numpy as np
from support import check, check_file, diagrams, lines
from support.exercises import cache_and_generation as exercises
from support.figures import cache_and_generation as figures
from support.plots import pieces, use_style
from support.sliders import Slider, explore

import gemma_np
from gemma_np.model.attention import attend
from gemma_np.model.attention_mask import attention_mask, masked_softmax
from gemma_np.model.kv_cache import KVCache, LayerCache
from gemma_np.model.log_probs import negative_log_likelihood
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes
from gemma_np.text.sampling import Sampling

# %%
use_style()
model = gemma_np.load()
config, weights, tokenizer = model.config, model.weights, model.tokenizer
ids = tokenizer.encode(
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer the slings and arrows of "
    "outrageous fortune, or to take arms against a sea of troubles, and by opposing end them. To die, to sleep, no more."
)
T = len(ids)
print(f"T = {T} tokens; the window of a local layer is {config.sliding_window}")

# %% tags=["check"]
assert config.sliding_window < T

# %% [markdown]
# ## The problem: the same work again and again
#
# To generate a token, the model reads the whole text before it. To generate the next one, it would read all of that
# again, plus one token. But no token sees a later one, so the intermediates of the earlier tokens cannot change. Here
# we compare those of the first 40 tokens, alone and as the beginning of the longer text:
#
# **Predict:** How many rows (vectors of one token in one pass) does it take to generate T = 76 tokens one by one if
# every pass reads the whole text?
#
# <details><summary>Reveal</summary>
#
# $1 + 2 + \dots + 76 = 2926$, against 76 with a cache: $(T + 1) / 2$ times as many. The factor grows with the text.
#
# </details>

# %%
short, long = model.trace(ids[:40]), model.trace(ids)
for name in ("layers.3.self_attn.k_rope", "layers.3.self_attn.v", "layers.3.resid_post"):
    difference = np.abs(short[name] - long[name][..., :40, :]).max()
    print(f"{name:26} numbers up to {np.abs(short[name]).max():4.1f}, which differ by at most {difference:.1g}")

again, once = sum(range(1, T + 1)), T
print(f"rows computed to generate {T} tokens one by one: {again} without a cache, {once} with it")

# %% tags=["check"]
for name in ("layers.3.self_attn.k_rope", "layers.3.self_attn.v", "layers.3.resid_post"):
    np.testing.assert_allclose(short[name], long[name][..., :40, :], atol=2e-5)
assert again > 30 * once

# %% [markdown]
# What does a new token need from the old ones? In attention, its query is compared with their keys, and it receives
# their values. Nothing else looks at another token. So we keep the keys (already rotated to their positions) and the
# values; the old queries are not needed any more. This is the **KV cache**, $2 \cdot K \cdot h$ numbers per token and
# layer.
#
# Here are three tokens with one head of h = 2 channels, first all at once, then the third one alone, with the keys and
# values of the first two from the cache:

# %%
q, k = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]])  # [T, h] each
v = np.array([[10.0, 0.0], [0.0, 10.0], [2.0, 4.0]])  # [T, h]

probs = masked_softmax(q @ k.T, np.tri(3, dtype=bool))  # [T, S]; a token sees itself and those before it
print("all at once:", *(probs @ v).round(2))

cached_keys, cached_values = k[:2], v[:2]
keys, values = np.vstack([cached_keys, k[2]]), np.vstack([cached_values, v[2]])  # [S, h] each
scores = keys @ q[2]  # [S], of the third token only
probs = np.exp(scores) / np.exp(scores).sum()
print("the third alone: scores", scores, " probabilities", probs.round(3), " result", (probs @ values).round(2))

# %% [markdown]
# The third token gets the same vector, from one row of scores instead of three.
#
# ## The formula
#
# For $T$ new tokens after the $n$ in the cache, the keys [K, S, h] and values [K, S, h] are those in the cache followed
# by the new ones, with $S = n + T$ in a global layer, and the new tokens have positions $n, …, n + T - 1$:
#
# $$\mathrm{keys} = [\mathrm{keys}_\mathrm{cache};\ \mathrm{rope}(k, n, …, n+T-1)] \qquad
# \mathrm{probs}\,[H, T, S] = \mathrm{softmax}\big(\mathrm{mask}(\mathrm{cap}(q \cdot \mathrm{keys}^\top / \sqrt s))\big)$$
#
# As in tutorial 6, $s$ is `query_pre_attn_scalar`. In the code:

# %%
lines(attend, "start =", "positions =", "cos, sin =", "keys, values, key_positions", "mask =")

# %% [markdown]
# The mask depends on the positions of queries and keys, not on their indices in an array. So one line works for a whole
# prompt and for a single token:

# %%
lines(attention_mask, "distance")

# %% tags=["check"]
assert attention_mask(range(0, 3), range(0, 3), None).astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
one_new = attention_mask(range(3, 4), range(0, 4), None)
assert one_new.astype(int).tolist() == [[1, 1, 1, 1]]  # it sees everything

# %% [markdown]
# A local layer never looks further back than its window, so its cache is a ring of `window` slots: the token at
# position $p$ goes to slot $p \bmod \mathrm{window}$, where it replaces the key that has just left the window.

# %%
lines(LayerCache.append, "new = np.arange", "self.keys[..., new, :] =", "positions = end - 1")

# %% [markdown]
# Here is a ring of three slots; each key is its position, so that we see where it goes. `append` returns what the new
# token may attend to, with the position of each key:

# %%
ring = LayerCache((1, 3, 1), np.float64)  # K = 1, three slots, h = 1
for position in range(5):
    k = np.full((1, 1, 1), float(position))
    keys, values, positions = ring.append(k, k)
    print(f"token {position} goes to slot {position % 3}; the slots hold {positions.tolist()}")

# %% tags=["check"]
assert np.array_equal(keys.ravel(), positions)

# %% [markdown]
# ### Several tokens at once
#
# A prompt is often longer than the window, or arrives in chunks, so several tokens must be appended at once. Now the
# order matters. Tokens 5 and 6 come next. Token 5 sees 3, 4 and itself; token 6 goes to slot 0, where token 3 is. If we
# stored the new keys first and attended afterwards, token 5 would miss token 3. So the code attends to the *old slots
# in the order of their positions, followed by all new keys*; the mask, which knows the positions, hides what is too far
# away for each token. Only then are the new keys stored, the last ones if there are more than slots. The picture shows
# both, one token at a time (orange: what is new) and the two tokens together: token 3 is gone from the last ring, but
# token 5 has seen it.

# %%
diagrams.ring()

# %%
k = np.array([5.0, 6.0]).reshape(1, 2, 1)  # [K, T, h]
keys, values, positions = ring.append(k, k)
print("attended to:", positions.tolist(), " afterwards the slots hold:", ring.keys.ravel().astype(int).tolist())
print("rows: tokens 5 and 6, columns:", positions.tolist())
print(attention_mask(range(5, 7), positions, window=3).astype(int))

# %% tags=["check"]
assert ring.keys.ravel().tolist() == [6, 4, 5]
assert np.array_equal(attention_mask([5], positions, 3)[0], [0, 1, 1, 1, 0])

# %%
lines(LayerCache.append, "before = np.arange", "keys = np.concatenate", "kept =", "self.keys[..., kept")

# %% [markdown]
# ## Prefill and decode by hand
#
# Reading the whole prompt at once is called **prefill**; after that, each **decode** step reads the one token that was
# just generated.

# %%
cache = KVCache(config, max_length=T + 8)
x = transformer(ids, weights, config, cache)  # prefill: [T, D]
written = []
for _ in range(8):
    token = int(lm_head(x[-1], weights, config).argmax())  # the last row predicts the next token
    written.append(token)
    x = transformer([token], weights, config, cache)  # decode: [1, D]

print(repr(tokenizer.decode(written)))
for layer in (0, 1):
    print(f"layer {layer}: keys {cache.layers[layer].keys.shape} [K, slots, h]")

# %% tags=["check"]
assert cache.length == T + 8
assert written == list(model.stream_ids(ids, 8))

# %% [markdown]
# A cache must satisfy one law: **cached equals uncached, wherever the text is split**. In any language, this is worth a
# test, on a text longer than the window:

# %%
uncached = model.logits(ids)  # [T, V]
differences = []
for cut in range(1, T):
    cache = KVCache(config, T)
    parts = [transformer(part, weights, config, cache) for part in (ids[:cut], ids[cut:])]
    differences.append(np.abs(lm_head(np.concatenate(parts), weights, config) - uncached).max())

cache = KVCache(config, T)
one_by_one = np.concatenate([transformer([id], weights, config, cache) for id in ids])
differences.append(np.abs(lm_head(one_by_one, weights, config) - uncached).max())
print(f"{len(differences)} ways to split: logits up to {np.abs(uncached).max():.0f} differ by {max(differences):.0e}")

# %% tags=["check"]
assert max(differences) < 1e-4

# %% [markdown]
# ## Two mistakes that show only in decoding
#
# The logits of a prompt can be right to the last digit, and the generated text can still be nonsense, or subtly worse.
# It happens in two ways: the positions of new tokens start from zero again; or the mask takes a single token, which is
# row 0 of its pass, for the token at position 0, so it sees only `<bos>`. We inject each mistake
# from the catalogue, as if the first 30 tokens were the prompt and the others were decoded one by one.

# %%
prompt = 30
passes = [prompt] + [1] * (T - prompt)
surprise, errors = {"right": negative_log_likelihood(uncached[:-1], np.array(ids[1:]))}, {}  # nats, [T - 1]
for name in ("decode-positions", "decode-mask-index"):
    [mistake] = (mistake for mistake in CATALOGUE if mistake.id == name)
    with inject_mistakes([mistake], config, passes):
        wrong = model.logits(ids)  # [T, V]
    surprise[name] = negative_log_likelihood(wrong[:-1], np.array(ids[1:]))
    errors[f"{name}: {mistake.instead}"] = np.abs(wrong - uncached).mean(axis=-1)  # [T]
figures.errors_by_position(errors, prompt)

for name, nats in surprise.items():
    print(f"{name:18} {nats[:prompt].mean():.2f} nats per token in the prompt, {nats[prompt:].mean():.2f} after it")

# %% tags=["check"]
for error in errors.values():
    assert error[:prompt].max() < 1e-5 < 0.1 < error[prompt:].mean()
assert min(surprise[name][prompt:].mean() for name in list(surprise)[1:]) > surprise["right"][prompt:].mean() + 0.2

# %% [markdown]
# ## From logits to a token
#
# Greedy decoding takes the most likely token; it gives the same text each time, and small models soon repeat
# themselves. Alternatively, sample from $P = \mathrm{softmax}(\mathrm{logits} / \tau)$ [V]. A **temperature** $\tau <
# 1$ sharpens the distribution. **Top-k** keeps the $k$ most likely tokens; **top-p** keeps the fewest most likely
# tokens whose probability adds up to $p$: few where the model is certain, many where it is not. The remaining
# probabilities are divided by their sum.
#
# For four tokens with the probabilities 0.5, 0.3, 0.15 and 0.05:
#
# **Predict:** How many of them does top-p keep with p = 0.7, and how many with p = 0.9?
#
# <details><summary>Reveal</summary>
#
# Two, then three. A token is kept if those before it do not add up to p yet; 0.5 + 0.3 reaches 0.7, but not 0.9.
#
# </details>

# %%
few = np.log([0.5, 0.3, 0.15, 0.05])  # logits [V]
for settings in ({}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.7}, {"top_p": 0.9}):
    chosen, probs = Sampling(**{"temperature": 1.0} | settings).distribution(few)
    print(f"{settings or 'unchanged'} keeps", dict(zip(chosen.tolist(), probs.round(3).tolist(), strict=True)))

# %% tags=["check"]
squares = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
np.testing.assert_allclose(Sampling(0.5).distribution(few)[1], squares / squares.sum())

# %% [markdown]
# A temperature of 0.5 squares the probabilities and divides them by their sum. Top-p with 0.7 keeps two tokens: the
# first alone has 0.5, which is less than 0.7, and with the second it is enough.

# %%
lines(Sampling.distribution)

# %%
logits = model.logits(tokenizer.encode("I thank you, my"))[-1]  # [V]
ways = {
    "unchanged": Sampling(1.0),
    "temperature 0.5": Sampling(0.5),
    "top-k, k = 5": Sampling(1.0, top_k=5),
    "top-p, p = 0.5": Sampling(1.0, top_p=0.5),
}
probs = {title: way.probs(logits) for title, way in ways.items()}  # [V] each, 0 for what is dropped
order = np.argsort(-logits)[:10]
labels = pieces(order, tokenizer)
figures.next_token(probs, order, labels, "I thank you, my")

# %% tags=["check"]
assert all(abs(values.sum() - 1) < 1e-9 for values in probs.values())
assert Sampling(0.0).choose(logits, np.random.default_rng(0)) == order[0]
assert np.count_nonzero(probs["top-k, k = 5"]) == 5 < np.count_nonzero(probs["top-p, p = 0.5"]) < 10

# %% [markdown]
# And this is what the model writes, first greedily, then sampled at a temperature of 0.7:

# %%
for sampling in ({}, {"temperature": 0.7, "seed": 3}):
    print(repr(model.generate("I thank you, my", 60, **sampling)))

# %% [markdown]
# Now with sliders, after the same words.
#
# **Try:** With top-p at 0.7, how many tokens are left at the temperatures 0.5, 1 and 2?
#
# <details><summary>Reveal</summary>
#
# 1, 30 and 374. In a flat distribution it takes many tokens to have 70 % together.
#
# </details>


# %%
def next_token(figure, temperature, top_p):
    chosen, probs = Sampling(temperature, top_p=top_p).distribution(logits)
    of_id = dict(zip(chosen.tolist(), probs, strict=True))
    axes = figure.subplots()
    axes.barh(labels, [of_id.get(int(id), 0) for id in order])
    axes.invert_yaxis()
    axes.set(xlabel="probability", xlim=(0, 1))
    axes.set_title(f"temperature {temperature:.2g}, top-p {top_p:.2g}: {len(chosen)} tokens left")


explore(
    next_token,
    temperature=Slider("temperature", start=1.0, low=0.1, high=2.0, step=0.1),
    top_p=Slider("top-p (probability)", start=0.7, low=0.05, high=1.0, step=0.05),
)

# %% [markdown]
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The generation loop: prefill, then one token at a time, always the most likely.
#
# <details><summary>Hint 1</summary>
#
# `transformer(unread, weights, config, cache)` returns [T, D]; T is 1 after the prompt.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Make one `KVCache(config, max_length=...)`, and pass it to every call. `unread` is the prompt at first, then only the
# newest token.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `lm_head(x[-1], weights, config)` are the logits of the next token.
#
# </details>


# %%
def greedy(ids, count, weights, config):
    """ids: list of T numbers, count: number of new tokens -> list of `count` numbers"""
    ...


check(greedy, exercises.DECODE)

# %% [markdown]
# **2.** Top-p, with a temperature.
#
# <details><summary>Hint 1</summary>
#
# Sort by probability, largest first; keep a token if those before it add up to less than top_p.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `order = np.argsort(-probs)`, and `np.cumsum(probs[order]) - probs[order]` is what lies before each.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Put the kept ones back to where they were, and divide by their sum.
#
# </details>


# %%
def nucleus(logits, temperature, top_p):
    """logits [V] -> probabilities [V], zero for the tokens that are dropped"""
    ...


check(nucleus, exercises.TOP_P)

# %% [markdown]
# **3.** Append several keys to the ring of a local layer. The ring has as many slots as the window, `length` tokens have
# been read before, and position p is in slot p % slots. Return the keys that at least one of the new tokens sees, in the
# order of their positions and the new ones included, and the ring afterwards.
#
# <details><summary>Hint 1</summary>
#
# The new token at position p sees the positions from p - slots + 1 to p. So the first new token, at `length`, sees most
# of the old ones.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Collect what is seen before you write. `ring[positions % slots]` are the old keys at an array of positions.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Then write the new keys one after the other into a copy of the ring; of more than `slots` keys the last ones stay.
#
# </details>


# %%
def append(ring, length, new):
    """ring [slots, h], length a number, new keys [T, h] -> keys that are seen [S, h], ring afterwards [slots, h]"""
    ...


check(append, exercises.APPEND)

# %% [markdown]
# ## Now in your file
#
# Write `LayerCache`, `new_cache` and `generate`. `attention` and `gemma` already use a cache if they are given one. One
# `append` serves a prompt, a chunk and a single token: it returns the positions that are kept, then the new ones,
# before the new ones overwrite anything.

# %%
check_file("my_gemma.py", upto="decoding")

# %% [markdown]
# ## The capstone
#
# Your file is a whole Gemma 2 now. The check has read a text in three ways across the wrap of the ring: one token at a
# time, in chunks, and a prompt longer than the window, and every intermediate of each pass was judged by its own
# inputs, as `gemma-np diagnose` does. To see that it would notice a mistake, plant one in your file and run the cell
# again: forget the `1 +` of a norm, let a local layer see one key too many, begin every pass at position 0 instead of
# `cache[0].length`, or store a chunk in a slot that is off by one. Can you read the mistake off the answer?
#
# Then let it write. Here everything is yours but the tokenizer and the folder of the model:
#
# ```python
# import my_gemma
#
# config, weights = my_gemma.load(gemma_np.gemma.BUNDLED["shakespeare-4m"])
# ids = tokenizer.encode("[Enter HAMLET.]\n\nHAMLET.\n")
# print(tokenizer.decode(my_gemma.generate(ids, 60, weights, config)))
# ```
#
# The folder of `google/gemma-2-2b` has the same files and keys ([tutorial 2](02_a_real_checkpoint.ipynb)), so your file
# is all that you need to run it, with 10 GB of memory.

# %% [markdown]
# The solutions are in [solutions/11_cache_and_generation.py](solutions/11_cache_and_generation.py), those of your file
# in [solutions/my_gemma](solutions/my_gemma/11_cache_and_generation.py).
#
# ## Further reading
#
# - [gemma_np/model/kv_cache.py](../gemma_np/model/kv_cache.py): the ring, including several tokens that wrap at once.
# - [gemma_np/text/generation.py](../gemma_np/text/generation.py) and [sampling.py](../gemma_np/text/sampling.py): the
#   complete loop and the choice of the token.
# - Jiang et al., [Mistral 7B](https://arxiv.org/abs/2310.06825), section 2, for the ring; Holtzman et al., [The Curious
#   Case of Neural Text Degeneration](https://arxiv.org/abs/1904.09751), for top-p.
#
# Next: [12. Speed](12_speed.ipynb).
