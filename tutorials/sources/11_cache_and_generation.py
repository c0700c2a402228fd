# %% [markdown]
# # 11. The cache, and generating text
#
# After this you can read a prompt once, keep its keys and values, and generate token after token from them; choose a
# token from a distribution in four ways; and estimate, from two measurements, how fast your machine can generate text
# with a Gemma 2 of any size. About 15 minutes. In the [Gemma 2 report](https://arxiv.org/abs/2408.00118): section 2,
# "Grouped-Query Attention" and "Local Sliding Window and Global Attention", which both make generation cheaper, and
# table 1.
#
# Before this: [10. The whole model](10_the_whole_model.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from support import check, lines
from support.exercises import cache_and_generation as exercises
from support.plots import use_style

import gemma_np
from gemma_np import RELEASED
from gemma_np.config import GLOBAL, gemma2_config
from gemma_np.memory import cache_bytes, weight_bytes
from gemma_np.model.attention import attend
from gemma_np.model.attention_mask import attention_mask
from gemma_np.model.kv_cache import KVCache, LayerCache
from gemma_np.model.log_probs import negative_log_likelihood
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes
from gemma_np.text.sampling import Sampling
from gemma_np.training.trainer import initial_weights
from gemma_np.weights.formats import matrix_bytes
from gemma_np.weights.linear import float_product, linear

use_style()
model = gemma_np.load()
config, weights, tokenizer = model.config, model.weights, model.tokenizer
ids = tokenizer.encode(
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer the slings and arrows of "
    "outrageous fortune, or to take arms against a sea of troubles, and by opposing end them. To die, to sleep, no more."
)
T = len(ids)
print(f"T = {T} tokens; the window of a local layer is {config.sliding_window}")
assert config.sliding_window < T

# %% [markdown]
# ## The problem: the same work again and again
#
# To generate a token, the model reads the whole text before it. To generate the next one, it would read all of that
# again, plus one token. But no token sees a later one, so the intermediates of the earlier tokens cannot change. Here
# we compare those of the first 40 tokens, alone and as the beginning of the longer text:

# %%
short, long = model.trace(ids[:40]), model.trace(ids)
for name in ("layers.3.self_attn.k_rope", "layers.3.self_attn.v", "layers.3.resid_post"):
    np.testing.assert_allclose(short[name], long[name][..., :40, :], atol=2e-5)

again, once = sum(range(1, T + 1)), T
print(f"rows computed to generate {T} tokens one by one: {again} without a cache, {once} with it")
assert again > 30 * once

# %% [markdown]
# What does a new token need from the old ones? In attention, its query is compared with their keys, and it receives
# their values. Nothing else looks at another token. So we keep the keys (already rotated to their positions) and the
# values; the old queries are not needed any more. This is the **KV cache**, $2 \cdot K \cdot h$ numbers per token and
# layer.
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

# %%
assert attention_mask(range(0, 3), range(0, 3), None).astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
assert attention_mask(range(3, 4), range(0, 4), None).astype(int).tolist() == [
    [1, 1, 1, 1]
]  # one new token sees everything

# %% [markdown]
# A local layer never looks further back than its window, so its cache is a ring of `window` slots: the token at
# position $p$ goes to slot $p \bmod \mathrm{window}$, where it replaces the key that has just left the window.

# %%
lines(LayerCache.append, "new = np.arange", "self.keys[..., new, :] =", "positions = end - 1")

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
assert max(differences) < 1e-4

# %% [markdown]
# ## Two mistakes that show only in decoding
#
# The logits of a prompt can be right to the last digit, and the generated text can still be nonsense, or subtly worse.
# Two ways in which this has happened: the position of each new token starts from zero again; or the mask treats a
# single token, which is row 0 of its pass, as the token at position 0, so it sees only `<bos>`. We inject each mistake
# from the catalogue, as if the first 30 tokens were the prompt and the others were decoded one by one.

# %%
prompt = 30
passes = [prompt] + [1] * (T - prompt)
surprise = {"right": negative_log_likelihood(uncached[:-1], np.array(ids[1:]))}  # nats, [T - 1]

figure, axes = plt.subplots()
for colour, name in (("C5", "decode-positions"), ("C0", "decode-mask-index")):
    [mistake] = (mistake for mistake in CATALOGUE if mistake.id == name)
    with inject_mistakes([mistake], config, passes):
        wrong = model.logits(ids)
    surprise[name] = negative_log_likelihood(wrong[:-1], np.array(ids[1:]))
    axes.plot(np.abs(wrong - uncached).mean(axis=-1), color=colour, label=f"{name}: {mistake.instead}")
    assert np.abs(wrong - uncached)[:prompt].max() < 1e-4 < 0.1 < np.abs(wrong - uncached)[prompt:].mean()
axes.axvline(prompt - 0.5, color="C6", linestyle=":")
axes.set(xlabel="position (the first decode step is at the dotted line)", ylabel="mean |error| of the logits")
axes.set(ylim=(0, None), title="Right in the prompt, wrong from the first decoded token on")
axes.legend(loc="lower center", bbox_to_anchor=(0.45, -0.5), fontsize=8)
plt.show()

for name, nats in surprise.items():
    print(f"{name:18} {nats[:prompt].mean():.2f} nats per token in the prompt, {nats[prompt:].mean():.2f} after it")
assert min(surprise[name][prompt:].mean() for name in list(surprise)[1:]) > surprise["right"][prompt:].mean() + 0.2

# %% [markdown]
# ## From logits to a token
#
# Greedy decoding takes the most likely token; it gives the same text each time, and small models soon repeat
# themselves. Alternatively, sample from $P = \mathrm{softmax}(\mathrm{logits} / \tau)$ [V]. A **temperature** $\tau <
# 1$ sharpens the distribution. **Top-k** keeps the $k$ most likely tokens; **top-p** keeps the fewest most likely
# tokens whose probability adds up to $p$: few where the model is certain, many where it is not. The remaining
# probabilities are divided by their sum.

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
order = np.argsort(-logits)[:10]
labels = [tokenizer.piece(int(id)).replace("\n", "⏎") for id in order]

figure, all_axes = plt.subplots(1, 4, sharey=True, sharex=True)
for axes, (title, way) in zip(all_axes, ways.items(), strict=True):
    chosen, probs = way.distribution(logits)
    of_id = dict(zip(chosen.tolist(), probs, strict=True))
    axes.barh(labels, [of_id.get(int(id), 0) for id in order], color="C0")
    axes.set_title(f"{title}\n{len(chosen)} tokens left", fontsize=9)
    axes.set_xlabel("probability")
    axes.set_axisbelow(True)
    assert abs(probs.sum() - 1) < 1e-9
all_axes[0].invert_yaxis()
figure.suptitle("What may follow “I thank you, my” (the ten most likely tokens)")
plt.show()

greedy_first = Sampling(0.0).choose(logits, np.random.default_rng(0))
assert greedy_first == order[0]
assert len(ways["top-k, k = 5"].distribution(logits)[0]) == 5
assert 5 < len(ways["top-p, p = 0.5"].distribution(logits)[0]) < 10
for sampling in ({}, {"temperature": 0.7, "seed": 3}):
    print(repr(model.generate("I thank you, my", 60, **sampling)))

# %% [markdown]
# ## Why decoding is bound by memory
#
# A product of $T$ vectors [T, in] with a weight [out, in] takes $2 \cdot T \cdot \mathrm{out} \cdot \mathrm{in}$
# floating point operations (flops: one multiplication and one addition for each weight and vector). For that, the
# weight is read from memory once, and the vectors are read and written: $b \cdot \mathrm{out} \cdot \mathrm{in} + 4 T
# (\mathrm{in} + \mathrm{out})$ bytes, with $b$ bytes per weight. Flops per byte are called the **arithmetic
# intensity**:
#
# $$I = \frac{2 \, T \, \mathrm{out} \, \mathrm{in}}{b \, \mathrm{out} \, \mathrm{in} + 4 \, T \, (\mathrm{in} +
# \mathrm{out})} \approx \frac{2 T}{b} \quad \text{for few vectors}$$
#
# In prefill, each weight that is read is used for all tokens of the prompt. In decode it is used once: half a flop per
# byte in float32. A processor could do far more flops in the time that it takes to read a byte, so it waits for the
# memory. Its speed is limited by its peak, and by the bandwidth:
#
# $$\text{flop/s} \le \min(\text{peak},\ I \cdot \text{bandwidth})$$
#
# This is the line of code in question:

# %%
lines(float_product, "return x @")


# %%
def intensity(T, shape, bytes_per_weight=4.0):
    numbers = shape[0] * shape[1]
    return 2 * T * numbers / (bytes_per_weight * numbers + 4 * T * sum(shape))


two_b = RELEASED["gemma-2-2b"]
shape = (two_b.intermediate_size, two_b.hidden_size)  # gate_proj of the 2B, [F, D]
for name in ("float32", "bfloat16", "int8", "int4"):
    bytes_per_weight = matrix_bytes(shape, name) / (shape[0] * shape[1])  # with the scales of int8 and int4
    print(f"decode, {name:8} {intensity(1, shape, bytes_per_weight):.2f} flops per byte")
assert 0.49 < intensity(1, shape) < 0.5
assert intensity(512, shape) > 200 * intensity(1, shape)

# %% [markdown]
# ## The roofline of your machine
#
# These cells measure your machine, so your numbers will differ, and vary from run to run, especially if it is busy. The
# bandwidth is that of the fastest of several ways to read a matrix of 85 MB once; the peak is that of the fastest
# product of two matrices. All are measured in turn for a few seconds, and the best time of each counts.


# %%
def fastest(works, budget=4.0):
    """The shortest time of each function, in seconds; they are called in turn until the budget is spent."""
    times, end = [[] for _ in works], time.perf_counter() + budget
    while not times[0] or time.perf_counter() < end:
        for work, taken in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


W = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
halves, square, counts = W.reshape(2, -1), W[:512, :512].copy(), [1, 4, 16, 64, 256]
works = [lambda: halves[0] @ halves[1], lambda: W @ W[0], lambda: square @ square]
works += [lambda count=count: linear(W[:count], W) for count in counts]

dot, matrix_vector, matrix_matrix, *products = fastest(works)
rates = [2 * count * W.size / took for count, took in zip(counts, products, strict=True)]  # flop/s
bandwidth = W.nbytes / min(dot, matrix_vector, products[0])
peak = max(2 * len(square) ** 3 / matrix_matrix, *rates)
print(f"bandwidth {bandwidth / 1e9:.1f} GB/s, peak {peak / 1e9:.1f} Gflop/s")
print(f"so reading a byte takes as long as {peak / bandwidth:.1f} flops")

# %%
figure, axes = plt.subplots(figsize=(7, 4))
reach = np.geomspace(0.03, 1000, 200)
axes.loglog(reach, np.minimum(peak, reach * bandwidth) / 1e9, color="C6")
for count, rate in zip(counts, rates, strict=True):
    place = intensity(count, shape), rate / 1e9
    axes.plot(*place, "o", color="C5" if count == 1 else "C0", markersize=7)
    axes.annotate(f"T = {count}", place, xytext=(7, -12), textcoords="offset points", fontsize=9)
axes.plot([], [], "o", color="C5", label="decode")
axes.plot([], [], "o", color="C0", label="prefill of T tokens")
ridge = peak / bandwidth
axes.axvline(ridge, color="C6", linestyle=":")
axes.text(0.9 * ridge, 2 * peak / 1e9, "limited by memory", ha="right", fontsize=9)
axes.text(1.1 * ridge, 2 * peak / 1e9, "limited by arithmetic", ha="left", fontsize=9)
axes.set(xlabel="arithmetic intensity [flop/byte]", ylabel="speed [Gflop/s]")
axes.set_ylim(min(rates) / 4e9, 4 * peak / 1e9)
axes.set_title("The roofline of this machine: a weight of the 2B times T vectors")
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# Decode lies on the slope, and the longer the prompt, the closer prefill comes to the flat roof. Points in between can
# be well below both lines: matrix-product routines are rarely at their best for a handful of vectors. ([Tutorial
# 20](20_speculative_decoding.ipynb) makes use of these points: it gets several tokens from one reading.) Now read the
# slope the other way. A decoded token needs every weight once (including the embedding, which is the head), and every
# key and value in the cache. So:
#
# $$\text{tokens/s} \le \frac{\text{bandwidth}}{\text{bytes of the weights} + \text{bytes of the cache}}$$


# %%
def max_speed(config, format, length):
    return bandwidth / (weight_bytes(config, format) + cache_bytes(config, length, format))


formats = ["float32", "bfloat16", "int4"]  # Google publishes bfloat16; int4 has a scale for each group of 64 weights
print(f"maximum tokens/s on this machine, after 1000 tokens\n{'':12}" + "".join(f"{s:>26}" for s in formats))
for name in ("gemma-2-2b", "gemma-2-9b", "gemma-2-27b"):
    cells = [
        f"{weight_bytes(RELEASED[name], s) / 1e9:8.1f} GB {max_speed(RELEASED[name], s, 1000):8.2f} /s" for s in formats
    ]
    print(f"{name:12}" + "".join(f"{cell:>26}" for cell in cells))

assert 3.99 < weight_bytes(two_b, "float32") / sum(two_b.parameter_count().values()) < 4.01  # 4 bytes per weight
assert 7 < weight_bytes(two_b, "float32") / weight_bytes(two_b, "int4") < 7.2

# %% [markdown]
# This is why fewer bits per weight make generation faster, and not only smaller. It is an upper bound: weights in 16 or
# 4 bits must be dequantized before they are multiplied, which also takes time. How good is the bound? Here is a Gemma 2
# of two layers with random weights, too large for the caches of most processors:

# %%
middle = gemma2_config(
    vocab_size=4096,
    hidden_size=1024,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=256,
    intermediate_size=3072,
    max_position_embeddings=64,
    query_pre_attn_scalar=256,
    sliding_window=32,
)
random = initial_weights(middle, np.random.default_rng(0))
[took] = fastest([lambda: lm_head(transformer([5], random, middle), random, middle)], budget=1.0)
bound = max_speed(middle, "float32", length=1)
print(
    f"{weight_bytes(middle, 'float32') / 1e6:.0f} MB: at most {bound:.0f} tokens/s estimated, {1 / took:.0f} measured"
)
assert weight_bytes(middle, "float32") == sum(weight.nbytes for weight in random.values())

# %% [markdown]
# ## The size of the cache
#
# The cache of a long text takes gigabytes. Gemma 2 saves memory in two ways: two query heads share one key-value head,
# which halves the cache, and the cache of local layers stops growing at the window of 4096.

# %%
cache = KVCache(config, 256)
held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
assert held == cache_bytes(config, 256)  # the formula gives the size of the arrays

text_lengths = np.arange(0, 8193, 256)
figure, axes = plt.subplots()
for colour, name in zip(("C0", "C1", "C2"), ("gemma-2-2b", "gemma-2-9b", "gemma-2-27b"), strict=True):
    sizes = RELEASED[name]
    every_global = replace(sizes, layer_types=(GLOBAL,) * sizes.num_hidden_layers)
    axes.plot(text_lengths, [cache_bytes(sizes, n) / 1e9 for n in text_lengths], color=colour, label=name)
    axes.plot(text_lengths, [cache_bytes(every_global, n) / 1e9 for n in text_lengths], color=colour, linestyle=":")
    assert sizes.num_attention_heads == 2 * sizes.num_key_value_heads
    saved = 1 - cache_bytes(sizes, 8192) / cache_bytes(every_global, 8192)
    print(
        f"{name}: {cache_bytes(sizes, 8192) / 1e9:.2f} GB for 8192 tokens in float32, {saved:.0%} less because of the windows"
    )
    assert abs(saved - 0.25) < 1e-9
axes.plot([], [], color="C6", linestyle=":", label="if all layers were global")
axes.set(xlabel="tokens in the cache", ylabel="keys and values [GB]", xticks=range(0, 8193, 1024))
axes.set_title("Local layers stop growing at their window")
axes.legend()
plt.show()

# %% [markdown]
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The generation loop: prefill, then one token at a time, always the most likely.


# %%
def greedy(ids, count, weights, config):
    """ids: list of T numbers, count: number of new tokens -> list of `count` numbers

    Hint: transformer(unread, weights, config, cache) returns [T, D]; T is 1 after the prompt.
    """
    ...


check(greedy, exercises.DECODE)

# %% [markdown]
# **2.** Top-p, with a temperature.


# %%
def nucleus(logits, temperature, top_p):
    """logits [V] -> probabilities [V], zero for the tokens that are dropped

    Hint: sort by probability, largest first; keep a token if those before it add up to less than top_p.
    """
    ...


check(nucleus, exercises.TOP_P)

# %% [markdown]
# The solutions are in [solutions/11_cache_and_generation.py](solutions/11_cache_and_generation.py).
#
# ## Further reading
#
# - [gemma_np/model/kv_cache.py](../gemma_np/model/kv_cache.py): the ring, including several tokens that wrap at once.
# - [gemma_np/text/generation.py](../gemma_np/text/generation.py) and [sampling.py](../gemma_np/text/sampling.py): the
#   complete loop and the choice of the token.
# - [gemma_np/memory.py](../gemma_np/memory.py): the byte counts, which `gemma-np info` prints.
# - Holtzman et al., [The Curious Case of Neural Text Degeneration](https://arxiv.org/abs/1904.09751), for top-p;
#   Williams, Waterman and Patterson, [Roofline](https://doi.org/10.1145/1498765.1498785), for the plot; Pope et al.,
#   [Efficiently Scaling Transformer Inference](https://arxiv.org/abs/2211.05102), for large models.
#
# Next: [13. The backward pass by hand](13_backward_by_hand.ipynb).
