# %% [markdown]
# # 10. The whole model
#
# After this you can write the whole forward pass of Gemma 2 from its parts, follow one token through it, and read or
# change any intermediate. About 20 minutes. In the [Gemma 2 report](https://arxiv.org/abs/2408.00118): section 2, the
# whole of table 1, and the parameter counts of table 2.
#
# Before this: [9. GeGLU, and the block](09_geglu_and_the_block.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import numpy as np
from support import check, check_file, diagrams, lines
from support.exercises import the_whole_model as exercises
from support.figures import the_whole_model as figures
from support.plots import pieces, use_style

import gemma_np
from gemma_np.config import RELEASED
from gemma_np.model.block import block
from gemma_np.model.embedding import embed, unembed
from gemma_np.model.records import RECORDS, record_shapes
from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.soft_cap import soft_cap
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.scope import Record, Scope

# %%
use_style()
model = gemma_np.load()
config, weights = model.config, model.weights
layers, heads = range(config.num_hidden_layers), range(config.num_attention_heads)
ids = model.tokenizer.encode("My lord, I thank you.\n\n[Enter Ham")
tokens = pieces(ids, model.tokenizer)
print(len(ids), "tokens:", *tokens)

# %% [markdown]
# ## One screen
#
# You know all the parts by now; here they are put together. Each column of the picture opens one box of the column
# to its left, and each box names the file that computes it.

# %%
diagrams.architecture()

# %% [markdown]
# With the token ids [T], the embedding $E$ [V, D], and the blocks of [tutorial 9](09_geglu_and_the_block.ipynb):
#
# $$x_0 = \sqrt D \, E_\text{ids} \;\; [T, D] \qquad x_{l+1} = \mathrm{block}_l(x_l) \;\; [T, D]$$

# %%
lines(transformer, 'x = tape("embedding"', "for layer", "part =", "x = block", "return tape")

# %% [markdown]
# $$\text{logits} = 30 \tanh\!\left(\frac{\mathrm{norm}(x_L)\, E^\top}{30}\right) \;\; [T, V]$$

# %% [markdown]
# By hand, for a vocabulary of three tokens and D = 4. The last token has id 2, and what the blocks add is made up. The
# weight of the final norm is $w = 8$ in all channels, so it multiplies by 9:

# %%
E_tiny = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])  # [V, D]
x_first = np.sqrt(4) * E_tiny[2]  # [D]
x_last = x_first + np.array([5.0, 3.0, -1.0, -1.0])
root = np.sqrt(np.mean(x_last**2))
normed = x_last / root * 9
print(f"embedding {x_first}, after the blocks {x_last}")
print(f"root of (25 + 9 + 1 + 1) / 4 = {root}; divided by it and times 9: {normed}")
tiny_logits = E_tiny @ normed  # [V]
tiny_capped = 30 * np.tanh(tiny_logits / 30)
for id, row in enumerate(E_tiny):
    print(f"id {id}: {row} . {normed} = {tiny_logits[id]:4}, capped {tiny_capped[id]:5.2f}")
print("the largest logit is that of id", tiny_capped.argmax())

# %% tags=["check"]
np.testing.assert_allclose(rms_norm(x_last, np.full(4, 8.0), eps=0), normed)
np.testing.assert_allclose(soft_cap(unembed(normed, E_tiny), 30.0), tiny_capped)
assert (E_tiny @ x_first).argmax() == 2 and tiny_capped.argmax() == 0

# %% [markdown]
# So token 0 is the most likely one to come next. Without the blocks it would be token 2 itself. In the package:

# %%
lines(lm_head, "logits = ", "if config", "return")

# %% [markdown]
# That is Gemma 2. The 2B, 9B and 27B are these lines with the sizes of table 1. Here is the number of weights by part,
# in millions; the embedding counts once, because the head is the same matrix:

# %%
REPORTED = {"gemma-2-2b": 2_024_517_888, "gemma-2-9b": 8_324_201_984, "gemma-2-27b": 26_047_480_320}  # table 2
for name, reported in REPORTED.items():
    count = RELEASED[name].parameter_count()
    parts = ", ".join(f"{part} {number / 1e6:,.1f}" for part, number in count.items())
    rest = sum(count.values()) - count["embedding"]
    print(f"{name}: {parts}; all but the embedding {rest:,}: {'as' if rest == reported else 'not as'} in table 2")

# %% tags=["check"]
for name, reported in REPORTED.items():
    count = RELEASED[name].parameter_count()
    assert sum(count.values()) - count["embedding"] == reported

# %% [markdown]
# ## Every intermediate, by name
#
# Each line of the model passes its result through a *tape*, a function of a name and a value. The default tape does
# nothing. The tape of `model.trace(ids)` keeps everything:

# %%
lines(Record)

# %%
record = model.trace(ids)
size = {name: " x ".join(map(str, shape)) for name, shape in record_shapes(config, len(ids)).items()}
for row in RECORDS:
    name = row.name.replace("*", "0")
    if name in size:
        print(f"{name:38} [{row.letters:5}] = {size[name]:11}  {row.meaning}")

print(f"{len(record)} records, with those of {len(layers)} layers")

# %% tags=["check"]
assert {name: value.shape for name, value in record.items()} == record_shapes(config, len(ids))

# %% [markdown]
# Each record is computed by one part from earlier records. So we can call each part by itself, and compare its result
# with the record:

# %%
E = weights["model.embed_tokens.weight"]  # [V, D]
again = {
    "embedding": embed(np.array(ids), E),
    "layers.2.resid_post": block(record["layers.1.resid_post"], Scope(weights) / "model" / "layers.2", config, 2),
    "norm": rms_norm(record["layers.3.resid_post"], weights["model.norm.weight"], config.rms_norm_eps),
    "logits": unembed(record["norm"], E),
    "logits_capped": soft_cap(record["logits"], config.final_logit_softcapping),
}
for name, value in again.items():
    difference = np.abs(value - record[name]).max()
    print(f"{name:20} computed again from the records before it: largest difference {difference:.0e}")

# %% tags=["check"]
for name, value in again.items():
    np.testing.assert_allclose(value, record[name], rtol=1e-3, atol=1e-4)

# %% [markdown]
# ## Following one token: what it looks at
#
# The last token is `am`, a piece of a name, and the model has to predict what comes next. Here is which tokens each
# head of each layer looks at for that: one row of `probs` [H, T, S] per head.

# %%
looked = np.concatenate([record[f"layers.{layer}.self_attn.probs"][:, -1] for layer in layers])  # [layers * H, S]
names = [f"layer {layer}, head {head}" for layer in layers for head in heads]
figures.where_it_looks(looked, names, tokens)

most = [[tokens[key] for key in looked[4 * layer : 4 * layer + 4].argmax(axis=-1)] for layer in layers]
for layer in layers:
    print(f"layer {layer}: its heads look most at", *most[layer])

# %% tags=["check"]
np.testing.assert_allclose(looked.sum(axis=-1), 1, rtol=1e-5)
assert [row.count("▁H") for row in most] == [1, 2, 3, 0] and most[3][0] == "[" and most[3][3] == "Enter"
assert looked[9:11, tokens.index("▁H")].min() > 0.4 and looked[8, tokens.index("▁H")] > 0.95 and looked[2].max() < 0.15

# %% [markdown]
# Six heads of layers 0 to 2 look most at `▁H`, the piece just before: `am` alone says little, both together begin a
# name. Others look at where the line began: the blank line, `[` and `Enter`. The probabilities of a row must sum to 1,
# so a head that finds nothing in particular to look at has to put them somewhere: head 2 of layer 0 spreads them over
# nearly all tokens.
#
# ## Following one token: what it would predict
#
# The head reads the stream after the last layer. But all layers add to the same stream, so we can also apply the head
# earlier: final norm, head and cap on every `resid_mid` and `resid_post`. This is called the *logit lens*.
#
# **Predict:** The head is applied before any layer, to the embedding of `am`. Which token does it predict?
#
# <details><summary>Reveal</summary>
#
# `am` itself. The head is the embedding, and a row scores highest against itself.
#
# </details>


# %%
def softmax(logits):
    """[..., V] -> [..., V]"""
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def lens(stream):
    """Stream [..., D] -> the probability of every token to come next, [..., V]."""
    return softmax(lm_head(rms_norm(stream, weights["model.norm.weight"], config.rms_norm_eps), weights, config))


# %%
stages = ["embedding"] + [f"layers.{layer}.{half}" for layer in layers for half in ("resid_mid", "resid_post")]
seen = lens(np.stack([record[stage][-1] for stage in stages]))  # [stages, V]
for stage, probabilities in zip(stages, seen, strict=True):
    best = np.argsort(probabilities)[::-1][:3]
    print(f"{stage:19}", *(f"{model.tokenizer.piece(int(id)):>12} {probabilities[id]:.3f}" for id in best))

# %% tags=["check"]
np.testing.assert_allclose(seen[-1], softmax(record["logits_capped"][-1]), rtol=1e-3, atol=1e-6)

# %%
watched = ["am", "let"]
numbers = [[model.tokenizer.piece(id) for id in range(config.vocab_size)].index(piece) for piece in watched]
figures.logit_lens(dict(zip(watched, seen[:, numbers].T, strict=True)))

# %% tags=["check"]
am, let = seen[:, numbers].T  # [stages] each
assert list(seen.argmax(axis=-1)) == [numbers[0]] * 6 + [numbers[1]] * 3
assert am[:4].min() > 0.9 and am[-1] < 0.01 and let[:6].max() < 0.15 and 0.4 < let[6] < 0.6 and let[-1] > 0.9

# %% [markdown]
# At first the head returns the token that was read: the matrix is tied, so the row of `am` in the embedding scores
# highest against itself. In layers 0 and 1 the stream still means "this token". The feed-forward of layer 2 changes it
# to what could follow, and layer 3 becomes nearly certain of `let`. (The lens is exact only in the last row. In earlier
# rows, the stream still has layers to pass, and the norm was trained for the end.)
#
# ## The last step: the cap
#
# The final cap keeps the order of the tokens. The larger a logit, the more it is reduced:

# %%
raw, capped = record["logits"][-1], record["logits_capped"][-1]  # [V] each
best = np.argsort(raw)[::-1][:5]
print("next token       logit    p    | capped    p")
for id in best:
    before, after = softmax(raw)[id], softmax(capped)[id]
    print(f"{model.tokenizer.piece(int(id)):14} {raw[id]:7.2f}  {before:.3f} | {capped[id]:6.2f}  {after:.3f}")

# %% tags=["check"]
assert np.array_equal(np.argsort(capped)[::-1][:5], best)
assert softmax(capped)[best[0]] < softmax(raw)[best[0]]

# %% [markdown]
# ## Other uses of a tape
#
# The model continues with the value that the tape *returns*. So one function of two arguments is enough to round, to
# stop, or to replace. This one rounds every intermediate, as a number format with fewer bits would:


# %%
def run(tape, ids=ids):
    """The capped logits [T, V] of a run through this tape."""
    return lm_head(transformer(ids, weights, config, tape=tape), weights, config, tape)


def float16(name, value):
    """Every intermediate in 16 bits."""
    return value.astype(np.float16).astype(value.dtype)


difference = np.abs(run(float16) - record["logits_capped"]).max()
print(f"largest difference of a logit: {difference:.4f}")

# %% tags=["check"]
assert 0 < difference < 0.1

# %% [markdown]
# This one stops the model after its second layer, with an exception:


# %%
class Stop(Exception):
    """Stops the model."""


first_records = {}


def until_layer_1(name, value):
    """Keep what passes, and stop after layer 1."""
    first_records[name] = value
    if name == "layers.1.resid_post":
        raise Stop
    return value


# %%
try:
    run(until_layer_1)
except Stop:
    print(f"{len(first_records)} of {len(record)} records, the last {list(first_records)[-1]}")

# %% tags=["check"]
assert np.array_equal(first_records["layers.1.resid_post"], record["layers.1.resid_post"])

# %% [markdown]
# And this one replaces. To find out what a part does, silence it and see how the model performs without it (an
# *ablation*). The heads of a layer are side by side in `context` [T, H*h]: head 1 has the channels from $h$ to $2h -
# 1$. The tape zeroes them in a copy, because the record itself may be needed elsewhere:
#
# **Predict:** What costs more: the head that matters most, or the half of a layer that matters least?
#
# <details><summary>Reveal</summary>
#
# The half. The worst head to lose costs 0.15 nats per token, and no half costs less than that. The worst half, the
# feed-forward of layer 0, costs more than 1.5.
#
# </details>


# %%
def silenced(record_name, channels=slice(None)):
    """Return a tape that zeroes these channels of one record."""

    def tape(name, value):
        if name == record_name:
            value = value.copy()
            value[..., channels] = 0
        return value

    return tape


# %%
SPEECH = """HAMLET. To be, or not to be, that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles,
And by opposing end them."""
speech = model.tokenizer.encode(SPEECH)


def loss(logits):
    """Mean nats per token of the speech: [T, V] -> number."""
    return -np.mean(np.log(softmax(logits[:-1])[np.arange(len(speech) - 1), speech[1:]]))


# %%
h = config.head_dim
whole = loss(model.logits(speech))
by_head, by_half = np.zeros((len(layers), len(heads))), np.zeros((len(layers), 2))
for layer in layers:
    for n in heads:
        tape = silenced(f"layers.{layer}.self_attn.context", slice(h * n, h * n + h))
        by_head[layer, n] = loss(run(tape, speech))
    for n, half in enumerate(("attention", "feedforward")):
        by_half[layer, n] = loss(run(silenced(f"layers.{layer}.post_{half}_layernorm"), speech))
figures.ablations(by_head - whole, by_half - whole)

# %%
speech_record = model.trace(speech)
probs = np.stack([speech_record[f"layers.{layer}.self_attn.probs"] for layer in layers])  # [layers, H, T, S]
back_one = np.diagonal(probs, -1, axis1=2, axis2=3).mean(axis=-1)  # [layers, H]
print(f"loss {whole:.2f}; without layer 0's feed-forward {by_half[0, 1]:.2f}")
looks_back = [divmod(int(place), len(heads)) for place in np.argsort(-back_one, axis=None)[:4]]
for layer, n in looks_back:
    print(f"without head {n} of layer {layer}: {by_head[layer, n]:.2f}", end="; ")
    print(f"it gives the token just before, on average, a probability of {back_one[layer, n]:.2f}")

# %% tags=["check"]
worst = [divmod(int(place), len(heads)) for place in np.argsort(-by_head, axis=None)[:3]]
assert looks_back == [(2, 0), (1, 1), (1, 0), (3, 3)] and worst == [(2, 0), (3, 3), (1, 0)]
assert by_head[2, 0] - whole > 0.1 > 0.03 > np.median(by_head) - whole and by_head[1, 1] - whole < 0.05
assert by_half[0, 1] - whole > 1.5 and by_half.min() > by_head.max()

# %% [markdown]
# Most heads can be removed one at a time at hardly any cost. The three that are missed most are among the four that
# look most at the previous token. The fourth, head 1 of layer 1, is missed much less. The halves of a layer matter more
# than any head. The first feed-forward matters most; all later layers read what it adds.
#
# A change in one line spreads from there: nothing before it changes, and everything after it does.

# %%
changed = Record()
cut = silenced("layers.2.self_attn.context", slice(0, h))
run(lambda name, value: changed(name, cut(name, value)))
untouched = [name for name in record if np.array_equal(changed[name], record[name])]
print(f"{len(untouched)} of {len(record)} records are as before, the last {untouched[-1]}")

# %% tags=["check"]
assert untouched == list(record)[: len(untouched)] and untouched[-1] == "layers.2.self_attn.probs"

# %% [markdown]
# This is also how to find a mistake in a port: look at the first record that differs.
# [Tutorial 19](19_finding_the_bug.ipynb) does that.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The whole model, from its parts: `embed(ids, E)`, `block(x, weights, config, layer)`, `rms_norm(x, weight,
# eps)`, `unembed(x, E)` and `soft_cap(x, cap)`. The weights have their published names, such as
# `model.embed_tokens.weight` and `model.norm.weight`; `Scope(weights) / "model" / "layers.0"` has the weights of the
# first block.
#
# <details><summary>Hint 1</summary>
#
# The order is that of this page: embedding, blocks, the last norm, head, cap. `config` has `num_hidden_layers`,
# `rms_norm_eps` and `final_logit_softcapping`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The head is the embedding: `weights["model.embed_tokens.weight"]` is used first and last.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# In a loop over the layers: `x = block(x, Scope(weights) / "model" / f"layers.{layer}", config, layer)`.
#
# </details>


# %%
def gemma_2(ids, weights, config):
    """ids [..., T], weights by name -> capped logits [..., T, V]"""
    ...


check(gemma_2, exercises.WHOLE_MODEL)

# %% [markdown]
# **2.** How many weights does a Gemma 2 of these sizes have? Each block has four matrices in attention, three in the
# feed-forward layer, and four norms.
#
# <details><summary>Hint 1</summary>
#
# Queries have H heads, keys and values K. The head of the model is the embedding, and counts once.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `q_proj` and `o_proj` have D * H * h weights each, `k_proj` and `v_proj` D * K * h each, and each matrix of the
# feed-forward layer D * F.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# A norm has D weights: four norms a layer, and one after the last layer.
#
# </details>


# %%
def parameters(V, D, layers, H, K, h, F):
    """The sizes, whole numbers -> how many weights, a whole number"""
    ...


check(parameters, exercises.PARAMETERS)

# %% [markdown]
# **3.** The body of a tape that silences one head: zeros in its channels of `layers.{layer}.self_attn.context`, and
# every other record unchanged.
#
# <details><summary>Hint 1</summary>
#
# Compare the whole name, and change a copy.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Head `head` has the channels from `head * head_dim` to `(head + 1) * head_dim`, on the last axis.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Every other record is returned as it came: `return value` stands outside of the `if`.
#
# </details>


# %%
def without_head(name, value, layer, head, head_dim):
    """name of a record, its value [..., n], which head of which layer -> the value to continue with [..., n]"""
    ...


check(without_head, exercises.WITHOUT_HEAD)

# %% [markdown]
# ## Now in your file
#
# Write `gemma`: the embedding, every layer with its own weights, the final norm, the head. After this no function of
# the forward pass is ours: every intermediate of the check is yours.

# %%
check_file("my_gemma.py", upto="logits")

# %% [markdown]
# The solutions are in [solutions/10_the_whole_model.py](solutions/10_the_whole_model.py), those of your file in
# [solutions/my_gemma](solutions/my_gemma/10_the_whole_model.py).
#
# ## Further reading
#
# - [gemma_np/model/transformer.py](../gemma_np/model/transformer.py): the model and its backward pass;
#   [records.py](../gemma_np/model/records.py): the table of records; [scope.py](../gemma_np/scope.py): the tape.
# - The logit lens was first described by nostalgebraist, [Interpreting GPT: the logit
#   lens](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens).
#
# Next: [11. The cache, and generation](11_cache_and_generation.ipynb).
