# %% [markdown]
# # 12. Speed: what a token costs
#
# After this you can say why reading a prompt is fast and generating text is slow; estimate, from two measurements, how
# many tokens per second your machine can generate with a Gemma 2 of any size and format; and say how much memory a
# model and its text take. About 20 minutes. In the [Gemma 2 report](https://arxiv.org/abs/2408.00118): table 1, whose
# sizes are all that the estimates need.
#
# Before this: [11. The cache, and generating text](11_cache_and_generation.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
from dataclasses import replace

import numpy as np
from support import check, check_file, lines
from support.exercises import speed as exercises
from support.figures import speed as figures
from support.plots import use_style
from support.timing import fastest

import gemma_np
from gemma_np import RELEASED
from gemma_np.config import GLOBAL, gemma2_config
from gemma_np.memory import cache_bytes, weight_bytes
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.training.trainer import initial_weights
from gemma_np.weights.formats import matrix_bytes
from gemma_np.weights.linear import float_product, linear

# %%
use_style()
config = gemma_np.load().config
two_b = RELEASED["gemma-2-2b"]
print(f"Gemma 2 2B: {sum(two_b.parameter_count().values()):,} weights")

# %% [markdown]
# ## Why decoding is bound by memory
#
# **Prefill** reads the T tokens of a prompt in one pass; **decode** reads one token in each pass. Nearly all of the
# work of a pass is products with weights.
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
# With round numbers: a weight [100, 100] in float32, on a machine with a peak of 10 Gflop/s and a bandwidth of 5 GB/s:
#
# **Predict:** One vector takes 8 µs. How long do ten take together: 8, 20 or 80 µs?
#
# <details><summary>Reveal</summary>
#
# 20 µs. The weight is read once for all ten, so their arithmetic becomes the limit: 200,000 flops at 10 Gflop/s.
#
# </details>

# %%
weight_size = 4 * 100 * 100  # bytes
for T in (1, 10, 100):
    flops, moved = 2 * T * 100 * 100, weight_size + 4 * T * (100 + 100)
    arithmetic, memory = flops / 10e9 * 1e6, moved / 5e9 * 1e6  # microseconds
    print(
        f"T = {T:3}: {flops:9,} flops, {moved:7,} bytes, {flops / moved:4.1f} flops per byte; "
        f"arithmetic takes {arithmetic:5.0f} µs, memory {memory:3.0f} µs"
    )

# %% [markdown]
# One vector costs 8 µs, because the memory takes that long, although its arithmetic needs only 2. Ten vectors together
# take 20 µs, not 80. From five vectors on, arithmetic is the limit, and a hundred take ten times as long as ten.
#
# This is the line of code in question:

# %%
lines(float_product, "return x @")


# %%
def intensity(T, shape, bytes_per_weight=4.0):
    numbers = shape[0] * shape[1]
    return 2 * T * numbers / (bytes_per_weight * numbers + 4 * T * sum(shape))


shape = (two_b.intermediate_size, two_b.hidden_size)  # gate_proj of the 2B, [F, D]
for name in ("float32", "bfloat16", "int8", "int4"):
    bytes_per_weight = matrix_bytes(shape, name) / (shape[0] * shape[1])  # with the scales of int8 and int4
    print(f"decode, {name:8} {intensity(1, shape, bytes_per_weight):.2f} flops per byte")

# %% tags=["check"]
assert 0.49 < intensity(1, shape) < 0.5
assert intensity(512, shape) > 200 * intensity(1, shape)

# %% [markdown]
# ## The roofline of your machine
#
# These cells measure your machine, so your numbers will differ, and vary from run to run, especially if it is busy. The
# bandwidth is that of the fastest of several ways to read a matrix of 85 MB once; the peak is that of the fastest
# product of two matrices. All are measured in turn for a few seconds, and the best time of each counts.


# %%
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
figures.roofline(counts, [intensity(count, shape) for count in counts], rates, bandwidth, peak)

# %% [markdown]
# Decode lies on the slope, and the longer the prompt, the closer prefill comes to the flat roof. Points in between can
# be well below both lines: matrix-product routines are rarely at their best for a handful of vectors. ([Tutorial
# 20](20_speculative_decoding.ipynb) makes use of these points: it gets several tokens from one pass.) Now read the
# slope the other way. A decoded token needs every weight once (including the embedding, which is the head), and every
# key and value in the cache. So:
#
# $$\text{tokens/s} \le \frac{\text{bandwidth}}{\text{bytes of the weights} + \text{bytes of the cache}}$$
#
# **Predict:** How many times as many tokens per second could a Gemma 2 2B generate in int4 as in float32, if memory is
# the only limit?
#
# <details><summary>Reveal</summary>
#
# Six to seven times. The numbers are an eighth of the size, but each group of 64 has a scale, so the weights shrink
# 7.1-fold; and keys and values stay in float32, so with a longer text it is less.
#
# </details>


# %%
def max_speed(config, format, length):
    return bandwidth / (weight_bytes(config, format) + cache_bytes(config, length, format))


formats = ["float32", "bfloat16", "int4"]  # Google publishes bfloat16; int4 has a scale for each group of 64 weights
print(f"maximum tokens/s on this machine, after 1000 tokens\n{'':12}" + "".join(f"{s:>22}" for s in formats))
for name in ("gemma-2-2b", "gemma-2-9b", "gemma-2-27b"):
    c = RELEASED[name]
    cells = [f"{weight_bytes(c, s) / 1e9:8.1f} GB {max_speed(c, s, 1000):8.2f} /s" for s in formats]
    print(f"{name:12}" + "".join(cells))

# %% tags=["check"]
assert 3.99 < weight_bytes(two_b, "float32") / sum(two_b.parameter_count().values()) < 4.01  # 4 bytes per weight
assert 7 < weight_bytes(two_b, "float32") / weight_bytes(two_b, "int4") < 7.2

# %% [markdown]
# This is why fewer bits per weight make a model not only smaller but also faster. It is an upper bound: weights in 16 or
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

# %%
[took] = fastest([lambda: lm_head(transformer([5], random, middle), random, middle)], budget=1.0)
bound = max_speed(middle, "float32", length=1)
size = weight_bytes(middle, "float32")
print(f"{size / 1e6:.0f} MB: at most {bound:.0f} tokens/s estimated, {1 / took:.0f} measured")

# %% tags=["check"]
assert size == sum(weight.nbytes for weight in random.values())

# %% [markdown]
# And this is the same model in prefill. Each weight is read once for all tokens of the prompt, and only the last one
# needs the head:

# %%
prompt = [5] * 64
[took_prompt] = fastest([lambda: lm_head(transformer(prompt, random, middle)[-1], random, middle)], budget=1.0)
print(f"decode {1 / took:.0f} tokens/s, prefill {len(prompt) / took_prompt:.0f} tokens/s")

# %% [markdown]
# ## What it takes in memory: weights and cache
#
# The weights take the same memory whatever the text. The cache grows: each token adds $2 \cdot K \cdot h$ numbers in
# each layer that has not reached its window. By hand, for the bundled model after 100 tokens:

# %%
per_token = 2 * config.num_key_value_heads * config.head_dim * 4  # bytes in one layer: keys and values
kept = [min(100, config.window(layer) or 100) for layer in range(config.num_hidden_layers)]
print(f"2 * {config.num_key_value_heads} * {config.head_dim} * 4 = {per_token} bytes per token and layer")
print(f"tokens kept in the layers: {kept}, so {per_token * sum(kept):,} bytes")

# %% tags=["check"]
assert per_token * sum(kept) == cache_bytes(config, 100)

# %% [markdown]
# The cache of a long text takes gigabytes. Gemma 2 saves memory in two ways: two query heads share one key-value head,
# which halves the cache, and the cache of local layers stops growing at the window of 4096.

# %%
text_lengths, sizes, all_global = np.arange(0, 8193, 256), {}, {}
for name in ("gemma-2-2b", "gemma-2-9b", "gemma-2-27b"):
    c = RELEASED[name]
    without_windows = replace(c, layer_types=(GLOBAL,) * c.num_hidden_layers)
    sizes[name] = np.array([cache_bytes(c, n) for n in text_lengths])
    all_global[name] = np.array([cache_bytes(without_windows, n) for n in text_lengths])
    saved = 1 - sizes[name][-1] / all_global[name][-1]
    print(f"{name}: {sizes[name][-1] / 1e9:.2f} GB for 8192 tokens in float32, {saved:.0%} less because of the windows")
figures.cache_sizes(text_lengths, sizes, all_global)

# %% tags=["check"]
layers = KVCache(config, 256).layers
assert sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) == cache_bytes(config, 256)
for name in sizes:
    assert RELEASED[name].num_attention_heads == 2 * RELEASED[name].num_key_value_heads
    assert abs(1 - sizes[name][-1] / all_global[name][-1] - 0.25) < 1e-9

# %% [markdown]
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The roofline as a time: how long does the product of T vectors with a weight take, at least?
#
# <details><summary>Hint 1</summary>
#
# Arithmetic and memory work at the same time: the slower one decides.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# 2 T out in flops, at `peak` per second. The weight is read once; T vectors of `in` and T of `out` numbers are moved, in
# float32.
#
# </details>


# %%
def least_seconds(T, shape, bytes_per_weight, peak, bandwidth):
    """T vectors and a weight of the shape (out, in), peak in flop/s, bandwidth in bytes/s -> seconds"""
    ...


check(least_seconds, exercises.LEAST_SECONDS)

# %% [markdown]
# **2.** How many tokens per second can be generated at most, after a text of `length` tokens? Keys and values are
# float32; weights are stored in `bytes_per_weight` bytes each.
#
# <details><summary>Hint 1</summary>
#
# `sum(config.parameter_count().values())` weights are read once.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `config.window(layer)` is a number or None; a layer keeps at most that many tokens.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Each token that is kept has a key and a value, of K * h numbers each.
#
# </details>


# %%
def decode_speed(config, bytes_per_weight, length, bandwidth):
    """a GemmaConfig, two numbers, bandwidth in bytes/s -> tokens per second"""
    ...


check(decode_speed, exercises.DECODE_SPEED)

# %% [markdown]
# **3.** How many vectors does it take until arithmetic and memory need the same time? For a small matrix they never do:
# then the answer is `math.inf`. (It need not be a whole number.)
#
# <details><summary>Hint 1</summary>
#
# Set the two times of exercise 1 equal, and solve for T.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Both sides have T: collect it on one side. If its factor is not positive, the memory always takes longer.
#
# </details>


# %%
def break_even(shape, bytes_per_weight, peak, bandwidth):
    """a weight of the shape (out, in), peak in flop/s, bandwidth in bytes/s -> number of vectors"""
    ...


check(break_even, exercises.BREAK_EVEN)

# %% [markdown]
# ## Now in your file
#
# Make something faster, and measure it with `fastest`, as above. If you used `np.repeat`, it copies every key and value
# G times, which stacking the rows of a group avoids; and a `softmax` of several lines makes several arrays where one
# new array is enough. (Do not write into the scores: the tape has them.) Whatever you change, it must still be right:

# %%
check_file("my_gemma.py", upto="decoding")

# %% [markdown]
# The solutions are in [solutions/12_speed.py](solutions/12_speed.py).
#
# ## Further reading
#
# - [gemma_np/memory.py](../gemma_np/memory.py): the byte counts, which `gemma-np info` prints.
# - [gemma_np/weights/linear.py](../gemma_np/weights/linear.py): the product with a weight in any format.
# - Williams, Waterman and Patterson, [Roofline](https://doi.org/10.1145/1498765.1498785), for the plot; Pope et al.,
#   [Efficiently Scaling Transformer Inference](https://arxiv.org/abs/2211.05102), for large models.
#
# Next: [13. The backward pass by hand](13_backward_by_hand.ipynb).
