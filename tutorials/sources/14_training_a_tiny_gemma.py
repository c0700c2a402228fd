# %% [markdown]
# # 14. Training a tiny Gemma
#
# After this you can write a training loop: read a batch, compute the loss and its gradients, clip them, and take a step
# of AdamW at the scheduled learning rate; and you can tell from four simple numbers whether the loop works. About 25
# minutes; the notebook itself takes up to a minute to run. In the [Gemma 2 report](https://arxiv.org/abs/2408.00118):
# section 3, "Pre-training", where the models are trained on trillions of tokens; here we train one on about sixty
# thousand.
#
# Before this: [13. The backward pass by hand](13_backward_by_hand.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # for matrices as small as these, one thread is as fast as several

# %%
import math

import numpy as np
from support import check, check_file, lines
from support.exercises import training as exercises
from support.figures import training_a_tiny_gemma as figures
from support.plots import pieces, use_style
from support.timing import fastest

import gemma_np
from gemma_np.config import RELEASED, gemma2_config
from gemma_np.gemma import Gemma
from gemma_np.memory import training_bytes
from gemma_np.mpi import Ranks
from gemma_np.training.data import random_batches
from gemma_np.training.distillation import sample_continuations
from gemma_np.training.losses import cross_entropy, masked_mean
from gemma_np.training.optimizer import AdamW, clip_by_global_norm, cosine_schedule
from gemma_np.training.task import Batch, Task, next_token
from gemma_np.training.trainer import initial_weights, loss_and_gradients, train_step, validation_loss
from gemma_np.training.training_state import State, TrainingConfig

# %%
use_style()
author = gemma_np.load()
tokenizer, V = author.tokenizer, author.config.vocab_size
print(f"V = {V} tokens in the vocabulary")

# %% [markdown]
# ## Training data
#
# No text comes with the package, so the bundled model is the author: it writes 512 texts of 128 tokens, each token
# sampled from its distribution. This has an advantage over real text: we know the distribution of every token, so we
# know the best loss that any model can reach in the long run: the author's own.
#
# 480 texts are for training, joined into one row of ids [N]. The other 32 are held out.

# %%
LENGTH = 128
begin = np.full((512, 1), tokenizer.bos)
texts = sample_continuations(begin, LENGTH + 1, author.weights, author.config, np.random.default_rng(0))  # [512, T + 1]
train_ids = texts[:480].ravel()  # [N]
held_out = [Batch(texts[first : first + 16]) for first in (480, 496)]  # each [16, T + 1]

print(f"{train_ids.size} tokens to train on, {sum(batch.num_targets for batch in held_out)} to validate on\n")
print(tokenizer.decode(texts[9, 1:].tolist())[:230])

# %% [markdown]
# It is not Shakespeare, with a million parameters and plain sampling, but it is text, with speakers, verses and stage
# directions.
#
# A batch is ids [B, T + 1]. The model reads all but the last token and predicts all but the first, so each of the T
# positions has an input and a target:

# %%
first_batch = random_batches(train_ids, batch_size=4, seq_len=LENGTH)(State({}, AdamW(), np.random.default_rng(0)))
read, predicted = first_batch.ids[:, :-1], first_batch.ids[:, 1:]  # [B, T] each
for question, answer in zip(pieces(read[0, :6], tokenizer), pieces(predicted[0, :6], tokenizer), strict=True):
    print(f"{question:>10} -> {answer}")

# %% tags=["check"]
assert np.array_equal(read[:, 1:], predicted[:, :-1])

# %% [markdown]
# ## The loss, and what it should be before anything is learned
#
# With logits $z$ [B, T, V] and targets $y$ [B, T], the loss of a position is the negative log-likelihood of its target,
# and the loss of a batch is the mean over its N positions:
#
# $$L = -\frac{1}{N} \sum_{b,t} \log P_{b,t}(y_{b,t}), \qquad P = \mathrm{softmax}(z),
# \qquad \frac{\partial L}{\partial z} = \frac{1}{N} (P - \mathrm{onehot}(y))$$

# %%
lines(cross_entropy, "losses = ", "dlogits = ", "put_along_axis(dlogits")

# %%
lines(masked_mean, "count =", "total", "return")

# %% [markdown]
# The mask excludes positions that are read but not trained on, such as the user's turns in a conversation. They must
# count neither in the sum nor in N.
#
# **Predict:** What is the loss of a model that knows nothing, for a vocabulary of V = 2048?
#
# <details><summary>Reveal</summary>
#
# $\log 2048 = 7.62$ nats: each token gets the probability $1/2048$.
#
# </details>
#
# A model that knows nothing gives each token probability $1/V$, and its loss is $\log V$. This is the first of the four
# numbers: if the loop starts far from it, something is wrong already. Here is a Gemma 2 of about a hundred thousand
# parameters, two thirds of them the embedding, with one local and one global layer:

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

# %%
start = initial_weights(config, np.random.default_rng(0))
nothing_known, _ = masked_mean(*cross_entropy(np.zeros((2, 3, V)), np.ones((2, 3), int)))
first_loss = validation_loss(start, config, held_out, Ranks())
print(
    f"{count} parameters; log V = {math.log(V):.3f}, loss of equal logits {nothing_known:.3f}, at first {first_loss:.3f}"
)

# %% tags=["check"]
assert 90_000 < count < 110_000 and abs(config.parameter_count()["embedding"] / count - 2 / 3) < 0.02
np.testing.assert_allclose(nothing_known, math.log(V))
np.testing.assert_allclose(first_loss, math.log(V) + 0.5, atol=0.05)

# %% [markdown]
# It is half a nat more than $\log V$, for a reason:

# %%
lines(initial_weights, "std = ", "standard_normal")

# %% [markdown]
# The weights of norms start at 0, so a norm multiplies by 1. Each matrix starts with variance 1 / (number of inputs),
# so its outputs are as large as its inputs. Hence the logits, sums of D products with the rows of the embedding, have
# variance 1, not 0: the model starts with random preferences. For normally distributed logits of variance $\sigma^2$
# the loss is about $\log V + \sigma^2 / 2$.

# %%
first_logits = Gemma(config, start, tokenizer).logits(read)  # [B, T, V]
variance = first_logits.var()
print(f"variance of the logits: {variance:.2f}")

# %% tags=["check"]
np.testing.assert_allclose(variance, 1, atol=0.1)

# %% [markdown]
# ## The direction: clipped gradients
#
# One forward and one backward pass give the gradient of each weight, by name. Their global norm is the second number to
# watch. Now and then an unusual batch has a gradient many times as long, and a single step along it could undo a
# hundred others; so all gradients $g$ are scaled down together when their norm exceeds a limit $c$:
#
# $$\lVert g \rVert = \sqrt{\sum_{\text{weights}} \sum_i g_i^2},
# \qquad g \leftarrow g \cdot \min(1, c / \lVert g \rVert)$$
#
# Scaling them together keeps the direction. Clipping each array or number separately would change it.

# %%
lines(clip_by_global_norm, "norm = ", "if max_norm", "for gradient", "gradient *=")

# %%
loss, gradients, _ = loss_and_gradients(start, config, first_batch, next_token)
before = clip_by_global_norm(gradients, max_norm=0.5)
after = clip_by_global_norm(gradients, max_norm=0.5)
print(f"loss {loss:.3f}; norm of all gradients {before:.3f}, clipped to {after:.3f}")

# %% tags=["check"]
assert before > 0.5
np.testing.assert_allclose(after, 0.5, rtol=1e-5)

# %% [markdown]
# ## The step: AdamW
#
# Plain gradient descent takes large steps where the gradient is large. But its size differs a lot between weights, and
# says little about how far a weight should move:

# %%
sizes = {name: float(np.sqrt(np.mean(gradient**2))) for name, gradient in gradients.items()}
largest, smallest = max(sizes, key=sizes.get), min(sizes, key=sizes.get)
print(f"root mean square of the gradient: {sizes[largest]:.1e} in {largest},\n{sizes[smallest]:.1e} in {smallest}")

# %% tags=["check"]
assert sizes[largest] > 10 * sizes[smallest]

# %% [markdown]
# One learning rate does not suit all weights. Adam divides each gradient by its typical size. It keeps two running
# means for each weight, $m$ of the gradient and $v$ of its square; because they start from zero, it divides each by the
# total weight of what was averaged so far ($t$ counts steps from 1):
#
# $$m \leftarrow m + (1 - \beta_1)(g - m), \qquad v \leftarrow v + (1 - \beta_2)(g^2 - v)$$
#
# $$w \leftarrow w \, (1 - \eta \lambda) - \eta \,
# \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \varepsilon}$$
#
# The W is for weight decay, $1 - \eta \lambda$. It is outside the fraction: added to the gradient, it would be divided
# by the gradient's size as well. It applies only to matrices, not to norms.

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
# So every weight moves by about $\eta$, whatever its gradient: in the first step the fraction is $g / |g|$, which is 1
# or -1.
#
# **Predict:** Two weights have gradients of which one is ten times as large. After the first step of AdamW, which of
# them has moved further?
#
# <details><summary>Reveal</summary>
#
# Neither: both have moved by $\eta$.
#
# </details>

# %% [markdown]
# By hand, the first step of two weights in a matrix, with $\eta = \lambda = 0.1$, $\beta_1 = 0.9$, $\beta_2 = 0.95$, and
# without $\varepsilon$, which is too small to matter here:

# %%
w, g = np.array([[1.0, 2.0]]), np.array([[0.3, -3.0]])
m, v = 0.1 * g, 0.05 * g**2  # both start at 0
print(f"gradient {g[0]}")
print(f"means: m = 0.1 g = {m[0]}, v = 0.05 g^2 = {v[0]}")
print(f"corrected: m / (1 - 0.9) = {m[0] / 0.1}, v / (1 - 0.95) = {v[0] / 0.05}")
fraction = (m / 0.1) / np.sqrt(v / 0.05)
print(f"m over the root of v: {fraction[0]}")
decayed = w * (1 - 0.1 * 0.1)
print(f"weights: {w[0]}, decayed {decayed[0]}, after the step {(decayed - 0.1 * fraction)[0]}")

# %% tags=["check"]
by_package = {"w": w.copy()}
AdamW(weight_decay=0.1).step(by_package, {"w": g}, learning_rate=0.1)
np.testing.assert_allclose(by_package["w"], decayed - 0.1 * fraction)

# %% [markdown]
# Apart from the decay, both move by 0.1, against the sign of their gradients. Here is the same step for one norm of our
# model, whose weights do not decay:

# %%
moved = {name: weight.copy() for name, weight in start.items()}
AdamW().step(moved, gradients, learning_rate=0.01)
name = "model.layers.0.input_layernorm.weight"
steps_taken = moved[name] - start[name]  # [D]
gradient_sizes = np.abs(gradients[name])
print(f"{name}: gradients of {gradient_sizes.min():.1e} to {gradient_sizes.max():.1e}, all moved by 0.01")

# %% tags=["check"]
assert gradient_sizes.max() > 10 * gradient_sizes.min()
np.testing.assert_allclose(steps_taken, -0.01 * np.sign(gradients[name]), rtol=1e-3)

# %% [markdown]
# The learning rate $\eta$ changes over time: it grows during warm-up, while the running means are still unreliable, and
# then decreases along a cosine to a tenth, so that the weights settle at the end. Its peak is the one number that has
# to be found by experiment.

# %%
lines(cosine_schedule, "if step", "return", "progress = ")

# %% [markdown]
# ## First, overfit one batch
#
# This test takes seconds and can save days: train on the same batch again and again. If everything is right, the loss
# goes to zero, because a hundred thousand parameters can memorize a few hundred tokens. If it does not, there is a
# mistake, and no amount of text will help. `train_step` is the package's training step: batch, gradients, clipping,
# AdamW.
#
# **Predict:** The model knows one batch by heart. What is its loss on other texts, compared with its loss before any
# training?
#
# <details><summary>Reveal</summary>
#
# Higher. It is sure of what it has memorized, and wrong.
#
# </details>

# %%
training_config = TrainingConfig(steps=100, batch_size=4, seq_len=LENGTH, learning_rate=1e-2, warmup_steps=20)
state = State({name: weight.copy() for name, weight in start.items()}, AdamW(), np.random.default_rng(0))
by_heart = Task(next_batch=lambda state: first_batch)
losses_by_heart = [
    train_step(state, config, by_heart, training_config, Ranks())["loss"] for _ in range(training_config.steps)
]
elsewhere = validation_loss(state.weights, config, held_out, Ranks())

tokens = first_batch.num_targets
print(f"the same {tokens} tokens: {losses_by_heart[0]:.2f} at first, {losses_by_heart[-1]:.3f} at last")
print(f"on other texts: {elsewhere:.2f}")

# %% tags=["check"]
assert losses_by_heart[-1] < 0.1
assert elsewhere > math.log(V)

# %% [markdown]
# On other texts it is worse than a model that knows nothing: it is confident and wrong. That is why we need held-out
# texts: their loss is the third number to watch.
#
# ## The loop
#
# Now the real training, with the loop written out. It is `train_step` without the parts for several processes; the
# check below shows for the first steps that both give the same result, bit by bit.

# %%
STEPS, PEAK, WARMUP_STEPS, MAX_NORM = 900, 1e-2, 50, 1.0

weights = {name: weight.copy() for name, weight in start.items()}
optimizer = AdamW(weight_decay=0.1)
state = State(weights, optimizer, np.random.default_rng(0))
next_batch = random_batches(train_ids, batch_size=4, seq_len=LENGTH)
log, validation = [], {0: validation_loss(weights, config, held_out, Ranks())}

# %%
for step in range(STEPS):
    batch = next_batch(state)
    loss, gradients, _ = loss_and_gradients(weights, config, batch, next_token)
    norm = clip_by_global_norm(gradients, MAX_NORM)
    learning_rate = cosine_schedule(step, STEPS, PEAK, WARMUP_STEPS)
    optimizer.step(weights, gradients, learning_rate)
    log.append((loss, norm, learning_rate))
    if (step + 1) % 100 == 0:
        validation[step + 1] = validation_loss(weights, config, held_out, Ranks())

# %% tags=["check"]
twin = State({name: weight.copy() for name, weight in start.items()}, AdamW(), np.random.default_rng(0))
twin_config = TrainingConfig(
    steps=STEPS, batch_size=4, seq_len=LENGTH, learning_rate=PEAK, warmup_steps=WARMUP_STEPS, max_grad_norm=MAX_NORM
)
for step in range(3):
    assert train_step(twin, config, Task(next_batch), twin_config, Ranks())["loss"] == log[step][0]

# %% [markdown]
# To judge the loss we need baselines: $\log V$, for knowing nothing; the loss of a model that knows only how often each
# token occurs; and the author's own loss, which is the lower bound.

# %%
targets = np.concatenate([batch.ids[:, 1:] for batch in held_out])  # [32, T]
occurs = np.bincount(train_ids, minlength=V) + 0.1  # [V]; 0.1 for tokens that never occur
frequencies = float(-np.log(occurs / occurs.sum())[targets].mean())
floor = validation_loss(author.weights, author.config, held_out, Ranks())

train_loss, norms, rates = (np.array(values) for values in zip(*log, strict=True))
baselines = {"knowing nothing: log V": math.log(V), "knowing how often each token occurs": frequencies}
figures.losses(train_loss, validation, baselines | {"the author's own loss": floor})

last, last_trained = validation[STEPS], train_loss[-25:].mean()
print(f"held out: {validation[0]:.2f} -> {last:.2f}; frequencies {frequencies:.2f}, the author {floor:.2f}")
print(f"the text was read {STEPS * 512 / train_ids.size:.1f} times; training loss at last {last_trained:.2f}")

# %% tags=["check"]
assert floor + 1 < last < frequencies - 1 and validation[100] < frequencies
assert last_trained < last - 0.3
assert list(validation)[np.argmin(list(validation.values()))] >= STEPS - 200

# %% [markdown]
# In the first hundred steps the model learns how often tokens occur, and then some of which tokens follow which. After
# that, progress slows down. Training and held-out loss separate as the text is read again: the model begins to memorize
# it, and the gap between the curves is progress that does not carry over to other texts. The author is still more than
# a nat better. Getting closer takes more text and more parameters; the next tutorial shows a third way.
#
# The norm of the gradient and the learning rate, step by step:

# %%
figures.norms_and_rates(norms, rates, MAX_NORM)
clipped = np.mean(norms > MAX_NORM)
print(f"{clipped:.0%} of the steps were clipped; the largest norm was {norms.max():.2f}")

# %% tags=["check"]
assert clipped < 0.05 and norms[-50:].mean() > 1.5 * norms[50:100].mean()
assert np.argmax(rates) in (WARMUP_STEPS - 1, WARMUP_STEPS)
np.testing.assert_allclose([rates[0], rates.max(), rates[-1]], [PEAK / WARMUP_STEPS, PEAK, PEAK / 10], rtol=1e-3)

# %% [markdown]
# Here clipping had little to do; it is insurance that costs nothing. It is more surprising that after the warm-up the
# gradient becomes *longer* while the loss falls. The gradient of a batch has two parts: one that all batches share, and
# one that is specific to the batch and random in direction. The mean over many batches keeps the first and cancels most
# of the second; without a shared part, the mean of 32 would be $1 / \sqrt{32}$ times as long, about 0.18.


# %%
def gradient_lengths(weights, batches=32):
    """The mean norm of the gradients of single batches, and the norm of their mean."""
    found = [loss_and_gradients(weights, config, next_batch(state), next_token)[1] for _ in range(batches)]
    common = {name: np.mean([gradients[name] for gradients in found], axis=0) for name in weights}
    single = np.mean([clip_by_global_norm(gradients, math.inf) for gradients in found])
    return single, clip_by_global_norm(common, math.inf)


shared = {}
for when, found in (("at first", start), ("at last", weights)):
    single, common = gradient_lengths(found)
    shared[when] = common / single
    print(f"{when}: one batch {single:.2f}, the mean of 32 batches {common:.2f}, {shared[when]:.2f} times as long")

# %% tags=["check"]
assert shared["at last"] < 0.3 and shared["at first"] > 0.4

# %% [markdown]
# At first a large part is shared: the probabilities of nearly all tokens are wrong, whatever the batch. At the end
# there is hardly more than the noise of which tokens the batch contains. That is why the learning rate should fall:
# many small steps average over many batches. It is also why a target with less noise helps, which is the subject of the
# next tutorial.
#
# ## Before and after

# %%
for when, found in (("before", start), ("after", weights)):
    text = Gemma(config, found, tokenizer).generate("KING RICHARD", max_new_tokens=60, temperature=0.7, seed=2)
    print(f"--- {when}\nKING RICHARD{text}\n")

# %% [markdown]
# Before training, any piece of the vocabulary follows any other. After, the text looks like a play: names in capitals,
# lines, commas and full stops in plausible places. It makes no sense, which is no surprise with a hundred thousand
# parameters.
#
# ## Where the time and the memory go
#
# A rule of thumb is 6 operations per parameter and token: 2 in the forward pass, a product and a sum, and 4 in the
# backward pass, because each matrix product has two gradients. Here we measure the parts of one step; they depend on
# the machine:


# %%
def update():
    clip_by_global_norm(gradients, MAX_NORM)
    AdamW().step({name: weight.copy() for name, weight in weights.items()}, gradients, learning_rate)


forward, both, updated = fastest(
    [
        lambda: Gemma(config, weights, tokenizer).logits(batch.ids[:, :-1]),
        lambda: loss_and_gradients(weights, config, batch, next_token),
        update,
    ]
)
speed = 512 / (both + updated)
print(f"forward {1e3 * forward:.1f} ms, with loss and backward {1e3 * both:.1f} ms, update {1e3 * updated:.1f} ms")
print(f"{speed:,.0f} tokens per second, {6 * count * speed / 1e9:.1f} billion operations per second")

# %% [markdown]
# The memory can be computed in advance; `gemma-np info --training` estimates it for any model.

# %%
for name, shape, B, T in (("this one", config, 4, LENGTH), ("gemma-2-2b", RELEASED["gemma-2-2b"], 1, 1024)):
    print(f"{name}, {B} x {T} tokens")
    for kind, size in training_bytes(shape, batch_size=B, seq_len=T).items():
        print(f"  {kind:<45}{size / 1e6:>12,.1f} MB")

# %% tags=["check"]
small, large = training_bytes(config, 4, LENGTH), training_bytes(RELEASED["gemma-2-2b"], 1, 1024)
assert small["records of the forward pass"] > 10 * small["weights"]
assert large["moments of AdamW"] == 2 * large["weights"]

# %% [markdown]
# The weights and AdamW's two running means, which take twice as much, do not depend on the batch. The records of the
# forward pass, which the backward pass needs, grow with the tokens in a batch. In a tiny model they take more than ten
# times the memory of the weights: there are few weights, but each token still has its logits [V] and its scores.
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
# which also saves checkpoints; to continue an interrupted run, use the same command with `--resume`. In Python,
# `gemma_np.training.train` does the same in one call.
#
# So these are the four numbers: the initial loss, near $\log V$; the norm of the gradient, which should neither vanish
# nor jump; the held-out loss compared with the training loss; and the loss on one memorized batch, which should reach
# zero.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The loss of a batch in which only the positions in a mask count.
#
# <details><summary>Hint 1</summary>
#
# Three steps: the loss of every position, those that count, their mean.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Subtract each position's largest logit before `np.exp`: the logarithm of the sum stays small. `np.take_along_axis`
# picks the target of each position.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The loss is the logarithm of the sum of exponentials minus the target's logit. `losses[loss_mask]` is a vector of
# those that count.
#
# </details>


# %%
def masked_loss(logits, targets, loss_mask):
    """logits [B, T, V], targets int [B, T], loss_mask bool [B, T] -> number: the mean loss of the positions in the mask"""
    ...


check(masked_loss, exercises.MASKED_LOSS)

# %% [markdown]
# **2.** Clip two gradients by their global norm.
#
# <details><summary>Hint 1</summary>
#
# One number scales both gradients; it is never more than 1.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The global norm is the root of the sum of all squares, of both gradients together.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `scale = min(1, max_norm / norm)`.
#
# </details>


# %%
def clip(first, second, max_norm):
    """first [D, F], second [D], max_norm number -> (first, second), scaled together, as new arrays"""
    ...


check(clip, exercises.CLIP)

# %% [markdown]
# **3.** One step of AdamW, with $\beta_1 = 0.9$, $\beta_2 = 0.95$, $\varepsilon = 10^{-8}$, $\lambda = 0.1$. `step` is
# 1 for the first.
#
# <details><summary>Hint 1</summary>
#
# In this order: the two means, the decay of the weight, the step.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The step uses `m / (1 - beta1 ** step)` and the root of `v / (1 - beta2 ** step)`, with epsilon added to the root.
# Return m and v undivided.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Only weights with two axes decay: multiply these by `1 - learning_rate * 0.1`.
#
# </details>


# %%
def adamw(weight, gradient, m, v, step, learning_rate):
    """weight, gradient, m and v [D, F] or [D], step int, learning_rate number -> (weight, m, v)"""
    ...


check(adamw, exercises.ADAMW)

# %% [markdown]
# ## Now in your file
#
# Write `clip`, `adamw` and `train_step`. The check takes three steps, each judged by your own gradients, so that only
# what is new here counts.

# %%
check_file("my_gemma.py", upto="step")

# %% [markdown]
# The solutions are in [solutions/14_training_a_tiny_gemma.py](solutions/14_training_a_tiny_gemma.py), those of your
# file in [solutions/my_gemma](solutions/my_gemma/14_training_a_tiny_gemma.py).
#
# ## Further reading
#
# - [gemma_np/training/trainer.py](../gemma_np/training/trainer.py): the step and the run;
#   [optimizer.py](../gemma_np/training/optimizer.py): clipping, AdamW and the learning-rate schedule in 70 lines.
# - [gemma_np/training/data.py](../gemma_np/training/data.py),
#   [tokenizer_training.py](../gemma_np/training/tokenizer_training.py): texts as files of ids, and the training of a
#   tokenizer.
# - Loshchilov and Hutter, [Decoupled Weight Decay Regularization](https://arxiv.org/abs/1711.05101) (AdamW); Pascanu et
#   al., [On the difficulty of training recurrent neural networks](https://arxiv.org/abs/1211.5063) (clipping).
#
# Next: [15. Distillation](15_distillation.ipynb).
