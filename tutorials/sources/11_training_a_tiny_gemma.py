# %% [markdown]
# # 11. Training a tiny Gemma
#
# After this you can write a training loop: draw a batch, find the loss and its gradients, clip them, take a step of
# AdamW at the rate that the step asks for; and you can tell from four simple numbers whether the loop works. About 15
# minutes; the notebook itself takes up to a minute to run. In the [Gemma 2 report](https://arxiv.org/abs/2408.00118):
# section 3, "Pre-training", where the models learn from trillions of tokens; here one learns from some sixty thousand.
#
# Before this: [10. The backward pass by hand](10_backward_by_hand.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import math
import os
import time

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # for matrices as small as these, one thread is as fast as several

import matplotlib.pyplot as plt
import numpy as np
from support import check, lines
from support.exercises import training as exercises
from support.plots import pieces, use_style

import gemma_np
from gemma_np.config import RELEASED, gemma2_config
from gemma_np.gemma import Gemma
from gemma_np.memory import training_bytes
from gemma_np.training.data import random_batches
from gemma_np.training.distillation import sample_continuations
from gemma_np.training.losses import cross_entropy, masked_mean
from gemma_np.training.mpi import Ranks
from gemma_np.training.optimizer import AdamW, clip_by_global_norm, cosine_schedule
from gemma_np.training.task import Batch, Task, next_token
from gemma_np.training.trainer import initial_weights, loss_and_gradients, train_step, validation_loss
from gemma_np.training.training_state import State, TrainingConfig

use_style()
author = gemma_np.load()
tokenizer, V = author.tokenizer, author.config.vocab_size
print(f"V = {V} tokens in the vocabulary")

# %% [markdown]
# ## Something to learn from
#
# No text comes with the package, so the bundled model is the author: it writes 512 texts of 128 tokens, each token
# drawn from its distribution as it is. This has an advantage that no real text has. We know the distribution that every
# token was drawn from, and so we know the best loss that any model can reach in the long run: the author's own.
#
# 480 texts are for training, laid end to end as one row of ids [N]. The other 32 are held out.

# %%
LENGTH = 128
begin = np.full((512, 1), tokenizer.bos)
texts = sample_continuations(begin, LENGTH + 1, author.weights, author.config, np.random.default_rng(0))  # [512, T + 1]
train_ids = texts[:480].ravel()  # [N]
held_out = [Batch(texts[first : first + 16]) for first in (480, 496)]  # each [16, T + 1]

print(f"{train_ids.size} tokens to train on, {sum(batch.num_targets for batch in held_out)} to validate on\n")
print(tokenizer.decode(texts[20, 1:].tolist())[:230])

# %% [markdown]
# Shakespeare would not have signed it: a million parameters, no temperature. It is text all the same, with
# speakers, verses and stage directions.
#
# A batch is ids [B, T + 1]. What is read is all but the last token, what is to be predicted is all but the first, so
# that each of the T positions has its question and its answer:

# %%
first_batch = random_batches(train_ids, batch_size=4, seq_len=LENGTH)(State({}, AdamW(), np.random.default_rng(0)))
read, predicted = first_batch.ids[:, :-1], first_batch.ids[:, 1:]  # [B, T] each
for question, answer in zip(pieces(read[0, :6], tokenizer), pieces(predicted[0, :6], tokenizer), strict=True):
    print(f"{question:>10} -> {answer}")
assert np.array_equal(read[:, 1:], predicted[:, :-1])

# %% [markdown]
# ## The loss, and what it should be before anything is learned
#
# With logits $z$ [B, T, V] and targets $y$ [B, T], the loss of a position is how surprised the model is, and the loss
# of a batch is the mean over its N positions:
#
# $$L = -\frac{1}{N} \sum_{b,t} \log P_{b,t}(y_{b,t}), \qquad P = \mathrm{softmax}(z),
# \qquad \frac{\partial L}{\partial z} = \frac{1}{N} (P - \mathrm{onehot}(y))$$

# %%
lines(cross_entropy, "losses = ", "dlogits = ", "put_along_axis(dlogits")

# %%
lines(masked_mean, "count =", "total", "return")

# %% [markdown]
# The mask is for positions that are read and not learned: in a conversation, what the user said. They must not
# count in the sum, and not in N.
#
# A model that knows nothing gives each token $1/V$, and its loss is $\log V$. This is the first of the four numbers: a
# loop that starts far from it is wrong before it starts. Here is a Gemma 2 of about a hundred thousand parameters, two
# thirds of them the embedding, with one local and one global layer:

# %%
config = gemma2_config(
    vocab_size=V,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    intermediate_size=128,
    max_position_embeddings=256,
    query_pre_attn_scalar=16,
    sliding_window=32,
)
count = sum(config.parameter_count().values())
start = initial_weights(config, np.random.default_rng(0))
nothing_known, _ = masked_mean(*cross_entropy(np.zeros((2, 3, V)), np.ones((2, 3), int)))
first_loss = validation_loss(start, config, held_out, Ranks())

print(f"{count} parameters; log V = {math.log(V):.3f}, loss at first {first_loss:.3f}")
assert 90_000 < count < 110_000 and abs(config.parameter_count()["embedding"] / count - 2 / 3) < 0.02
np.testing.assert_allclose(nothing_known, math.log(V))
np.testing.assert_allclose(first_loss, math.log(V) + 0.5, atol=0.05)

# %% [markdown]
# It is half a nat more than $\log V$, and that has a reason:

# %%
lines(initial_weights, "std = ", "standard_normal")

# %% [markdown]
# The weights of norms start at 0, so a norm multiplies by 1. Each matrix starts with variance 1 / (number of inputs),
# so that what comes out is as large as what goes in. Hence the logits, sums of D products with the rows of the
# embedding, have variance 1, and not 0: the model starts with opinions, all of them wrong. For normal logits of
# variance $\sigma^2$ the loss is about $\log V + \sigma^2 / 2$.

# %%
first_logits = Gemma(config, start, tokenizer).logits(read)  # [B, T, V]
variance = first_logits.var()
print(f"variance of the logits: {variance:.2f}")
np.testing.assert_allclose(variance, 1, atol=0.1)

# %% [markdown]
# ## Which way: gradients, clipped
#
# One forward and one backward pass give the gradient of each weight, under its name. Their common length is the second
# number to watch. Now and then a strange batch has a gradient many times as long as usual, and a single step along it
# could undo a hundred others; so all gradients $g$ are scaled down together where their length is above a limit $c$:
#
# $$\lVert g \rVert = \sqrt{\sum_{\text{weights}} \sum_i g_i^2},
# \qquad g \leftarrow g \cdot \min(1, c / \lVert g \rVert)$$
#
# Together means that the direction stays. Cutting each array, or each number, on its own would turn it.

# %%
lines(clip_by_global_norm, "norm = ", "if max_norm", "for gradient", "gradient *=")

# %%
loss, gradients, _ = loss_and_gradients(start, config, first_batch, next_token)
before = clip_by_global_norm(gradients, max_norm=0.5)
after = clip_by_global_norm(gradients, max_norm=0.5)
print(f"loss {loss:.3f}; length of all gradients {before:.3f}, clipped to {after:.3f}")
assert before > 0.5
np.testing.assert_allclose(after, 0.5, rtol=1e-5)

# %% [markdown]
# ## How far: AdamW
#
# Plain gradient descent takes large steps where the gradient is large. But how large it is differs much from weight to
# weight, and says little of how far that weight should go:

# %%
sizes = {name: float(np.sqrt(np.mean(gradient**2))) for name, gradient in gradients.items()}
largest, smallest = max(sizes, key=sizes.get), min(sizes, key=sizes.get)
print(f"root mean square of the gradient: {sizes[largest]:.1e} in {largest},\n{sizes[smallest]:.1e} in {smallest}")
assert sizes[largest] > 10 * sizes[smallest]

# %% [markdown]
# One rate does not suit all. Adam divides by the size that a weight's gradient usually has. It keeps two running means
# for each weight, of the gradient and of its square, and divides each by what has been averaged so far, since they
# start from zero ($t$ counts steps from 1):
#
# $$m \leftarrow m + (1 - \beta_1)(g - m), \qquad v \leftarrow v + (1 - \beta_2)(g^2 - v)$$
# $$w \leftarrow w \, (1 - \eta \lambda) - \eta \,
# \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \varepsilon}$$
#
# The W is for weight decay, $1 - \eta \lambda$. It stands outside of the fraction: added to the gradient, it would be
# divided by the gradient's size as well. It is for matrices alone; norms keep their weights.

# %%
lines(
    AdamW.step,
    "correction1, correction2",
    "for name",
    "weight = ",
    "m = ",
    "v = ",
    " += (1",
    "weight.ndim",
    "weight *=",
    "weight -=",
)

# %% [markdown]
# So a step has the length $\eta$ for every weight, whatever its gradient: in the first step the fraction is $g / |g|$,
# which is 1 or -1.

# %%
moved = {name: weight.copy() for name, weight in start.items()}
AdamW().step(moved, gradients, learning_rate=0.01)
name = "model.layers.0.input_layernorm.weight"
steps_taken = moved[name] - start[name]  # [D]
gradient_sizes = np.abs(gradients[name])
print(f"{name}: gradients of {gradient_sizes.min():.1e} to {gradient_sizes.max():.1e}, all moved by 0.01")
assert gradient_sizes.max() > 10 * gradient_sizes.min()
np.testing.assert_allclose(steps_taken, -0.01 * np.sign(gradients[name]), rtol=1e-3)

# %% [markdown]
# The rate $\eta$ itself changes: it grows over the first steps, when the running means know little yet, and shrinks
# along a cosine to a tenth, so that the end is spent on details. The peak is the one number that one has to try out.

# %%
lines(cosine_schedule, "if step", "return", "progress = ")

# %% [markdown]
# ## First, one batch by heart
#
# A test that takes seconds and saves days: train on the same batch again and again. If everything is wired up, the
# loss goes to zero, since a hundred thousand parameters can learn a few hundred tokens by heart. If it stays up, there
# is a mistake, and no amount of text will help. `train_step` is the package's step: draw, gradients, clip, AdamW.

# %%
training_config = TrainingConfig(steps=100, batch_size=4, seq_len=LENGTH, learning_rate=1e-2, warmup_steps=20)
state = State({name: weight.copy() for name, weight in start.items()}, AdamW(), np.random.default_rng(0))
by_heart = Task(next_batch=lambda state: first_batch)
losses_by_heart = [
    train_step(state, config, by_heart, training_config, Ranks())["loss"] for _ in range(training_config.steps)
]

print(
    f"the same {first_batch.num_targets} tokens: {losses_by_heart[0]:.2f} at first, {losses_by_heart[-1]:.3f} at last"
)
assert losses_by_heart[-1] < 0.1
print(f"on other texts: {validation_loss(state.weights, config, held_out, Ranks()):.2f}")
assert validation_loss(state.weights, config, held_out, Ranks()) > math.log(V)

# %% [markdown]
# And it is worse than knowing nothing on all other texts: it is sure, and wrong. Hence the held-out texts: they are the
# third thing to watch.
#
# ## The loop
#
# Now for real, with the loop spelt out. It is `train_step` without what that has for several processes; the first
# steps show that it is the same, to the bit.

# %%
STEPS, PEAK, WARMUP_STEPS, MAX_NORM = 900, 1e-2, 50, 1.0

weights = {name: weight.copy() for name, weight in start.items()}
optimizer = AdamW(weight_decay=0.1)
state = State(weights, optimizer, np.random.default_rng(0))
next_batch = random_batches(train_ids, batch_size=4, seq_len=LENGTH)
log, validation = [], {0: validation_loss(weights, config, held_out, Ranks())}

for step in range(STEPS):
    batch = next_batch(state)
    loss, gradients, _ = loss_and_gradients(weights, config, batch, next_token)
    norm = clip_by_global_norm(gradients, MAX_NORM)
    learning_rate = cosine_schedule(step, STEPS, PEAK, WARMUP_STEPS)
    optimizer.step(weights, gradients, learning_rate)
    log.append((loss, norm, learning_rate))
    if (step + 1) % 100 == 0:
        validation[step + 1] = validation_loss(weights, config, held_out, Ranks())

twin = State({name: weight.copy() for name, weight in start.items()}, AdamW(), np.random.default_rng(0))
twin_config = TrainingConfig(
    steps=STEPS, batch_size=4, seq_len=LENGTH, learning_rate=PEAK, warmup_steps=WARMUP_STEPS, max_grad_norm=MAX_NORM
)
for step in range(3):
    assert train_step(twin, config, Task(next_batch), twin_config, Ranks())["loss"] == log[step][0]

# %% [markdown]
# To judge the loss we need marks to hold it against: $\log V$, knowing nothing; the loss of one who knows how often
# each token occurs, and nothing else; and the author's own, which is the floor.

# %%
targets = np.concatenate([batch.ids[:, 1:] for batch in held_out])  # [32, T]
occurs = np.bincount(train_ids, minlength=V) + 0.1  # [V]; 0.1 for tokens that never occur
frequencies = float(-np.log(occurs / occurs.sum())[targets].mean())
floor = validation_loss(author.weights, author.config, held_out, Ranks())

train_loss, norms, rates = (np.array(values) for values in zip(*log, strict=True))
smooth = np.convolve(train_loss, np.ones(25) / 25, "valid")  # means of 25 steps, from step 25 on
figure, axes = plt.subplots(figsize=(7, 4.2))
axes.plot(np.arange(1, STEPS + 1), train_loss, color="C4", linewidth=0.7, alpha=0.6, label="training, each batch")
axes.plot(np.arange(25, STEPS + 1), smooth, color="C0", label="training, mean of 25 batches")
axes.plot(list(validation), list(validation.values()), "o-", color="C5", label="held out")
for value, what in ((math.log(V), "knowing nothing: log V"), (frequencies, "knowing how often each token occurs")):
    axes.axhline(value, color="black", linewidth=0.8, linestyle="--")
    axes.text(STEPS, value + 0.05, what, ha="right", fontsize=9)
axes.axhline(floor, color="black", linewidth=0.8, linestyle="--")
axes.text(0, floor + 0.05, "the author's own loss", fontsize=9)
axes.set(xlabel="steps (512 tokens each)", ylabel="loss (nats per token)", ylim=(floor - 0.4, 8.6))
axes.set_title("The loss falls, and what is held out stays above what is read")
axes.legend(loc=(0.3, 0.61))
plt.show()

last = validation[STEPS]
print(f"held out: {validation[0]:.2f} -> {last:.2f}; frequencies {frequencies:.2f}, the author {floor:.2f}")
print(f"the text was read {STEPS * 512 / train_ids.size:.1f} times; training loss at last {smooth[-1]:.2f}")
assert floor + 1 < last < frequencies - 1 and validation[100] < frequencies
assert smooth[-1] < last - 0.3
assert list(validation)[np.argmin(list(validation.values()))] >= STEPS - 200

# %% [markdown]
# In the first hundred steps it learns how often tokens occur, and then some of what follows what. After that the gains
# become small. Training and held-out loss part as the text is read for the second time and more: it begins to be
# learned by heart, and the gap between the curves is progress that is worth nothing on other texts. The author remains
# more than a nat ahead. To come nearer takes more text and more parameters, and the next tutorial has a third way.
#
# The gradient's length and the rate, step by step:

# %%
figure, (above, below) = plt.subplots(2, 1, figsize=(7, 4.2), sharex=True)
above.plot(np.arange(1, STEPS + 1), norms, color="C0", linewidth=0.8)
above.axhline(MAX_NORM, color="C5", linestyle="--", label="limit")
above.set(
    ylabel="length of the gradient", ylim=(0, None), title="The gradient of each batch, and the rate of each step"
)
above.legend(loc="lower right")
below.plot(np.arange(1, STEPS + 1), rates, color="C2")
below.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
plt.show()

clipped = np.mean(norms > MAX_NORM)
print(f"{clipped:.0%} of the steps were clipped; the longest gradient was {norms.max():.2f}")
assert clipped < 0.05 and norms[-50:].mean() > 1.5 * norms[50:100].mean()
assert np.argmax(rates) in (WARMUP_STEPS - 1, WARMUP_STEPS)
np.testing.assert_allclose([rates[0], rates.max(), rates[-1]], [PEAK / WARMUP_STEPS, PEAK, PEAK / 10], rtol=1e-3)

# %% [markdown]
# Here clipping had little to do; it is an insurance, and costs nothing. Odder is that after the warm-up the gradient
# becomes *longer* while the loss falls. A batch's gradient has two parts: one that all batches share, and one that is
# peculiar to the batch and points anywhere. The mean over many batches keeps the first and cancels most of the second;
# were there no first, the mean of 32 would be $1 / \sqrt{32}$ times as long, about 0.18.


# %%
def gradient_lengths(weights, batches=32):
    """The length of single batches' gradients, on average, and the length of their mean."""
    found = [loss_and_gradients(weights, config, next_batch(state), next_token)[1] for _ in range(batches)]
    common = {name: np.mean([gradients[name] for gradients in found], axis=0) for name in weights}
    single = np.mean([clip_by_global_norm(gradients, math.inf) for gradients in found])
    return single, clip_by_global_norm(common, math.inf)


for when, found in (("at first", start), ("at last", weights)):
    single, common = gradient_lengths(found)
    print(f"{when}: one batch {single:.2f}, the mean of 32 batches {common:.2f}, {common / single:.2f} times as long")
    assert common > 0.4 * single if found is start else common < 0.3 * single

# %% [markdown]
# At first a good part is shared: nearly every token is too likely or too rare, whatever the batch. At the end it is
# hardly more than the chance of which tokens the batch happened to have. That is why the rate should fall: many small
# steps average over many batches. It is also why a target that depends less on chance is worth something, which is the
# matter of the next tutorial.
#
# ## Before and after

# %%
for when, found in (("before", start), ("after", weights)):
    text = Gemma(config, found, tokenizer).generate("KING RICHARD", max_new_tokens=60, temperature=0.7, seed=2)
    print(f"--- {when}\nKING RICHARD{text}\n")

# %% [markdown]
# Before, any piece of the vocabulary follows any other. After, it has the look of a play: capitals for names, lines,
# commas and full stops where they may stand. It makes no sense, and with a hundred thousand parameters it hardly could.
#
# ## Where the time and the memory go
#
# The rule of thumb is 6 operations per parameter and token: 2 forward, a product and a sum, and twice that backward,
# since each matrix product has two gradients. The parts of one step, measured here; they depend on the machine:

# %%
began = time.perf_counter()
for _ in range(5):
    loss_and_gradients(weights, config, batch, next_token)
both = (time.perf_counter() - began) / 5
began = time.perf_counter()
for _ in range(5):
    logits = Gemma(config, weights, tokenizer).logits(batch.ids[:, :-1])
forward = (time.perf_counter() - began) / 5
began = time.perf_counter()
for _ in range(5):
    clip_by_global_norm(gradients, MAX_NORM)
    AdamW().step({name: weight.copy() for name, weight in weights.items()}, gradients, learning_rate)
update = (time.perf_counter() - began) / 5

speed = 512 / (both + update)
print(f"forward {1e3 * forward:.1f} ms, with loss and backward {1e3 * both:.1f} ms, update {1e3 * update:.1f} ms")
print(f"{speed:,.0f} tokens per second, {6 * count * speed / 1e9:.1f} billion operations a second")

# %% [markdown]
# The memory is known before a byte is allocated; `gemma-np info --training` prints the same for any model.

# %%
for name, shape, B, T in (("this one", config, 4, LENGTH), ("gemma-2-2b", RELEASED["gemma-2-2b"], 1, 1024)):
    memory = training_bytes(shape, batch_size=B, seq_len=T)
    print(f"{name}, {B} x {T} tokens")
    for kind, size in memory.items():
        print(f"  {kind:<45}{size / 1e6:>12,.1f} MB")

small, large = training_bytes(config, 4, LENGTH), training_bytes(RELEASED["gemma-2-2b"], 1, 1024)
assert small["records of the forward pass"] > 10 * small["weights"]
assert large["moments of AdamW"] == 2 * large["weights"]

# %% [markdown]
# The weights and AdamW's two means, twice as much again, do not depend on the batch. What the backward pass needs of
# the forward pass does: it grows with the tokens of a batch. In a tiny model it is more than ten times the weights:
# there are few of them, but each token has its logits [V] and its scores just the same.
#
# ## The same from the command line
#
# With text of your own, the loop above is
#
# ```sh
# gemma-np tokenizer texts/ --vocab-size 2048 -o tokenizer.model
# gemma-np train texts/ --tokenizer tokenizer.model -o run \
#   --hidden-size 32 --layers 2 --heads 2 --kv-heads 1 --head-dim 16 --intermediate-size 128 --sliding-window 32 \
#   --steps 900 --batch-size 4 --seq-len 128 --learning-rate 1e-2 --warmup-steps 50 --max-grad-norm 1.0
# gemma-np plot-log run
# ```
#
# which also saves as it goes on; a run that was stopped is continued by the same command with `--resume`.
#
# The four numbers, then: the loss at first, near $\log V$; the length of the gradient, which should neither vanish nor
# jump; the held-out loss beside the training loss; and the loss on one batch learned by heart, which should reach zero.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The loss of a batch in which only some positions count.


# %%
def masked_loss(logits, targets, loss_mask):
    """logits [B, T, V], targets int [B, T], loss_mask bool [B, T] -> number: the mean loss of the positions that count

    Hint: subtract each position's largest logit before np.exp, and take targets with np.take_along_axis.
    """
    ...


check(masked_loss, exercises.MASKED_LOSS)

# %% [markdown]
# **2.** Clip two gradients by their common norm.


# %%
def clip(first, second, max_norm):
    """first [D, F], second [D], max_norm number -> (first, second), scaled together, as new arrays

    Hint: one number scales both; it is never more than 1.
    """
    ...


check(clip, exercises.CLIP)

# %% [markdown]
# **3.** One step of AdamW, with $\beta_1 = 0.9$, $\beta_2 = 0.95$, $\varepsilon = 10^{-8}$, $\lambda = 0.1$. `step` is
# 1 for the first.


# %%
def adamw(weight, gradient, m, v, step, learning_rate):
    """weight, gradient, m and v [D, F] or [D], step int, learning_rate number -> (weight, m, v)

    Hint: only weights of two axes decay; the means that you return are not divided by 1 - beta ** step.
    """
    ...


check(adamw, exercises.ADAMW)

# %% [markdown]
# The solutions are in [solutions/11_training_a_tiny_gemma.py](solutions/11_training_a_tiny_gemma.py).
#
# ## Further reading
#
# - [gemma_np/training/trainer.py](../gemma_np/training/trainer.py): the step and the run;
#   [optimizer.py](../gemma_np/training/optimizer.py): clipping, AdamW and the rate in 70 lines.
# - [gemma_np/training/data.py](../gemma_np/training/data.py), [tokenizer_training.py](../gemma_np/training/tokenizer_training.py):
#   texts as files of ids, and the tokenizer before that.
# - Loshchilov and Hutter, [Decoupled Weight Decay Regularization](https://arxiv.org/abs/1711.05101) (AdamW); Pascanu et
#   al., [On the difficulty of training recurrent neural networks](https://arxiv.org/abs/1211.5063) (clipping).
#
# Next: [12. Distillation](12_distillation.ipynb).
