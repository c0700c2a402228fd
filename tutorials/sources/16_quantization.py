# %% [markdown]
# # 16. Quantization
#
# After this you can store a matrix in 8 or 4 bits, say how large the error is and which of four methods is best, and
# quantize a whole model. About 35 minutes. In the [Gemma 2 report](https://arxiv.org/abs/2408.00118): table 2, whose
# parameter counts become bytes here. The "practical size" in the report's title comes from distillation; Gemma 3's
# report ([arXiv 2503.19786](https://arxiv.org/abs/2503.19786)) also has quantized models.
#
# Before this: [15. Distillation](15_distillation.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import json
from pathlib import Path

import numpy as np
from support import check, diagrams, lines
from support.exercises import quantization as exercises
from support.figures import quantization as figures
from support.plots import use_style
from support.sliders import Slider, explore

import gemma_np
from gemma_np.checkpoints.gguf_blocks import read_blocks
from gemma_np.compression.awq import best_scales
from gemma_np.compression.benchmark import decoding_speed, measure, table
from gemma_np.compression.block_quantization import quantize_blocks
from gemma_np.compression.calibration import INPUTS, InputGram
from gemma_np.compression.gptq import gptq, output_error, round_in_turn
from gemma_np.compression.quantization import Grid, Scheme, minmax_grid, mse_grid, quantize
from gemma_np.compression.quantize_model import quantize_model
from gemma_np.config import RELEASED
from gemma_np.memory import weight_bytes
from gemma_np.training.distillation import sample_continuations
from gemma_np.weights.formats import dequantize, pack, stored_bytes, unpack
from gemma_np.weights.linear import linear

# %%
use_style()
model = gemma_np.load()
W = model.weights["model.layers.0.mlp.down_proj.weight"]  # [D, F]
print(f"{W.shape[0]} rows of {W.shape[1]} channels, {W.nbytes:,} bytes in float32")

# %% [markdown]
# ## Why
#
# A model generates one token at a time, and each token needs every weight once. For a large model, most of that time is
# spent reading the weights from memory, not multiplying with them. Weights of half the size take half the memory and,
# if the arithmetic keeps up, half the time. Here are the weights of table 2 of the report, in GB:

# %%
formats = ("float32", "bfloat16", "int8", "int4")  # as published: bfloat16; int4 in groups of 64
for name in ("gemma-2-2b", "gemma-2-9b", "gemma-2-27b"):
    sizes = [weight_bytes(RELEASED[name], format) / 1e9 for format in formats]
    print(name.ljust(12), "".join(f"{format}: {size:5.1f}   " for format, size in zip(formats, sizes, strict=True)))

# %% tags=["check"]
assert all(weight_bytes(c, "float32") > 7 * weight_bytes(c, "int4") for c in RELEASED.values())

# %% [markdown]
# ## One row, one step
#
# A number of $b$ bits can take $2^b$ values. When these are evenly spaced, they form a *grid*. In 8 bits, for each row
# of a weight $W$ [out, in], with one step size (*scale*) $s$ [out, 1]:
#
# $$s_r = \frac{\max_c |W_{rc}|}{127} \qquad
# q_{rc} = \mathrm{round}\!\left(\frac{W_{rc}}{s_r}\right) \in \{-127, \dots, 127\} \qquad
# \hat W_{rc} = s_r \, q_{rc}$$
#
# Only $q$, one byte per weight, and $s$, one float per row, are stored. The code:

# %% [markdown]
# By hand, for a row of four weights in 4 bits, where the largest integer is 7 instead of 127:

# %%
four = np.array([3.5, -1.1, 0.7, 0.2])
scale = np.abs(four).max() / 7
integers = np.rint(four / scale).astype(int)
print(f"scale 3.5 / 7 = {scale}")
for weight, integer in zip(four, integers, strict=True):
    print(f"{weight:4} / {scale} = {weight / scale:4.1f}, rounded {integer:2}", end=", ")
    print(f"back: {scale} * {integer:2} = {scale * integer:4}, error {scale * integer - weight:4.1f}")

# %% tags=["check"]
by_package = quantize(four[None].astype(np.float32), Scheme("int4"))
np.testing.assert_allclose(dequantize(by_package)[0], scale * integers)

# %% [markdown]
# The largest weight is exact. The smallest has become 0. In the package, for 8 bits:

# %%
lines(minmax_grid, "largest = ", "scales = _at_least(largest / 127")

# %%
lines(Grid.nearest, "steps", "return")

# %% [markdown]
# The rounding error is never more than half a step:

# %%
stored = quantize(W, Scheme("int8"))
error = dequantize(stored) - W
print(f"integers {stored.integers.dtype} {stored.integers.shape}, scales {stored.scales.dtype} {stored.scales.shape}")
print(f"{stored_bytes(stored):,} bytes; largest error {np.abs(error / stored.scales).max():.4f} steps")

# %% tags=["check"]
assert np.abs(error / stored.scales).max() <= 0.5 + 1e-4
assert stored_bytes(stored) < W.nbytes / 3.9

# %% [markdown]
# In a product, the scale of a row is factored out of its sum: $\sum_c s_r q_{rc} x_c = s_r \sum_c q_{rc} x_c$. So the
# scale costs one multiplication per row, not one per weight. `linear` does this for a part of the rows at a time.

# %%
x = np.random.default_rng(0).standard_normal((3, W.shape[1]), dtype=np.float32)
y = np.einsum("rc,tc->tr", stored.integers, x) * stored.scales[:, 0]
difference = np.abs(y - x @ dequantize(stored).T).max()
print(f"numbers up to {np.abs(y).max():.1f}; the product with the dequantized weight differs by {difference:.0e}")

# %% tags=["check"]
np.testing.assert_allclose(y, x @ dequantize(stored).T, rtol=1e-4, atol=1e-5)
np.testing.assert_allclose(linear(x, stored), y, rtol=1e-4, atol=1e-5)

# %% [markdown]
# ## Four bits: the grid becomes visible
#
# Sixteen values are left. Here is one row, the one with the largest weight relative to its standard deviation, and the
# values that its weights can take. The full grid (left) has to reach the largest weight, so its steps are wide where
# most weights are. A *clipped* grid (right) does not reach as far: a few weights are clipped, and all others get finer
# steps.

# %%
row = np.argmax(np.abs(W).max(axis=1) / W.std(axis=1))
int4 = Scheme("int4")
grids = {"full grid": minmax_grid(W, int4), "grid of least error": mse_grid(W, int4)}
levels = {name: grid.values(np.arange(16.0))[row, 0] for name, grid in grids.items()}  # [16] each
rounded = {name: grid.values(grid.nearest(W[:, None]))[:, 0] for name, grid in grids.items()}  # [D, F] each
errors = {name: np.square(values - W).sum(axis=1) for name, values in rounded.items()}  # [D] each
typical = {name: np.sqrt(error[row] / W.shape[1]) for name, error in errors.items()}
title = f"Row {row} of down_proj in layer 0, and the 16 values of int4 (orange)"
figures.grids(W[row], levels, typical, title)

share = 1 - errors["grid of least error"].sum() / errors["full grid"].sum()
print(f"over all rows, clipping takes {share:.0%} off the sum of squared errors")

# %% tags=["check"]
assert (errors["grid of least error"] <= errors["full grid"]).all()
assert errors["grid of least error"][row] < errors["full grid"][row] * 2 / 3
assert share > 0.15

# %% [markdown]
# For this row, clipping removes more than a third of the squared error. The best range is found by trying, from the
# whole range down to half of it:

# %%
lines(mse_grid, "for shrink", "grid =", "error =", "best, least")

# %% [markdown]
# The symmetric grid has eight values below zero and seven above. With a *zero point* $z$, a second small number for
# each scale, the grid need not be symmetric: $\hat W = s\,(q - z)$, and all sixteen values lie between the smallest and
# the largest weight.

# %%
lines(minmax_grid, "scales = _at_least((high - low)", "zeros = np.rint")

# %%
sizes = [np.linalg.norm(dequantize(quantize(W, Scheme("int4", zero_points=zero))) - W) for zero in (False, True)]
print(f"error of the matrix: symmetric {sizes[0]:.2f}, with zero points {sizes[1]:.2f}")

# %% tags=["check"]
assert sizes[1] < sizes[0]

# %% [markdown]
# ## Groups, and the cost in bits
#
# The other answer to large weights is to let fewer weights share a scale: one for each *group* of neighbouring
# channels. A large weight then affects only the steps of its own group. But each group has to store its scale. The plot
# includes that, with scales of 16 bits, as in many files (`Grid` takes any range of integers, so we can try all
# widths). The bundled model has hardly any large weights. So we plot its matrix unchanged, and then with one weight in
# each row set to 20 times the standard deviation of the others, as an example of what large models can have:
#
# **Predict:** By how much does each further bit reduce the error, from 4 bits on? And what does one large weight do to
# a row with one scale?
#
# <details><summary>Reveal</summary>
#
# Each bit halves it, since the steps are half as wide. One large weight makes the steps of the whole row wide: with
# one of 20 standard deviations, 4 bits are worse (78 %) than 3 bits without it (31 %).
#
# </details>

# %%
print(f"largest weight of a row: at most {(np.abs(W).max(axis=1) / W.std(axis=1)).max():.1f} standard deviations")
outliers = W.copy()
outliers[np.arange(len(W)), np.arange(len(W))] = 20 * W.std(axis=1)


def relative_error(weight, bits, group):
    """The error of the matrix, rounded to a symmetric grid of that many bits, relative to the norm of W."""
    groups = weight.reshape(len(weight), -1, group)
    largest = 2 ** (bits - 1) - 1
    grid = Grid(np.abs(groups).max(axis=-1, keepdims=True) / largest, np.zeros(()), -largest, largest)
    return np.linalg.norm(grid.values(grid.nearest(groups)) - groups) / np.linalg.norm(W)


# %%
widths, groups = range(2, 9), (384, 128, 64, 32, 16)
found = {
    title: {group: [relative_error(weight, bits, group) for bits in widths] for group in groups}
    for title, weight in (("unchanged", W), ("a large weight in each row", outliers))
}
figures.bits_and_groups(widths, found)
for title, by_group in found.items():
    for group, errors in by_group.items():
        shown = "  ".join(f"{n} bits {error:.1%}" for n, error in zip(widths, errors, strict=True))
        print(f"{title:26} group {group:3}: {shown}")

# %% tags=["check"]
assert (np.abs(W).max(axis=1) < 6 * W.std(axis=1)).all()
unchanged, with_outliers = found.values()
for errors in unchanged.values():
    ratios = np.divide(errors[2:-1], errors[3:])
    assert (ratios > 1.9).all() and (ratios < 2.4).all()
assert unchanged[384][6] < 0.01 and unchanged[384][2] > 0.1  # 8 and 4 bits, one scale per row
assert unchanged[16][2] > unchanged[384][3]  # at 5 bits in all
assert with_outliers[384][2] > 3 * with_outliers[32][2] and with_outliers[384][3] > with_outliers[32][2]

# %% [markdown]
# From 4 bits on, each bit halves the error. In 8 bits the relative error is below one hundredth, and in 4 bits with one
# scale per row it is above a tenth. For the unchanged matrix, groups hardly pay off: they gain about what the bits of
# their scales would gain as wider weights, and groups of 16 gain less. With large weights, groups win clearly: groups
# of 32 have less than a third of the error of 4 bits with one scale per row, and less than 5 bits with one scale per
# row.
#
# Look at the weights themselves: 96 of one row, with the large one among them (in place 48, far above the picture).
# Where all dots are at 0, the group has lost its weights.
#
# **Try:** How many bits does it take until the error of the others is below 20 %, with groups of 96, of 32 and of 8?
# And how many are these with the scales?
#
# <details><summary>Reveal</summary>
#
# 6, 5 and 4 bits. With the scales they are 6.17, 5.5 and 6: too small a group costs more than it saves.
#
# </details>


# %%
def rounded_row(figure, bits, group):
    weights, largest = outliers[48, :96], 2 ** (bits - 1) - 1
    parts = np.split(weights, range(group, 96, group))
    steps = [np.abs(part).max() / largest for part in parts]
    found = np.concatenate([step * np.rint(part / step) for part, step in zip(parts, steps, strict=True)])
    axes = figures.rounded_row(figure, weights, found, group, limit=4 * W[48].std())
    error = np.linalg.norm(np.delete(found - weights, 48)) / np.linalg.norm(np.delete(weights, 48))
    axes.set_title(f"{bits + 16 / group:.2f} bits per weight with the scales; error of the others {error:.0%}")


explore(rounded_row, bits=Slider("bits", 4, 2, 8), group=Slider("group (weights)", 96, 8, 96, step=8))

# %% [markdown]
# ## Two numbers in a byte
#
# NumPy's smallest numbers have 8 bits, so two 4-bit numbers from 0 to 15 share a byte. The first half of the row goes
# into the lower four bits, the second half into the upper ones, so each half is unpacked in one operation as one
# contiguous piece.

# %%
lines(pack, "low, high", "return")

# %%
numbers = np.array([1, 2, 15, 0], np.uint8)
print(numbers, "->", [f"{byte:08b}" for byte in pack(numbers)])

# %% tags=["check"]
assert np.array_equal(unpack(pack(numbers)), numbers)

# %% [markdown]
# This is what a row of eight weights becomes, with two groups. Compare the first line of numbers with the fourth: the
# largest weight of a group is exact, the others are off by up to half of *their* group's scale.

# %%
diagrams.quantized_row()

# %% [markdown]
# ## A K-quant by hand
#
# The files that people share most are in GGUF's *K-quants*. They solve two problems of this page at once: groups of
# 32 need many scales, and a scale with a minimum is better than a symmetric grid but needs twice as many numbers. Their
# idea is to quantize the scales, too. In Q4_K, a block of 256 weights has 8 groups of 32. Each group $j$ has a scale
# $a_j$ and a minimum $b_j$ of six bits, from 0 to 63, and the whole block has two numbers $d$ and $m$ of 16 bits:
#
# $$\hat w = d \, a_j \, q - m \, b_j \qquad q \in \{0, \dots, 15\}$$
#
# The middle line of the picture is the file; above and below it is what each group takes from it.

# %%
diagrams.q4_k_block()

# %% [markdown]
# Here is one block of our matrix, all 144 bytes of it:

# %%
weights = W[0, :256]
block = quantize_blocks(weights[None], "Q4_K")[0]
d, m = block[:4].view(np.float16)
packed, numbers = block[4:16], block[16:]
print(f"d = {d:.5f}, m = {m:.5f}; 12 bytes of scales and minima, {len(numbers)} bytes with two numbers each")

# %% [markdown]
# Twelve bytes hold sixteen numbers of six bits. Those of the first four groups are in the lower six bits of the first
# eight bytes. Those of the last four are in two pieces: four bits in the last four bytes, two in the upper bits of the
# first eight.

# %%
first, second, third = packed.reshape(3, 4)
a = np.concatenate([first & 63, third & 15 | first >> 6 << 4])
b = np.concatenate([second & 63, third >> 4 | second >> 6 << 4])
print("a", a)
print("b", b)

# %% [markdown]
# The numbers come in pieces of 32 bytes. The lower four bits of a piece are one group, the upper four the next.

# %%
q = np.stack([numbers.reshape(4, 32) & 15, numbers.reshape(4, 32) >> 4], axis=1).reshape(8, 32)
found = np.float32(d) * a[:, None] * q - np.float32(m) * b[:, None]
for group in range(3):
    was = weights[32 * group :][:4].round(3)
    print(f"group {group}: q = {q[group, :4]} ... -> {found[group, :4].round(3)}, was {was}")

# %% tags=["check"]
stored = read_blocks("Q4_K", (1, 256), lambda start, stop: block[None])
assert np.allclose(found.reshape(-1), dequantize(stored)[0], atol=1e-6)
assert np.abs(found.reshape(-1) - weights).max() < np.float32(d) * a.max()

# %% [markdown]
# That is 144 bytes for 256 weights, 4.5 bits a weight. The same 4.5 bits buy plain 4-bit numbers with one 16-bit scale
# for every 32 channels. A 16-bit scale and a 16-bit minimum for every 32 channels (GGUF's Q4_1) take 5 bits:


# %%
def error_of(matrix, format):
    """The error of a matrix that was rounded to blocks, relative to the norm of W."""
    blocks = quantize_blocks(matrix, format)
    rounded = dequantize(read_blocks(format, matrix.shape, lambda start, stop: blocks[start:stop]))
    return np.linalg.norm(rounded - matrix) / np.linalg.norm(W[:, :256])


errors = {}
for title, matrix in {"unchanged": W[:, :256], "a large weight in each row": outliers[:, :256]}.items():
    plain = dequantize(quantize(matrix, Scheme("int4", 32, scale_dtype=np.float16), mse=True)) - matrix
    errors[title] = [np.linalg.norm(plain) / np.linalg.norm(W[:, :256])]
    errors[title] += [error_of(matrix, format) for format in ("Q4_K", "Q4_1")]
    print(f"{title:27}", "plain groups {:.1%}, Q4_K {:.1%}, Q4_1 {:.1%}".format(*errors[title]))

# %% tags=["check"]
for plain, q4_k, q4_1 in errors.values():
    assert q4_k < 0.85 * plain and q4_k < 1.05 * q4_1

# %% [markdown]
# Q4_K has a fifth less error than plain groups of the same size, and about that of Q4_1, which is half a bit larger:
# six bits are enough for a scale. With large weights the minimum helps even more, because a group that has one large
# weight on one side needs no values on the other.
#
# ## The inputs of the weights
#
# So far we compared weights with weights. What matters is the output of a layer: for inputs $X$ [N, in] and one row of
# errors $e = \hat w - w$ [in],
#
# $$\lVert X e \rVert^2 = e^\top H e, \qquad H = X^\top X \quad [\text{in}, \text{in}]$$
#
# An error matters more where inputs are large, and the errors of two channels can *cancel* when their inputs are
# correlated. Two channels that always have the same value, weights of 0.4 and a grid of integers show it:
#
# **Predict:** Which two integers give the best output?
#
# <details><summary>Reveal</summary>
#
# 0 and 1 (or 1 and 0). Each weight alone is nearest to 0, but their sum is 0.8, and 1 is closer to it than 0.
#
# </details>

# %%
weight = np.array([[0.4, 0.4]], np.float32)
gram = np.array([[1.0, 1.0], [1.0, 1.0]], np.float32)  # x_0 = x_1
grid = Grid(np.ones((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32), -7, 7)
nearest, in_turn = grid.nearest(weight[:, None])[0], round_in_turn(weight, gram, grid)[0]
for name, chosen in (("nearest", nearest), ("in turn", in_turn)):
    print(f"{name}: {chosen[0]}, sum {chosen.sum():.0f}, exact 0.8")

# %% tags=["check"]
assert nearest.sum() == 0 and in_turn.sum() == 1

# %% [markdown]
# The first weight was rounded down by 0.4. Nearly all of that was added to the second, which then rounds to 1: further
# from its own value, but closer to the right sum. This is *GPTQ*. It rounds one channel after another, and each time
# the remaining channels compensate for the error as well as they can. With $H^{-1} = U^\top U$ ($U$ upper triangular),
# channel $c$'s error and the correction of the channels $j > c$ are
#
# $$\epsilon_c = \frac{w_c - \hat w_c}{U_{cc}} \qquad w_j \leftarrow w_j - U_{cj} \, \epsilon_c$$

# %%
lines(round_in_turn, "rounded[c] =", "errors[c - start] =", "left[c + 1 : stop] -=")

# %% [markdown]
# *AWQ* uses the inputs differently. A channel with large inputs is multiplied by a factor $f_c > 1$ before it is
# rounded, and its input is divided by $f_c$. The product stays the same, and the rounding error of that channel is
# divided by $f_c$. (The division costs nothing; it is folded into the norm or the matrix before.) The factors are
# powers of each channel's typical input $\sqrt{H_{cc}}$, with the best of eleven exponents:

# %%
lines(best_scales, "for exponent", "s = typical**exponent")

# %% [markdown]
# ## A real layer with real inputs
#
# Which inputs are typical? Let the model read some *calibration* texts, and sum $X^\top X$ for each matrix:

# %%
lines(InputGram.__call__, "rows = ", "self[name] =")

# %% [markdown]
# No texts come with this package, so models write them: the bundled one writes the calibration texts, and its teacher
# writes the evaluation texts. Shakespeare's own texts would be better; the [experiments](experiments/README.md) use
# those.

# %%
teacher = gemma_np.load("shakespeare-4m")
bos = np.full((8, 1), model.tokenizer.bos)
calibration = sample_continuations(bos, 256, model.weights, model.config, np.random.default_rng(0))  # [8, 256]
texts = sample_continuations(bos, 256, teacher.weights, teacher.config, np.random.default_rng(1))  # [8, 256]
print(model.tokenizer.decode(texts[0, 1:60].tolist()))

# %% [markdown]
# For each matrix of layer 0, in int4 with groups of 64: what is the relative error of its output, on texts that were
# not used for calibration?
#
# **Predict:** GPTQ has the smallest output error. Are its weights also the closest to the original ones?
#
# <details><summary>Reveal</summary>
#
# No. In every matrix, plain rounding is closer to them: it takes the nearest value for each weight, whatever the
# others do.
#
# </details>

# %%
scheme = Scheme("int4", 64)


def rounded_by(weight, H):
    """The weight [out, in] as each method rounds it."""
    f = best_scales([weight], H, scheme)
    return {
        "round": dequantize(quantize(weight, scheme)),
        "clip": dequantize(quantize(weight, scheme, mse=True)),
        "gptq": dequantize(gptq(weight, H, scheme)),
        "awq": dequantize(quantize(weight * f, scheme)) / f,
    }


# %%
seen, fresh = model.trace(calibration), model.trace(texts)
output_errors, weight_errors, concentration, largest_input = {}, {}, {}, {}
for name, record in INPUTS.items():
    weight = model.weights[f"model.layers.0.{name}"]
    X, Y = (trace[f"layers.0.{record}"].reshape(-1, weight.shape[1]) for trace in (seen, fresh))
    H, right = X.T @ X, Y @ weight.T
    rounded = rounded_by(weight, H)
    change = {method: values - weight for method, values in rounded.items()}
    output_errors[name] = {m: np.linalg.norm(Y @ e.T) / np.linalg.norm(right) for m, e in change.items()}
    weight_errors[name] = {m: np.linalg.norm(e) / np.linalg.norm(weight) for m, e in change.items()}
    energy, typical = np.linalg.eigvalsh(H), np.sqrt(np.diagonal(H))
    concentration[name] = energy[-10:].sum() / energy.sum()  # in the ten strongest directions
    largest_input[name] = typical.max() / np.median(typical)
figures.output_errors(output_errors)

# %%
for name, by in output_errors.items():
    of = weight_errors[name]
    print(f"{name:24} output {by['round']:.1%} rounded, {by['gptq']:.1%} GPTQ;", end=" ")
    print(f"weights {of['round']:.1%} and {of['gptq']:.1%};", end=" ")
    print(f"10 directions have {concentration[name]:.0%} of the inputs' energy")
print(f"no channel's input is more than {max(largest_input.values()):.1f} times the median channel's")

# %% tags=["check"]
for by in output_errors.values():
    assert by["gptq"] < 0.8 * by["round"] and by["gptq"] == min(by.values()) and by["awq"] > 0.8 * by["round"]
o_proj = "self_attn.o_proj.weight"
assert output_errors[o_proj]["gptq"] < output_errors[o_proj]["round"] / 2
assert weight_errors[o_proj]["gptq"] > weight_errors[o_proj]["round"]
assert max(concentration, key=concentration.get) == o_proj and max(largest_input.values()) < 10
by_gram = output_error(rounded["gptq"], weight, H).sum()  # of the last matrix
np.testing.assert_allclose(by_gram, np.square(X @ (rounded["gptq"] - weight).T).sum(), rtol=1e-2)

# %% [markdown]
# GPTQ is best everywhere, and for `o_proj` it has less than half of the error, although its weights are *further* from
# the original ones. The last column shows why: the inputs of `o_proj` lie mostly in a few directions, so there are many
# others in which errors do no harm. AWQ gains little here. It is made for models in which a few channels have inputs
# ten or a hundred times as large as the rest; in this layer none is even ten times as large as the median.
#
# ## The whole model
#
# `quantize_model` quantizes one layer after another, and calibrates each on the outputs of the quantized layers before
# it. The embedding is stored in 8 bits. *KL* is the divergence from the original's distribution over the next token, in
# nats per token; *agreement* is the fraction of the original's greedy tokens that the quantized model would also
# choose.

# %%
methods = ("round", "clip", "gptq", "awq")
steps = [("bfloat16", None, "round"), ("int8", None, "round"), *(("int4", 64, method) for method in methods)]
rows = [measure("float32", model, model, texts)]  # 2,040 tokens to predict
for kind, group, method in steps:
    embedding = Scheme("bfloat16" if kind == "bfloat16" else "int8")
    weights = dict(quantize_model(model, Scheme(kind, group), method, calibration, embedding))
    small = gemma_np.Gemma(model.config, weights, model.tokenizer)
    rows.append(measure(f"{kind} {method}", small, model, texts))
print(table(rows))

# %% tags=["check"]
kl = {row.step: row.kl for row in rows}
assert kl["bfloat16 round"] == 0  # this checkpoint is stored in bfloat16
assert kl["int8 round"] < 0.002
assert kl["int4 gptq"] < 0.75 * kl["int4 round"] and kl["int4 gptq"] < min(kl["int4 clip"], kl["int4 awq"])
assert max(row.kl for row in rows) == kl["int4 round"]
assert max(row.perplexity for row in rows) < 1.1 * rows[0].perplexity and texts[:, 1:].size == 2040

# %% [markdown]
# bfloat16 costs nothing here, because the bundled checkpoint is stored in it. In 8 bits the loss is hardly measurable.
# In 4 bits, plain rounding has the highest KL and GPTQ the lowest. The perplexities are within a tenth of each other: on
# 2,040 tokens, KL distinguishes methods far better, because it compares whole distributions instead of one token each.
#
# The [experiments](experiments/README.md) did the same on Shakespeare's own texts, also with the real Gemma 3 270M:

# %%
results = json.loads(Path("experiments/bits_and_methods.json").read_text())
figures.cost_of_formats(results)

real = {(row["setting"], row["method"]): row for row in results["gemma-3-270m"]}
for method in methods:
    row = real["int4, 64", method]
    print(f"gemma-3-270m in int4, groups of 64, {method:5}: perplexity {row['perplexity']:.1f}, KL {row['kl']:.2f}")
print(f"without quantization: perplexity {real['32 bits', 'float32']['perplexity']:.1f}")

# %% tags=["check"]
assert real["int4, 64", "gptq"]["kl"] < real["int4, 64", "round"]["kl"] / 3
assert real["int4, 64", "awq"]["kl"] < 0.6 * real["int4, 64", "round"]["kl"]
assert real["int4, 64", "round"]["kl"] > 10 * kl["int4 round"]
assert real["float8", "round"]["kl"] > real["int8", "round"]["kl"]

# %% [markdown]
# (The KL of the small model in bfloat16 is 0, which a logarithmic axis cannot show; clipping was only tried in 4 bits.)
# Plain rounding costs the real model over ten times as much: it was trained far longer, and has more to lose. There the
# method matters. GPTQ loses less than a third of what rounding loses, and AWQ is also well ahead of rounding. Float8, 8
# bits with an exponent each, is worse than 8-bit integers with one scale per row.
#
# ## Is it faster?
#
# If memory is the limit, a token takes at least as long as reading all weights once. At 100 GB/s, typical of an
# ordinary computer with fast memory, the 9B could generate at most:

# %%
for format in formats:
    print(f"{format:24} {100e9 / weight_bytes(RELEASED['gemma-2-9b'], format):5.1f} tokens per second")

speeds = {"float32": decoding_speed(model, texts[0]), "int4": decoding_speed(small, texts[0])}
print("on the machine that built this page, the bundled model:", end=" ")
print(", ".join(f"{name} {speed:,.0f} tokens per second" for name, speed in speeds.items()))

# %% [markdown]
# This is an upper bound: the integers also have to be converted. The bundled model is so small that it fits in the
# processor's caches, so it has nothing to gain; and NumPy cannot multiply 4-bit numbers, but has to write them out as
# floats first. Specialized kernels convert in registers, and can come close to the bound. The memory is saved in any
# case.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** Round each row to 8 bits.
#
# <details><summary>Hint 1</summary>
#
# The largest size of a row, `np.abs`, becomes 127: that determines the scale.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `axis=-1, keepdims=True` keeps the scales as [out, 1]. Round with `np.rint`, then `astype(np.int8)`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# A row of zeros has a scale of zero: divide by `np.where(scales > 0, scales, 1)` instead.
#
# </details>


# %%
def round_rows(weight):
    """weight float32 [out, in] -> integers int8 [out, in] and scales float32 [out, 1], as a tuple"""
    ...


check(round_rows, exercises.ROUND_ROWS)

# %% [markdown]
# **2.** Pack two numbers into a byte, as above.
#
# <details><summary>Hint 1</summary>
#
# The first half of a row goes into the lower four bits, the second half into the upper ones.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `<<` shifts bits to the left, `|` combines them. A shift of four makes room for a number up to 15.
#
# </details>


# %%
def pack_halves(numbers):
    """numbers uint8 [..., n], 0 to 15 each, n even -> uint8 [..., n / 2]"""
    ...


check(pack_halves, exercises.PACK)

# %% [markdown]
# **3.** Choose the range of the 4-bit grid of each row. The levels are $s \cdot \{-8, \dots, 7\}$, and the full grid
# has $s = \max|w| / 7$. For each row, choose the one of the shrink factors 1.0, 0.95, ... 0.5 with the smallest squared
# error.
#
# <details><summary>Hint 1</summary>
#
# Try every shrink on all rows at once, and keep the error of each row.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Clip what rounds to more than 7 or less than -8 (`np.clip`); that is the price of finer steps.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Stack the errors, [shrinks, out]; `np.argmin` with `axis=0` is the index of the best shrink of each row.
#
# </details>


# %%
def least_error_shrinks(weight, shrinks):
    """weight float32 [out, in], shrinks: a list of numbers -> the best shrink of each row, [out]"""
    ...


check(least_error_shrinks, exercises.CLIP)

# %% [markdown]
# **4.** GPTQ by hand, on the grid of whole numbers: round the columns from left to right, and after each let the
# columns that remain make up for its error. Your numbers have to be those of
# [gptq.py](../gemma_np/compression/gptq.py). The check begins with matrices that you can follow on paper. For one row,
#
# $$w = (0.4,\ 0.4,\ 0.4) \qquad H = \begin{pmatrix} 4 & 3 & 2 \\ 3 & 3 & 2 \\ 2 & 2 & 2 \end{pmatrix}$$
#
# the second weight has become 0.8 when its turn comes, and the third 0.2: the result is (0, 1, 0), with an output error
# $e^\top H e$ of 0.28, where plain rounding has 3.68.
#
# <details><summary>Hint 1</summary>
#
# Do one row on paper first. The first column is rounded as it is. Its error, times a number for each later column, is
# subtracted from these; then the second column is rounded.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The numbers are the first row of an inverse, divided by its first entry: $(H_F^{-1})_{0j} / (H_F^{-1})_{00}$, where
# $H_F$ = `H[c:, c:]` has only the columns that are not rounded yet. A rounded column no longer changes.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The formula above is the same without a new inverse for each column: `U = np.linalg.cholesky(np.linalg.inv(H)).T`, and
# row c divided by `U[c, c]`. `np.outer` of the errors [out] and the row [in - c - 1] is what to subtract from `left[:,
# c + 1 :]`.
#
# </details>


# %%
def gptq_by_hand(weight, H):
    """weight [out, in], H [in, in], which has an inverse -> whole numbers [out, in]"""
    ...


check(gptq_by_hand, exercises.GPTQ)

# %% [markdown]
# The solutions are in [solutions/16_quantization.py](solutions/16_quantization.py).
#
# ## Further reading
#
# - [gemma_np/weights/formats.py](../gemma_np/weights/formats.py) and
#   [gemma_np/weights/linear.py](../gemma_np/weights/linear.py): the formats, and the product with them.
# - [gemma_np/compression/gptq.py](../gemma_np/compression/gptq.py): 70 lines;
#   [awq.py](../gemma_np/compression/awq.py): where the factors are folded in.
# - Frantar et al., [GPTQ](https://arxiv.org/abs/2210.17323); Lin et al., [AWQ](https://arxiv.org/abs/2306.00978);
#   Dettmers et al., [LLM.int8()](https://arxiv.org/abs/2208.07339), on large inputs in large models.
# - `gemma-np quantize --help`: all of this as a command, which writes checkpoints that `load` reads.
#
# Next: [17. Pruning and healing](17_pruning_and_healing.ipynb).
