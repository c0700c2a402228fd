# %% [markdown]
# # 17. Pruning and healing
#
# After this you can remove single weights, channels, heads or layers from a model, estimate beforehand which of them
# matter, and retrain what is left. About 20 minutes; running it takes up to a minute, because of the training. In the
# [Gemma 2 report](https://arxiv.org/abs/2408.00118): tables 6 and 7, on small models distilled from a large one. In the
# report they start from random weights; here they start as parts of the large one ([Muralidharan et
# al.](https://arxiv.org/abs/2407.14679)).
#
# Before this: [16. Quantization](16_quantization.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import json
from pathlib import Path

import numpy as np
from support import check, lines
from support.exercises import pruning_and_healing as exercises
from support.figures import pruning_and_healing as figures
from support.plots import use_style

import gemma_np
from gemma_np.compression.pruning import keep_fraction, keep_sparsity, prune_weights, two_of_four
from gemma_np.compression.pruning_plan import PruningPlan, prune
from gemma_np.compression.structured_pruning import (
    choose_layers,
    drop_layers,
    keep_channels,
    keep_groups,
    keep_layers,
    measure_importance,
)
from gemma_np.memory import cache_bytes
from gemma_np.model.feed_forward import feed_forward
from gemma_np.mpi import Ranks
from gemma_np.training.data import random_batches
from gemma_np.training.distillation import from_teacher, sample_continuations
from gemma_np.training.losses import cross_entropy, forward_kl
from gemma_np.training.optimizer import AdamW
from gemma_np.training.task import Task
from gemma_np.training.trainer import initial_weights, train_step
from gemma_np.training.training_state import State, TrainingConfig
from gemma_np.weights.formats import stored_bytes

# %%
use_style()
model = gemma_np.load()
config = model.config
print(f"{config.num_hidden_layers} layers, {config.intermediate_size} feed-forward channels (F), ", end="")
print(f"{config.num_key_value_heads} key-value heads (K) with {config.num_attention_heads} query heads (H)")

# %% [markdown]
# Quantization keeps all weights and stores each in fewer bits. Pruning removes weights. To measure the cost we need
# texts, and none come with this package, so models write them: the bundled one writes the calibration texts, and its
# teacher writes the evaluation texts, which no model here was trained on.

# %%
bos = np.full((8, 1), model.tokenizer.bos)
calibration = sample_continuations(bos, 256, model.weights, config, np.random.default_rng(0))  # [8, 256]
teacher = gemma_np.load("shakespeare-4m")
texts = sample_continuations(bos, 256, teacher.weights, teacher.config, np.random.default_rng(1))  # [8, 256]
right = model.logits(texts[:, :-1])  # [8, 255, V]


# %%
def measured(small):
    """Perplexity on the texts, and the KL divergence from the unpruned model's distributions in nats per token."""
    logits = small.logits(texts[:, :-1])
    losses, _ = cross_entropy(logits, texts[:, 1:])
    divergences, _ = forward_kl(logits, right)
    return {"perplexity": float(np.exp(losses.mean())), "kl": float(divergences.mean())}


original = measured(model)
print(f"unpruned: perplexity {original['perplexity']:.1f}, KL {original['kl']:.3f} nats per token")

# %% [markdown]
# ## Single weights: by size, or by effect
#
# The simplest method is *magnitude*: in each row of each matrix, set the smallest weights to zero. But a weight
# contributes its product with an input to the output. A small weight with a large input may contribute more than a
# large weight with an input that is always small. *Wanda* scores weights by both, for $W$ [out, in] and inputs $X$ [N,
# in]:
#
# $$\mathrm{score}_{rc} = |W_{rc}| \cdot \sqrt{\textstyle\sum_n X_{nc}^2}$$

# %%
lines(prune_weights, "scores = np.abs(weight)", 'if method == "wanda":', "scores = scores * np.sqrt", "return np.where")

# %% [markdown]
# The lowest scores of each row are removed:

# %%
lines(keep_fraction, "mask", "dropped")

# %% [markdown]
# A small example: two weights, where the channel of the smaller one has inputs ten times as large.

# %%
W, X = np.array([[0.5, 0.2]]), np.array([[0.1, 1.0], [-0.1, -1.0]])
magnitude, wanda = np.abs(W), np.abs(W) * np.linalg.norm(X, axis=0)
for name, scores in (("magnitude", magnitude), ("Wanda", wanda)):
    left = np.where(keep_fraction(0.5)(scores), W, 0)
    print(f"{name}: keeps {left[0]}, output error {np.abs(X @ (left - W).T).max():.2f}")

# %% tags=["check"]
assert np.argmax(magnitude) == 0 and np.argmax(wanda) == 1

# %% [markdown]
# Here more and more weights of each matrix in each layer of the bundled model are set to zero (the embedding stays):

# %%
shares = (0.1, 0.25, 0.4, 0.5, 0.6, 0.7)
single = {
    method: [measured(prune(model, PruningPlan(**{method: share}), calibration)) for share in shares]
    for method in ("magnitude", "wanda")
}
pairs = {method: measured(prune(model, PruningPlan(**{method: "2:4"}), calibration)) for method in single}

# %%
perplexities = {method: [row["perplexity"] for row in rows] for method, rows in single.items()}
of_pairs = {method: row["perplexity"] for method, row in pairs.items()}
figures.sparsity(shares, perplexities, of_pairs, original["perplexity"])

for method, rows in single.items():
    kl = "   ".join(f"{share:.0%}: {row['kl']:.3f}" for share, row in zip(shares, rows, strict=True))
    print(f"{method:9} KL {kl}   2:4: {pairs[method]['kl']:.3f}")

# %% tags=["check"]
for method, rows in single.items():
    assert pairs[method]["kl"] > 1.8 * rows[3]["kl"]
for by_size, by_product in zip(single["magnitude"], single["wanda"], strict=True):
    assert by_product["kl"] < 0.8 * by_size["kl"]
raised = [row["perplexity"] / original["perplexity"] for row in single["wanda"]]
assert raised[0] < 1.02 and 1.07 < raised[3] < 1.17 and raised[5] > 1.5

# %% [markdown]
# Removing a tenth of the weights costs hardly anything. Then the cost grows faster and faster: half of them, removed by
# Wanda, raise the perplexity by about a tenth, and 70% by more than a half. Wanda is always closer to the original than
# magnitude: its KL is lower by a fifth or more. On a real model, further down, the difference is larger.
#
# ## 2:4, and what really gets smaller
#
# Zeros in arbitrary places do not make a matrix product faster: the processor multiplies by them like by any number.
# Sparse tensor cores of GPUs can skip them in a fixed pattern: two of every four neighbours, *2:4*.

# %%
lines(two_of_four, "fours = ", "np.put_along_axis")

# %% [markdown]
# The plot shows its price: with the same fraction of zeros, the KL is about twice as high or more, because a group of
# four with three important weights has to lose one of them. Here is what it saves, in bytes of bfloat16:

# %%
sparse = prune(model, PruningPlan(wanda="2:4"), calibration)
zeros = sum(int((weight == 0).sum()) for name, weight in sparse.weights.items() if "proj" in name)
weights = sum(weight.size for name, weight in sparse.weights.items() if "proj" in name)
total = sum(stored_bytes(weight) for weight in sparse.weights.values()) // 2
print(f"{zeros:,} of the layers' {weights:,} weights are zero")
print(f"stored as before:             {total / 1e6:.2f} MB, nothing saved")
print(f"2 numbers and their 2 places: {(total - 2 * zeros + weights // 2 * 2 // 8) / 1e6:.2f} MB")

# %% tags=["check"]
assert zeros == weights // 2
assert sum(map(stored_bytes, sparse.weights.values())) == sum(map(stored_bytes, model.weights.values()))

# %% [markdown]
# (An index among four takes two bits.) This package stores zeros like all other numbers. It has no kernel that could
# skip them, so pruned weights save neither memory nor time here. A *smaller matrix* always saves both.
#
# ## Channels: a smaller matrix
#
# A feed-forward channel $j$ is a row of the gate, a row of the up matrix, and a column of the down matrix:
#
# $$h_j = \mathrm{gelu}(x \cdot W^{\mathrm{gate}}_j) \; (x \cdot W^{\mathrm{up}}_j)
# \qquad y = \sum_j h_j \, W^{\mathrm{down}}_{:j}
# \qquad W^{\mathrm{gate}}, W^{\mathrm{up}}\ [F, D], \; W^{\mathrm{down}}\ [D, F]$$
#
# The three have to be removed together; then exactly one summand is missing.

# %%
lines(keep_channels, "chosen, part", "for name in", "[chosen]", "np.take")

# %%
importance = measure_importance(model, calibration)
smaller = keep_channels(model, importance.channels, 192)
for name in ("gate_proj", "up_proj", "down_proj"):
    shapes = [gemma.weights[f"model.layers.0.mlp.{name}.weight"].shape for gemma in (model, smaller)]
    print(name.ljust(9), *shapes, sep="   ")

# %% tags=["check"]
names = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
whole, part = ({name: gemma.weights[f"model.layers.0.mlp.{name}"] for name in names} for gemma in (model, smaller))
dropped = np.argsort(-importance.channels[0])[192:]
silenced = whole["down_proj.weight"].copy()
silenced[:, dropped] = 0  # these channels have no effect
x = np.random.default_rng(0).standard_normal((5, config.hidden_size), dtype=np.float32)
expected = feed_forward(x, whole | {"down_proj.weight": silenced})
np.testing.assert_allclose(feed_forward(x, part), expected, rtol=1e-3, atol=1e-4)

# %% [markdown]
# A *key-value group* is one key-value head (h rows of `k_proj` and `v_proj`), the G query heads that read it (rows of
# `q_proj`), and the columns of `o_proj` that read these:

# %%
lines(keep_groups, "keys = ", "queries = ", "q_proj", "k_proj", "v_proj", "o_proj")

# %% [markdown]
# ## What is important
#
# The importance of a channel is what it adds to the output on real inputs: the sum of squares of its summand above,
# over all tokens:
#
# $$\mathrm{importance}_j = \sum_t h_{tj}^2 \cdot \lVert W^{\mathrm{down}}_{:j} \rVert^2$$
#
# Groups are measured in the same way, with $W^o$ in place of $W^{\mathrm{down}}$. The importance of a layer is how much
# it changes the direction of the residual stream: 1 minus the cosine between its input and its output.

# %% [markdown]
# By hand: which of three channels can go from a matrix $W^{\mathrm{down}}$ of two rows and three columns? For two
# tokens, we compute the importance of each channel, and what the output loses without it:

# %%
h = np.array([[0.1, 1.0, 2.0], [-0.1, 1.0, -2.0]])  # [T, F]
W_down = np.array([[3.0, 1.0, 0.0], [4.0, 0.0, 1.0]])  # [D, F]
y = h @ W_down.T  # [T, D]
for j in range(3):
    squares, length = np.sum(h[:, j] ** 2), np.sum(W_down[:, j] ** 2)
    print(f"channel {j}: importance {squares:.2f} * {length:g} = {squares * length:.1f}", end=", ")
    lost = y - np.delete(h, j, axis=1) @ np.delete(W_down, j, axis=1).T  # [T, D]
    print(f"without it the output loses {lost[0].round(1)} and {lost[1].round(1)}")

# %% tags=["check"]
for j in range(3):
    lost = y - np.delete(h, j, axis=1) @ np.delete(W_down, j, axis=1).T
    np.testing.assert_allclose(np.sum(lost**2), np.sum(h[:, j] ** 2) * np.sum(W_down[:, j] ** 2))

# %% [markdown]
# Channel 0 can go. Its weights are the largest, but its values $h$ are small. The importance is exactly the sum of
# squares of what is lost. In the package:

# %%
lines(measure_importance, "layers.append", "channels.append", "groups.append")

# %%
without = [measured(drop_layers(model, [layer])) for layer in range(config.num_hidden_layers)]
figures.importance(importance, [row["kl"] for row in without])

half = np.sort(importance.channels, axis=1)[:, 192:].sum(axis=1) / importance.channels.sum(axis=1)  # [layers]
shown = "  ".join(f"layer {layer}: {share:.0%}" for layer, share in enumerate(half))
print(f"importance of the better half of the channels: {shown}")
for layer, row in enumerate(without):
    print(f"without layer {layer}: perplexity {row['perplexity']:.0f}, KL {row['kl']:.2f}")

# %% tags=["check"]
assert ((half > 0.65) & (half < 0.9)).all()
for scores in ([row["kl"] for row in without], importance.layers):
    assert scores[0] > 1.3 * scores[1] and scores[1] > 1.3 * max(scores[2:])
    assert max(scores[2:]) < 1.2 * min(scores[2:])
assert [kind == "sliding_attention" for kind in config.layer_types] == [True, False, True, False]

# %% [markdown]
# The better half of the channels has between two thirds and nine tenths of the importance. And the layers that change
# the stream least are missed least: removing the first hurts most, then the second, and the last two change the stream
# about equally and are missed about equally. The importance predicts this from one pass over the texts. Does the
# importance of channels matter as well? Here is half of them, chosen in three ways:

# %%
random = np.random.default_rng(0).random(importance.channels.shape)
ways = {"important": importance.channels, "random": random, "unimportant": -importance.channels}
halves = {name: measured(keep_channels(model, scores, 192))["kl"] for name, scores in ways.items()}
print(", ".join(f"{name}: KL {value:.2f}" for name, value in halves.items()))

one_group = keep_groups(model, importance.groups, 1)
of_groups = measured(one_group)["kl"]
size, *left = (sum(weight.size for weight in gemma.weights.values()) for gemma in (model, smaller, one_group))
print(f"half of the channels: {size - left[0]:,} fewer weights, KL {halves['important']:.2f}; ", end="")
print(f"half of the groups: {size - left[1]:,} fewer weights, KL {of_groups:.2f}")

# %% tags=["check"]
assert halves["important"] < 0.75 * halves["random"] and halves["random"] < halves["unimportant"]
assert 3 * (size - left[1]) == size - left[0] and of_groups > halves["important"] / 2
assert cache_bytes(config, 256) == 2 * cache_bytes(one_group.config, 256)

# %% [markdown]
# Half of the key-value groups have a third as many weights as half of the channels, and removing them costs more than
# half as much. But it also halves the cache of [tutorial 11](11_cache_and_generation.ipynb).
#
# ## Layers, and their pattern
#
# Local and global layers alternate, and many implementations derive the type of a layer from its number. Dropping layer
# 0 would swap the types for them. `choose_layers` finds the choice with the greatest total importance that keeps the
# pattern. Here it is with made-up importances, where layer 1 has the lowest:

# %%
made_up = np.array([0.4, 0.1, 0.3, 0.2])
for keep in (3, 2):
    chosen = choose_layers(made_up, config, keep)
    kinds = keep_layers(model, chosen).config.layer_types
    print(f"{keep} layers: {chosen}", ["local" if kind == "sliding_attention" else "global" for kind in kinds])

# %% tags=["check"]
assert choose_layers(made_up, config, 3) == [0, 1, 2] and choose_layers(made_up, config, 2) == [0, 3]

# %% [markdown]
# Three layers have to be local, global, local, so layer 1 stays: it is the only global layer between local ones. For
# two layers, 0 and 3 are the best pair of a local layer and a later global one.
#
# ## Healing
#
# The pruned model computes something different, but most of what was learned is still in it. A short *distillation*
# ([tutorial 15](15_distillation.ipynb)) with the original as the teacher recovers much of it. The loss is the KL, which
# has the gradient of $-\sum P_T \log P_S$ and would be 0 for the original itself. We heal three models:
#
# - half of the channels, the important ones: a smaller model;
# - 2:4 by Wanda: zeros must stay zero, so the forward pass sees each weight multiplied by its mask;
# - for comparison, a model of the same shape as the first, with random weights, as in tables 6 and 7 of the report.

# %%
lines(keep_sparsity, "masks = ", "return")

# %% [markdown]
# The texts are again generated by the original, which works for any model: 40,960 tokens, each read one and a half
# times. If the training texts of a model are available, use those.

# %%
begin, generator = np.full((160, 1), model.tokenizer.bos), np.random.default_rng(2)
own_words = sample_continuations(begin, 256, model.weights, config, generator).ravel()
training_config = TrainingConfig(
    steps=60, batch_size=8, seq_len=128, learning_rate=2e-3, warmup_steps=5, weight_decay=0.01
)
read = training_config.steps * training_config.batch_size * training_config.seq_len
print(f"{own_words.size:,} tokens of text, {read:,} read by each")


# %%
def heal(small, view_weights):
    """The trained model, and the KL of each step."""
    next_batch = random_batches(own_words, training_config.batch_size, training_config.seq_len)
    task = Task(next_batch, from_teacher(model, forward_kl), view_weights=view_weights)
    weights = {name: weight.copy() for name, weight in small.weights.items()}
    optimizer = AdamW(weight_decay=training_config.weight_decay)
    state = State(weights, optimizer, np.random.default_rng(training_config.seed))
    steps = [train_step(state, small.config, task, training_config, Ranks()) for _ in range(training_config.steps)]
    healed = gemma_np.Gemma(small.config, task.view_weights(state.weights), model.tokenizer)
    return healed, [step["loss"] for step in steps]


# %%
at_random = gemma_np.Gemma(smaller.config, initial_weights(smaller.config, np.random.default_rng(0)), model.tokenizer)
broken = {"half of the channels": smaller, "2:4, zeros stay": sparse, "half, from random weights": at_random}
healed, curves = {}, {}
for name, small in broken.items():
    view_weights = keep_sparsity(small.weights) if small is sparse else lambda weights: weights
    healed[name], curves[name] = heal(small, view_weights)

# %%
figures.healing(curves)

before, after = ({name: measured(small) for name, small in models.items()} for models in (broken, healed))
for name in broken:
    print(f"{name:25} perplexity {before[name]['perplexity']:7.1f} -> {after[name]['perplexity']:6.1f}", end="")
    print(f"   KL {before[name]['kl']:.2f} -> {after[name]['kl']:.2f}")

# %% tags=["check"]
half, two_four, from_random = broken
for name in (half, two_four):
    assert 0.3 * before[name]["kl"] < after[name]["kl"] < 0.66 * before[name]["kl"]
    assert np.mean(curves[name][-5:]) < min(0.8 * after[name]["kl"], 0.95 * np.mean(curves[name][-20:-15]))
assert after[from_random]["kl"] > 6 * after[half]["kl"]
matrices = [weight for name, weight in healed[two_four].weights.items() if "proj" in name]
assert all((weight == 0).sum() >= weight.size // 2 for weight in matrices)
assert read == 1.5 * own_words.size

# %% [markdown]
# In 60 steps both pruned models recover more than a third of their distance from the original, and their curves are
# still falling. After the same 60 steps, the model with random weights is still more than six times as far away as the
# one that started as half of the original. That is the point of pruning: the small model need not learn again what the
# large one knows. The report's students, on trillions of tokens, can afford to start from scratch. (The curves of the
# pruned models end lower than the printed numbers, because they are measured on texts of the original, the numbers on
# texts of another model.)
#
# Of the two, only the model with half of the channels takes less memory. The 2:4 model is closer to the original, but
# needs hardware that supports the pattern.

# %%
sizes = {name: sum(map(stored_bytes, small.weights.values())) for name, small in healed.items()}
print("; ".join(f"{name}: {size / 1e6:.1f} MB" for name, size in sizes.items()), "in float32")

# %% tags=["check"]
assert after[two_four]["kl"] < after[half]["kl"] and sizes[half] < 0.75 * sizes[two_four]

# %% [markdown]
# ## The same on a real model
#
# The [experiments](experiments/README.md) pruned this model and the real Gemma 3 270M, and measured both on
# Shakespeare's own texts, without healing:

# %%
results = json.loads(Path("experiments/sparsity_and_methods.json").read_text())
figures.cost_of_pruning(results)

real = {(row["setting"], row["method"]): row for row in results["gemma-3-270m"]}
for (setting, method), row in real.items():
    print(f"gemma-3-270m, {setting:7} {method:10} KL {row['kl']:.2f}   perplexity {row['perplexity']:8.0f}")

# %% tags=["check"]
assert real["25%", "wanda"]["kl"] < real["25%", "magnitude"]["kl"] / 3
assert real["50%", "magnitude"]["perplexity"] > 20 * real["50%", "wanda"]["perplexity"]
assert real["50%", "channels"]["kl"] < 0.3 * real["50%", "magnitude"]["kl"]
for found in results.values():
    quarter = {row["method"]: row["kl"] for row in found if row["setting"] == "25%"}
    assert max(quarter, key=quarter.get) == "layers"

# %% [markdown]
# (`32 bits` is the original.) On the real model, it pays off to look at the inputs: removing a quarter of the weights
# by Wanda costs less than a third of removing them by magnitude. Removing half by magnitude ruins the model; even
# removing half of the channels, by importance, costs less. Removing whole layers costs most. Here is all of it in one
# command, with a table after each step: `gemma-np compress texts/ --prune intermediate-size=192 --distill 2000
# --quantize int4 -o smaller`.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The score of Wanda.
#
# <details><summary>Hint 1</summary>
#
# There is one number for each input channel, its norm over the N inputs.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.linalg.norm` has the argument `axis`. It multiplies the sizes of the weights, `np.abs`.
#
# </details>


# %%
def wanda_scores(weight, inputs):
    """weight [out, in], inputs [N, in] -> scores [out, in]"""
    ...


check(wanda_scores, exercises.WANDA)

# %% [markdown]
# **2.** The mask of 2:4.
#
# <details><summary>Hint 1</summary>
#
# Reshape to [out, in / 4, 4]: four neighbours are the last axis.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `argsort` returns where the smallest number is, the second smallest, and so on; `argsort` of that gives each number's
# rank, 0 to 3.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Keep the ranks 2 and 3, and reshape back.
#
# </details>


# %%
def mask_two_of_four(scores):
    """scores [out, in], in a multiple of 4 -> bool [out, in], True for the two highest of each four neighbours"""
    ...


check(mask_two_of_four, exercises.TWO_OF_FOUR)

# %% [markdown]
# **3.** A feed-forward with fewer channels. Keep the `keep` most important ones, in their original order.
#
# <details><summary>Hint 1</summary>
#
# Compute one importance for each channel of F, from `hidden` and `down`; the same channels stay in all three matrices.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The importance is the sum of squares of the channel in `hidden`, over the tokens, times the sum of squares of its
# column of `down`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `np.argsort`, the last `keep` of it, then `np.sort`: the indices in their original order. They index rows of `gate`
# and `up`, columns of `down`.
#
# </details>


# %%
def keep_important(gate, up, down, hidden, keep):
    """gate and up [F, D], down [D, F], hidden [N, F] -> gate and up [keep, D], down [D, keep], as a tuple"""
    ...


check(keep_important, exercises.KEEP_CHANNELS)

# %% [markdown]
# The solutions are in [solutions/17_pruning_and_healing.py](solutions/17_pruning_and_healing.py).
#
# ## Further reading
#
# - [gemma_np/compression/pruning.py](../gemma_np/compression/pruning.py) and
#   [structured_pruning.py](../gemma_np/compression/structured_pruning.py): single weights, and whole structures.
# - [gemma_np/compression/pipeline.py](../gemma_np/compression/pipeline.py): prune, heal, quantize, measured after each.
# - Sun et al., [Wanda](https://arxiv.org/abs/2306.11695); Mishra et al., [2:4](https://arxiv.org/abs/2104.08378); Men
#   et al., [ShortGPT](https://arxiv.org/abs/2403.03853), on layers; Muralidharan et al., [Compact Language Models via
#   Pruning and Knowledge Distillation](https://arxiv.org/abs/2407.14679).
#
# Next: [18. Gemma 1, 2 and 3](18_gemma_1_2_and_3.ipynb).
