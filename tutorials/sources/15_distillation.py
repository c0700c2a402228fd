# %% [markdown]
# # 15. Distillation
#
# After this you can train a student to match a teacher's distribution instead of the one token that came next, and say
# why this teaches more, and when it does not. About 25 minutes; the notebook itself takes up to a minute to run. In the
# [Gemma 2 report](https://arxiv.org/abs/2408.00118): section 3, "Knowledge Distillation", and tables 6 and 7. The 2B
# and the 9B were trained this way.
#
# Before this: [14. Training a tiny Gemma](14_training_a_tiny_gemma.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # for matrices as small as these, one thread is as fast as several

# %%
import json
import math
from pathlib import Path

import numpy as np
from support import check, check_file, diagrams, lines
from support.exercises import distillation as exercises
from support.figures import distillation as figures
from support.plots import pieces, use_style

import gemma_np
from gemma_np.config import gemma2_config
from gemma_np.gemma import Gemma
from gemma_np.model.log_probs import log_softmax
from gemma_np.mpi import Ranks
from gemma_np.training.conversations import conversation_ids
from gemma_np.training.distillation import from_teacher, on_policy, sample_continuations
from gemma_np.training.losses import TopK, forward_kl, soft_cross_entropy, soft_cross_entropy_top_k
from gemma_np.training.optimizer import AdamW
from gemma_np.training.task import Batch, Task, next_token
from gemma_np.training.teacher_targets import from_targets, mean_probs, top_k
from gemma_np.training.trainer import initial_weights, loss_and_gradients, train_step, validation_loss
from gemma_np.training.training_state import State, TrainingConfig

# %%
use_style()
teacher = gemma_np.load("shakespeare-4m")
tokenizer, V = teacher.tokenizer, teacher.config.vocab_size
print(f"the teacher: {sum(teacher.config.parameter_count().values())} parameters, V = {V}")

# %% [markdown]
# ## What one token does not tell
#
# Here are lines of a play that the teacher was not trained on. It reads them, and predicts a distribution $P_T$ over
# all V tokens at each position. The text has one token there: a "one-hot" distribution with 1 in one place and 0
# elsewhere.

# %%
text = """But, soft! what light through yonder window breaks?
It is the east, and Juliet is the sun.
Arise, fair sun, and kill the envious moon,
"""
ids = np.array(tokenizer.encode(text))  # [T + 1]
teacher_logits = teacher.logits(ids[:-1])  # [T, V]
P = np.exp(log_softmax(teacher_logits))  # [T, V]
tokens = pieces(ids, tokenizer)
figures.targets(P, ids, (25, 45, 15, 44), tokenizer)

# %% tags=["check"]
assert [tokenizer.piece(int(id)) for id in np.argsort(-P[25])[:3]] == ["ius", "ia", "i"]
assert {"▁sun", "▁sea", "▁night", "▁earth", "▁w", "▁b"} == set(pieces(np.argsort(-P[45])[:6], tokenizer))
assert set(pieces(np.argsort(-P[15])[:2], tokenizer)) == {"⏎", "⏎⏎"}
assert P[25, ids[26]] < 0.2 and P[45, ids[46]] < 0.01 and P[44, ids[45]] > 0.9

# %% [markdown]
# After "Jul" the text says "iet", in two pieces. The teacher predicts a name, more likely Julius or Julia. After "the
# envious" the text says "moon". The teacher's four most likely words are sun, sea, night and earth, which are related;
# the other two pieces are the beginnings ▁w and ▁b of many words. After a question mark the teacher expects the end of
# the line, with or without an empty line after it. After "env" it says little more than the text. What it knows
# beyond the text is often called *dark knowledge*, a phrase of Hinton's.
#
# The entropy measures how much there is: $H(P) = -\sum_x P(x) \log_2 P(x)$, the uncertainty in bits. The entropy of a
# one-hot target is 0.

# %%
entropy = -np.vecdot(P, log_softmax(teacher_logits)) / math.log(2)  # [T], in bits
figures.uncertainty(entropy[24:44], tokens[24:44])

possible = np.sum(P > 0.01, axis=-1)  # [T]
print(f"entropy {entropy.min():.1f} to {entropy.max():.1f} bits, {entropy.mean():.1f} on average;")
print(f"tokens with more than 1 %: {possible.min()} to {possible.max()}, {possible.mean():.0f} on average")

# %% tags=["check"]
assert 4 < entropy.mean() < 6 and possible.mean() > 10

# %% [markdown]
# To learn from text alone that all these tokens may follow, a student must see the same context many times, with each
# of them in turn. The teacher's distribution shows all of them at once.
#
# ## The loss
#
# The student's distribution $P_S$ is trained to match all of $P_T$. For logits $z$ of the student, the losses are [B,
# T] and the gradient is [B, T, V]:
#
# $$L = -\sum_x P_T(x) \log P_S(x), \qquad \frac{\partial L}{\partial z} = P_S - P_T$$
#
# Two arrows lead to the loss, and only one leads back:

# %%
diagrams.distillation()

# %% [markdown]
# By hand, for a vocabulary of three tokens. The student knows nothing yet, so its logits are equal. It takes one step
# of plain gradient descent, with a learning rate of 1:

# %%
P_T, z = np.array([0.7, 0.2, 0.1]), np.zeros(3)  # [V] each
for when in ("before", "after"):
    P_S = np.exp(z) / np.exp(z).sum()
    loss = -(P_T @ np.log(P_S))
    print(f"{when} the step: z {z.round(2)}, P_S {P_S.round(2)}, loss {loss:.2f}, P_S - P_T {(P_S - P_T).round(2)}")
    z = z - (P_S - P_T)

# %% tags=["check"]
for student_logits, expected in ((np.zeros(3), np.log(3)), (P_T - 1 / 3, loss)):
    np.testing.assert_allclose(soft_cross_entropy(student_logits, np.log(P_T))[0], expected)
np.testing.assert_allclose(soft_cross_entropy(P_T - 1 / 3, np.log(P_T))[1], P_S - P_T)
assert loss < np.log(3)

# %% [markdown]
# All three logits move at once: up where the teacher gives more than the student, down where it gives less. In the
# package:

# %%
lines(soft_cross_entropy, "log_student =", "teacher =", "losses =", "dlogits =")

# %% [markdown]
# **Predict:** A student has become exactly its teacher. What is its loss?
#
# <details><summary>Reveal</summary>
#
# The teacher's entropy, not 0: the teacher itself is not certain of the next token. The gradient is 0.
#
# </details>
#
# With one-hot for $P_T$, this is the loss of tutorial 14, with gradient $P_S - \mathrm{onehot}$. So only the target
# differs. A student that matches its teacher exactly has no gradient. Its loss is not 0, however, but the teacher's
# entropy. Without that constant it is the Kullback-Leibler divergence, $\mathrm{KL}(P_T \Vert P_S) = L - H(P_T)$, which
# is 0 there. Both have the same gradient.

# %%
to_itself, no_gradient = soft_cross_entropy(teacher_logits, teacher_logits)
print(f"the teacher as its own student: loss {to_itself.mean():.3f}, gradient up to {np.abs(no_gradient).max():.1g}")

bundled = gemma_np.load()  # shakespeare-1m, which learned from this teacher and from another
losses, gradient = soft_cross_entropy(bundled.logits(ids[:-1]), teacher_logits)  # [T], [T, V]
divergence, same_gradient = forward_kl(bundled.logits(ids[:-1]), teacher_logits)
parts = losses.mean(), to_itself.mean(), divergence.mean()
print("the bundled student: loss {:.3f} = the teacher's entropy {:.3f} + KL {:.3f}".format(*parts))

# %% tags=["check"]
np.testing.assert_allclose(no_gradient, 0, atol=1e-6)
np.testing.assert_allclose(to_itself, entropy * math.log(2), rtol=1e-4)
np.testing.assert_allclose(losses - to_itself, divergence, atol=1e-4)
np.testing.assert_allclose(gradient, same_gradient, atol=1e-6)
assert (divergence > 0).all()

# %% [markdown]
# ## Why it is faster: the same direction with less noise
#
# **Predict:** A student is already close to its teacher, and reads one token more. In the gradient from that one
# token, what is longer: what is left to learn, or the noise of the sample?
#
# <details><summary>Reveal</summary>
#
# The noise, more than four times as long.
#
# </details>
#
# Suppose the teacher really had written the text, each token sampled from $P_T$. Then $\mathrm{onehot}$ is $P_T$ on
# average, and the gradient from the text is on average the gradient of distillation: text teaches the same, plus the
# noise of one sample. How large is this noise? The expected square of $\mathrm{onehot} - P_T$ is $1 - \sum_x P_T(x)^2$.
# We try it at one position, with more and more samples:

# %%
t = 25
student_P = np.exp(log_softmax(bundled.logits(ids[:-1])))[t].astype(float)  # [V]
teacher_P = P[t] / P[t].sum(dtype=float)
drawn = np.random.default_rng(0).choice(V, size=10_000, p=teacher_P)
goal = student_P - teacher_P
for draws in (1, 10, 100, 1000, 10_000):
    from_text = student_P - np.bincount(drawn[:draws], minlength=V) / draws
    error = np.linalg.norm(from_text - goal)
    print(f"{draws:>6} samples: the error of the gradient is {error:.3f}, its length {np.linalg.norm(goal):.3f}")

noise = np.sqrt(1 - np.sum(P.astype(float) ** 2, axis=-1).mean())
signal = np.sqrt(np.sum((gradient.astype(float)) ** 2, axis=-1).mean())
print(f"over all positions: noise {noise:.2f}, what there is to learn from the teacher {signal:.2f}")

# %% tags=["check"]
np.testing.assert_allclose(error, math.sqrt((1 - np.sum(teacher_P**2)) / 10_000), rtol=0.5)
assert noise > 4 * signal

# %% [markdown]
# For a student that is already close to its teacher, the noise of one sample is more than four times as large as what
# is left to learn. It takes many samples to average it out; the soft target has no such noise.
#
# ## The experiment: two students
#
# No text comes with the package, so the teacher writes 256 short texts, sampled from its
# distribution. (This is the best case for distillation: the teacher *is* the truth. On real text, it is wrong in
# places; more on this below.) Two students of about a hundred thousand parameters start from the same weights and read
# the same batches in the same order. One is trained on the tokens, the other on the teacher's distributions.

# %%
LENGTH, TEXTS, K = 128, 256, 32
begin = np.full((TEXTS + 32, 1), tokenizer.bos)
generator = np.random.default_rng(0)
texts = sample_continuations(begin, LENGTH + 1, teacher.weights, teacher.config, generator)  # [288, T + 1]
held_out = [Batch(texts[first : first + 16]) for first in (TEXTS, TEXTS + 16)]

# %%
parts = [top_k(mean_probs([teacher], texts[first : first + 8, :-1]), K) for first in range(0, TEXTS, 8)]
stored = TopK(
    np.concatenate([part.ids for part in parts]), np.concatenate([part.probs for part in parts])
)  # [256, T, K]


def next_batch(state):
    """A batch of 4 texts, with the teacher's distributions."""
    chosen = state.generator.integers(0, TEXTS, 4)
    return Batch(texts[chosen], teacher=TopK(stored.ids[chosen], stored.probs[chosen]))


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
training_config = TrainingConfig(steps=700, batch_size=4, seq_len=LENGTH, learning_rate=1e-2, warmup_steps=50)

# %% [markdown]
# Only the K = 32 most likely tokens of each distribution are stored; a section below compares their effect with that of
# all tokens. Here are the two runs:
#
# **Predict:** Both are judged by the tokens of held-out texts. Only one of them is trained on tokens. Which is ahead?
#
# <details><summary>Reveal</summary>
#
# The one that is trained on the teacher's distributions, at every point of the curve.
#
# </details>

# %%
curves, students = {}, {}
for name, loss in (("from the text", next_token), ("from the teacher", from_targets)):
    state = State(initial_weights(config, np.random.default_rng(0)), AdamW(), np.random.default_rng(0))
    curves[name] = []
    for step in range(training_config.steps):
        train_step(state, config, Task(next_batch, loss), training_config, Ranks())
        if (step + 1) % 50 == 0:
            curves[name].append(validation_loss(state.weights, config, held_out, Ranks()))
    students[name] = Gemma(config, state.weights, tokenizer)

# %%
floor = validation_loss(teacher.weights, teacher.config, held_out, Ranks())
figures.twins(range(50, 701, 50), curves, floor, one_pass=TEXTS // training_config.batch_size)

text_curve, teacher_curve = (np.array(curve) for curve in curves.values())
print(
    f"best: {text_curve.min():.2f} from the text, {teacher_curve.min():.2f} from the teacher; the teacher {floor:.2f}"
)
print(f"last: {text_curve[-1]:.2f} from the text, {teacher_curve[-1]:.2f} from the teacher")

# %% tags=["check"]
assert (teacher_curve < text_curve).all() and teacher_curve.min() < text_curve.min() - 0.4
gap = text_curve - teacher_curve
assert gap[0] < gap[6] < gap[-1] and 50 * training_config.batch_size < TEXTS
assert text_curve[-1] > text_curve.min() + 0.1 and teacher_curve[-1] < teacher_curve.min() + 0.05

# %% [markdown]
# The plotted loss is the same for both: $-\log P$ of the token that really came next, in held-out texts. The second
# student was not even trained on this loss, and yet it is ahead at every point. At the first point less than one pass
# has been read, so most texts were new. Later the two separate: one memorizes the noise and becomes worse; the other
# has no noise to memorize, and stays where it is. This is one run of each; the experiments below have three.
#
# On real text, the lines from above, the order is the same, and both students do worse: they have only read what a
# small model wrote, mostly beginnings of plays.

# %%
real = {name: student.text_loss(text) for name, student in students.items()} | {"the teacher": teacher.text_loss(text)}
for name, loss in real.items():
    print(f"{name:<18}{loss.nats / loss.tokens:.2f} nats per token")

# %% tags=["check"]
assert real["from the teacher"].nats / real["from the teacher"].tokens > teacher_curve[-1]
assert real["the teacher"].nats < real["from the teacher"].nats < real["from the text"].nats

# %% [markdown]
# ## What to store of a teacher
#
# A teacher can run live, as in `from_teacher`: one more forward pass at each step, by a model larger than the student.
# Or it reads the texts once, and its distributions are stored for any number of students. But V numbers per token are a
# lot: for Gemma's vocabulary of 256,000 tokens, half a megabyte in 16 bits. So only the k most likely tokens are
# stored, and all others are combined into one more outcome. How much of the probability do the k tokens have?

# %%
mass = {}
for k in (1, 8, 32, 128):
    mass[k] = top_k(mean_probs([teacher], texts[:8, :-1]), k).probs.sum(axis=-1).mean()
    print(
        f"k = {k:>3}: {4 * k:>4} bytes per token (16 bits each for id and probability), {mass[k]:.0%} of the probability"
    )

# %% tags=["check"]
assert 0.75 < mass[K] < 0.9

# %%
lines(soft_cross_entropy_top_k, "rest =", "others =", "axis(others", "on_top =", "losses =")

# %% [markdown]
# The rest must not be dropped. Without it the loss would be smallest for a student that gives all its probability to
# the k tokens and none to any other; scaling the k probabilities up to 1 has the same effect. As one outcome the rest
# keeps its probability, and the student may distribute it freely. A student that matches its teacher still has no
# gradient:

# %%
_, no_gradient = soft_cross_entropy_top_k(teacher_logits, top_k(P, K))
print(f"the teacher as its own student: gradient up to {np.abs(no_gradient).max():.1g}")

logits, targets = students["from the teacher"].logits(texts[:4, :-1]), TopK(stored.ids[:4], stored.probs[:4])
live, _ = from_teacher(teacher)(logits, Batch(texts[:4]))
sparse, _ = from_targets(logits, Batch(texts[:4], teacher=targets))
print(f"the loss live {live.mean():.3f}, from {K} stored tokens {sparse.mean():.3f}")

# %% tags=["check"]
np.testing.assert_allclose(no_gradient, 0, atol=1e-6)
assert sparse.mean() < live.mean()

# %% [markdown]
# The two losses are not comparable: combining the rest removes the uncertainty within it. The gradients are. Here is
# the cosine (1: the same direction) between the gradient of all weights from k stored tokens and that from all V, on
# held-out texts, for an untrained student and for the one trained on 32 tokens:


# %%
def direction(weights, loss, batch):
    """The gradient of all weights as one vector of length 1."""
    _, gradients, _ = loss_and_gradients(weights, config, batch, loss)
    together = np.concatenate([gradients[name].ravel() for name in weights])
    return together / np.linalg.norm(together)


# %%
ids_16 = held_out[0].ids  # 16 texts
start = initial_weights(config, np.random.default_rng(0))
cosines = {}
for name, of in (("at the start", start), ("at the end", students["from the teacher"].weights)):
    full = direction(of, from_teacher(teacher), Batch(ids_16))
    for k in (1, 8, 32, 128):
        targets = top_k(mean_probs([teacher], ids_16[:, :-1]), k)
        cosines[name, k] = full @ direction(of, from_targets, Batch(ids_16, teacher=targets))
    print(f"{name:<12}", ", ".join(f"k = {k}: {cosines[name, k]:.2f}" for k in (1, 8, 32, 128)))

# %% tags=["check"]
assert cosines["at the start", 8] > 0.98
assert cosines["at the end", 32] < 0.95 < cosines["at the end", 128]

# %% [markdown]
# At the start, a few tokens give nearly the same direction as all of them. At the end, the student has learned what 32
# tokens can teach, and more of what is left to learn is in the others. We do not measure the effect on the loss: that
# would take a student trained with the live teacher for as many steps.
#
# ## Temperature
#
# Logits divided by a temperature $\tau$ above 1 give a softer distribution, in which small probabilities, and so the
# teacher's view of unlikely tokens, have more weight. Both distributions are softened. For large $\tau$ the gradient
# shrinks as $1 / \tau^2$: one $\tau$ from the division, and one because softer distributions differ less. The factor
# $\tau^2$ compensates for that. The report's formula has no temperature; 1 is the default.

# %%
lengths = {}
for temperature in (1.0, 2.0, 4.0):
    soft = np.exp(log_softmax(teacher_logits[25] / temperature))  # [V]
    top = ", ".join(f"{tokenizer.piece(int(id))} {soft[id]:.2f}" for id in np.argsort(-soft)[:3])
    _, gradient = soft_cross_entropy(bundled.logits(ids[:-1]), teacher_logits, temperature)
    lengths[temperature] = np.linalg.norm(gradient, axis=-1).mean()
    plain = lengths[temperature] / temperature**2
    print(f"temperature {temperature:.0f}: {top}; gradient {lengths[temperature]:.3f}, without factor {plain:.3f}")

# %% tags=["check"]
assert lengths[1.0] / 6 < lengths[4.0] < lengths[1.0] / 2

# %% [markdown]
# From 1 to 4 the factor compensates for most of the shrinking, but not all, because the probability also spreads over
# many more tokens.
#
# ## The student's own texts
#
# A student that generates text sees contexts that it wrote itself, with mistakes that occur neither in the texts nor in
# the teacher's output. On-policy distillation, which the report uses after pre-training (section 4), trains the student
# on its own continuations, with the teacher's distributions as targets. The loss counts on what the student wrote:

# %%
lines(on_policy, "prompts =", "ids =", "is_sampled =", "return Batch")

# %%
student = students["from the teacher"]
state = State(dict(student.weights), AdamW(), np.random.default_rng(1))
own_config = TrainingConfig(batch_size=16, seq_len=LENGTH)
own = on_policy(texts[TEXTS:].ravel(), config, own_config, prompt_tokens=16)(state)  # 16 texts
divergences = []
for name, batch in (("the teacher's texts", held_out[0]), ("the student's own", own)):
    read = batch.ids[:, :-1]
    losses, _ = forward_kl(student.logits(read), teacher.logits(read))  # [B, T]
    divergences.append(losses[:, 15:].mean())
    print(f"on {name:<20} KL from the teacher {divergences[-1]:.2f} nats per token")

# %% tags=["check"]
assert own.num_targets == 16 * (LENGTH - 15) and divergences[1] < 1.1 * divergences[0]

# %% [markdown]
# On-policy distillation is meant to reduce a larger divergence on the student's own texts. Ours does not show a larger
# one: a student this small is far from its teacher on any text. We only see that there is also a lot to learn on the
# student's own texts.

# %% [markdown]
# A real example is `shakespeare-chat`. It began as `shakespeare-1m`, and was fine-tuned on conversations made from the
# plays: a speech and the reply of the next speaker, in Gemma's turn format. The loss counts on the reply only, with the
# `<end_of_turn>` that ends it, so that the model learns to reply and to stop:

# %%
speech_and_reply = [
    {"role": "user", "content": "Who is there?"},
    {"role": "model", "content": "A friend."},
]
turn_ids, counts = (np.array(part) for part in conversation_ids(speech_and_reply, tokenizer))  # [T + 1] each
print("read only:   ", *pieces(turn_ids[~counts], tokenizer))
print("learned from:", *pieces(turn_ids[counts], tokenizer))

# %% tags=["check"]
assert tokenizer.decode(turn_ids[counts].tolist()).startswith("A friend.") and counts.sum() < len(counts) / 2

# %%
chat, replies = gemma_np.load("shakespeare-chat"), []
for seed, line in enumerate(("Who is there?", "Where is the king?", "Thou art a villain!"), start=1):
    replies.append(chat.chat([{"role": "user", "content": line}], temperature=0.7, seed=seed))
    print(f"> {line}\n{replies[-1]}\n")

# %% tags=["check"]
assert all(len(tokenizer.encode(reply)) < 60 for reply in replies)  # it has ended its turn

# %% [markdown]
# Then it was distilled on-policy: it replied to speeches of the plays, and learned what its teacher, fine-tuned in the
# same way, would say at each token of these replies. On 200 new speeches this brought it closer to its teacher, from a
# reverse KL of 0.40 to 0.32 nats per token. On the replies of unread plays its loss stayed where it was, at 3.64
# ([its card](../gemma_np/assets/shakespeare-chat/README.md)).
#
# ## The bundled pair
#
# Our two students had a teacher that is the truth, and few texts. Real text is harder: there the teacher is wrong in
# places. `shakespeare-1m` and its twin `shakespeare-1m-scratch` are such a pair, trained on ten million tokens of
# Shakespeare. The target of the student is the mean of two teachers, `shakespeare-4m` and the twin. The 4 M model began
# with Bibles, about twenty megabytes of them; the share of the plays then rose from none to all. These are the losses of
# three such pairs, which differ in their seeds, on plays that no model has read:

# %%
curves = json.loads(Path("experiments/curves.json").read_text())  # kind: runs: (tokens, loss)
figures.bundled_pairs(curves)

by_kind = {kind: np.array(runs)[:, :, 1] for kind, runs in curves.items()}  # [runs, checkpoints]
gain = by_kind["from scratch"] - by_kind["distilled"]
print(f"the student is ahead by {gain.min():.2f} to {gain.max():.2f} nats, at every checkpoint of every pair")
print(f"at the end {by_kind['distilled'][:, -1].round(2)}, the 4 M teacher {by_kind['teacher (4 M)'][0, -1]:.2f}")

# %% tags=["check"]
assert gain.shape == (3, 10) and gain.min() > 0.05
assert by_kind["distilled"][:, -1].mean() < by_kind["teacher (4 M)"][0, -1] + 0.03

# %% [markdown]
# At the last checkpoint the plays have been read more than five times, and the student is still ahead. It has less than a
# third of the larger teacher's parameters, and is about as good on these texts. It can be, because its target is better
# than either teacher. They are wrong in different places: on both unread plays their losses are 3.61 and 3.72, and that
# of their mean is 3.51 ([the student's card](../gemma_np/assets/shakespeare-1m/README.md)).
#
# **A teacher that memorized has nothing to add.** An earlier student of this project lost to its twin: 3.83 nats against
# 3.80. Its teacher had read the plays nearly six times, and nothing else. On its own texts its loss was 2.72: it knew
# them by heart, so that its distributions contained little more than the texts themselves. On other texts (3.79) it was
# no better than the twin. A student can become as good as its targets, and these are as good as the teacher's knowledge
# beyond the texts. What the teacher needs is to know something that the student's texts do not say.

# %% [markdown]
# ## The report's tables, in miniature
#
# [The experiments](experiments/README.md) repeat tables 6 and 7 of the report on the same texts, with three seeds of
# weights and batches each. These are their stored results:

# %%
table6 = json.loads(Path("experiments/distilled_against_scratch.json").read_text())["rows"]
table7 = json.loads(Path("experiments/student_sizes.json").read_text())["rows"]
figures.tables(table6, table7)

pairs = {}  # label: kind: row
for row in table6 + table7:
    pairs.setdefault(row["label"].removesuffix(f", {row['kind']}"), {})[row["kind"]] = row
gains = {label: pair["from scratch"]["mean"] - pair["distilled"]["mean"] for label, pair in pairs.items()}
for label, pair in pairs.items():
    std = max(row["std"] for row in pair.values())
    print(f"{label:<12} distillation gains {gains[label]:.3f} nats; standard deviation over the seeds {std:.3f}")
reported = {"200M": math.log(23 / 21), "400M": math.log(19 / 17), "1B": math.log(17 / 15)}
print("the report, from its perplexities:", ", ".join(f"{size} {gain:.3f}" for size, gain in reported.items()))

# %% tags=["check"]
for label, pair in pairs.items():
    assert gains[label] > 2 * max(row["std"] for row in pair.values())
    assert max(pair["distilled"]["losses"]) < min(pair["from scratch"]["losses"])
of_budgets, of_sizes = list(gains.values())[:3], list(gains.values())[3:]
assert of_budgets == sorted(of_budgets, reverse=True)
assert of_sizes == sorted(of_sizes) and list(reported.values()) == sorted(reported.values())

# %% [markdown]
# **What agrees with the report.** Table 6: with the same number of tokens the distilled student is better, and its worst
# seed is better than the best seed from scratch. (The report: 67.7 and 60.3, on average over three benchmarks.) With
# three million tokens it is nearly as good as its twin with ten. Table 7: this holds for all three sizes, and the gain
# grows with the size, as in the report.
#
# **What the report does not show** is how the gain depends on the budget. Here it shrinks as the twin catches up: from
# 0.15 nats after one million tokens to 0.09 after ten.
#
# From the command line:
#
# ```sh
# gemma-np cache-teacher texts/ --teacher shakespeare-4m --teacher shakespeare-1m-scratch -o targets --top-k 64 --seq-len 256
# gemma-np distill --targets targets -o student --steps 5000 --learning-rate 2e-3 --warmup-steps 200
# gemma-np distill texts/ --teacher shakespeare-4m --model student --on-policy --divergence jensen-shannon -o better
# ```
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The loss and its gradient.
#
# <details><summary>Hint 1</summary>
#
# Write a stable log-softmax first, and use it for both: subtract the largest logit, then the logarithm of the sum of
# exponentials.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The teacher's probabilities weight the student's logarithms; sum over the vocabulary, with a minus.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The gradient needs no derivation: it is the student's probabilities minus the teacher's.
#
# </details>


# %%
def distill(logits, teacher_logits):
    """logits and teacher_logits [..., T, V] -> (losses [..., T], dlogits [..., T, V])"""
    ...


check(distill, exercises.DISTILL)

# %% [markdown]
# **2.** The Kullback-Leibler divergence from the teacher, both softened, with the factor that keeps the size of the
# gradient.
#
# <details><summary>Hint 1</summary>
#
# Divide logits, not probabilities; with temperature 1 it is the plain divergence.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The divergence is $\sum P_T (\log P_T - \log P_S)$, both softened.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The factor is the square of the temperature.
#
# </details>


# %%
def softened_kl(logits, teacher_logits, temperature):
    """logits and teacher_logits [..., T, V], temperature number -> losses [..., T]"""
    ...


check(softened_kl, exercises.SOFTENED_KL)

# %% [markdown]
# **3.** The loss against a teacher of which only k tokens are stored.
#
# <details><summary>Hint 1</summary>
#
# There are k + 1 outcomes: each of the k tokens, and "any other token".
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The student's softmax runs over the whole vocabulary; `np.take_along_axis` picks its k logarithms.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The student's probability of "any other token" is 1 minus the sum of its k probabilities; the teacher's is found in
# the same way.
#
# </details>


# %%
def sparse_loss(logits, top_ids, top_probs):
    """logits [T, V], top_ids int [T, k], top_probs [T, k] -> losses [T]"""
    ...


check(sparse_loss, exercises.SPARSE_LOSS)

# %% [markdown]
# ## Now in your file
#
# Write `distillation_loss`. It returns the loss and its gradient, so `train_step` takes it in place of the cross-
# entropy: `lambda logits: distillation_loss(logits, teacher_logits)`.

# %%
check_file("my_gemma.py", upto="distillation")

# %% [markdown]
# The solutions are in [solutions/15_distillation.py](solutions/15_distillation.py), those of your file in
# [solutions/my_gemma](solutions/my_gemma/15_distillation.py).
#
# ## Further reading
#
# - [gemma_np/training/losses.py](../gemma_np/training/losses.py): these losses, the reverse KL and the Jensen-Shannon
#   divergence; [distillation.py](../gemma_np/training/distillation.py) and
#   [teacher_targets.py](../gemma_np/training/teacher_targets.py): live and cached teachers.
# - [experiments/README.md](experiments/README.md): these tables and three more.
# - Hinton, Vinyals and Dean, [Distilling the Knowledge in a Neural Network](https://arxiv.org/abs/1503.02531); Agarwal
#   et al., [On-Policy Distillation of Language Models](https://arxiv.org/abs/2306.13649).
#
# Next: [16. Quantization](16_quantization.ipynb).
