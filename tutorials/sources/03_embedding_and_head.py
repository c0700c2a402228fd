# %% [markdown]
# # 3. The embedding and the head
#
# After this you can turn ids into the vectors that Gemma reads, and turn a vector back into a score for every token;
# and you can explain why the vectors are multiplied by $\sqrt D$. About 15 minutes. In the [Gemma 2
# report](https://arxiv.org/abs/2408.00118): tables 1 and 2.
#
# Before this: [2. A real checkpoint](02_a_real_checkpoint.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import math
from dataclasses import replace

import numpy as np
from support import check, check_file, lines
from support.exercises import embedding_and_head as exercises
from support.figures import embedding_and_head as figures
from support.plots import pieces, use_style

import gemma_np
from gemma_np.config import RELEASED
from gemma_np.model.embedding import embed, unembed
from gemma_np.model.transformer import lm_head
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes

# %%
use_style()
model = gemma_np.load()
tokenizer = model.tokenizer
text = "To be, or not to be, that is the question."
ids = tokenizer.encode(text)
V, D = model.weights["model.embed_tokens.weight"].shape
print(f"T = {len(ids)} tokens; V = {V} rows of the embedding, D = {D} channels")

# %% [markdown]
# ## A number becomes a vector
#
# An id has no meaning as a number; 520 is not "more" than 483. So each piece gets a vector of D numbers, which are
# trained. These vectors are the rows of one matrix, the *embedding* $E$ [V, D]. The token with id $t$ becomes
#
# $$x = \sqrt D \; E_t \qquad x\ [D],\quad \text{for a text of } T \text{ tokens}\ [T, D]$$
#
# First with numbers that you can follow: a vocabulary of three pieces, D = 2 channels, and the text 2, 0, 2.
#
# **Predict:** The id 2 stands first and last in this text. Do its two vectors differ?
#
# <details><summary>Reveal</summary>
#
# No. The vector depends on the id alone; nothing here knows the position. It comes in only with attention ([tutorial
# 5](05_positions_and_rope.ipynb)).
#
# </details>

# %%
E_tiny = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])  # [V, D]
x = E_tiny[[2, 0, 2]] * math.sqrt(2)  # [T, D]
for id, vector in zip((2, 0, 2), x, strict=True):
    print(f"id {id}: row {E_tiny[id]}, times sqrt(2) = {vector.round(3)}")

# %% tags=["check"]
assert np.array_equal(x, embed(np.array([2, 0, 2]), E_tiny))

# %% [markdown]
# The same id always gives the same vector, wherever it stands in the text. The function in the package:

# %%
lines(embed, "def", "return")

# %%
E = model.weights["model.embed_tokens.weight"]  # [V, D]
x = embed(np.array(ids), E)  # [T, D]
same = np.array_equal(x, model.trace(ids)["embedding"])
print(f"ids [{len(ids)}] -> {list(x.shape)}; as in the model: {same}")

# %% tags=["check"]
assert same and x.shape == (len(ids), D)

# %% [markdown]
# `embedding_rows` returns `E[ids]`, also for a matrix that is stored in fewer bits. `model.trace(ids)` runs the model
# and returns every intermediate array by name; here we compare the one named "embedding". Below, and in the other
# tutorials, its result is called `record`, so `record["embedding"]` is that array.
#
# Do the rows mean anything? The cosine of two rows is 1 when they point in the same direction, and 0 when they are
# perpendicular:

# %%
directions = E / np.linalg.norm(E, axis=1, keepdims=True)  # [V, D]


def neighbours(piece, number=5):
    cosines = directions @ directions[tokenizer.id(piece)]  # [V]
    return pieces(np.argsort(-cosines)[1 : number + 1], tokenizer)


for piece in ("▁king", "▁night", "▁two", "▁hath", ","):
    print(f"{piece:8}", *neighbours(piece))

# %% tags=["check"]
assert "▁queen" in neighbours("▁king") and "▁day" in neighbours("▁night") and "▁three" in neighbours("▁two")

# %%
groups = "▁king ▁queen ▁prince  ▁night ▁day ▁hour  ▁two ▁three ▁some  ▁hath ▁has ▁doth"
chosen = groups.split()  # [12]
rows = directions[[tokenizer.id(piece) for piece in chosen]]
cosines = rows @ rows.T  # [12, 12]
figures.cosines_of_pieces(cosines, chosen)

blocks = cosines.reshape(4, 3, 4, 3)
within = np.mean([blocks[n, :, n, :][np.triu_indices(3, 1)].mean() for n in range(4)])
between = np.mean([blocks[n, :, m, :].mean() for n in range(4) for m in range(n)])
print(f"mean cosine within a group {within:.2f}, between groups {between:.2f}")

# %% tags=["check"]
assert within > 0.5 > 0.35 > between

# %% [markdown]
# Nothing told the model that "night" and "day" are related. They occur in similar places, so what helps to predict one
# helps to predict the other, and training moved their rows closer to each other.
#
# ## And back: the same matrix is the head
#
# At the end of the model, a vector has to become a score for every piece of the vocabulary: how likely it is to come
# next. Gemma takes the dot product with each row of the same matrix; this is called a *tied* head. The scores are
# called *logits*:
#
# $$\mathrm{logits} = x E^\top \qquad x\ [T, D],\ E\ [V, D] \to [T, V]$$
#
# With the three pieces above, and a vector that the model could have computed, three dot products:

# %%
out = np.array([2.0, 1.0])  # [D]
for id, row in enumerate(E_tiny):
    print(f"piece {id}: {out[0]} * {row[0]} + {out[1]} * {row[1]} = {out @ row}")

# %% tags=["check"]
assert unembed(out, E_tiny).tolist() == [2.0, 1.0, 1.5]

# %% [markdown]
# Piece 0 has the highest score, so it is the most likely one. In the package:

# %%
lines(unembed, "def", "return")

# %% [markdown]
# `linear(x, E)` is $x E^\top$, without $\sqrt D$. Here is the line in the model, and what the model expects after "To
# be, or not to":

# %%
lines(lm_head, "unembed")

# %%
record = model.trace(tokenizer.encode("To be, or not to"))
logits = unembed(record["norm"], E)  # [T, V]
best = np.argsort(-logits[-1])[:5]
print("most likely next tokens:", *pieces(best, tokenizer))

# %% tags=["check"]
np.testing.assert_allclose(logits, record["logits"], rtol=1e-5, atol=1e-5)
assert tokenizer.piece(int(best[0])) == "▁be"

# %% [markdown]
# ## Why the square root
#
# One matrix has two uses, and they need different sizes. As the head it is multiplied by vectors that have been
# normalized to a root mean square of 1, apart from learned factors ([tutorial 4](04_rms_norm.ipynb)). If the channels
# of a vector of that size are independent, its dot product with a row is a sum of D terms, with a standard deviation of
# $\sqrt D$ times the root mean square of the row. For logits of order 1, the row must be of order $1 / \sqrt D$. Is it?

# %%
rms = np.sqrt(np.mean(E**2, axis=1))  # [V]
somewhere = np.random.default_rng(0).standard_normal((1000, D))  # vectors in random directions
print(f"rows of E: median root mean square {np.median(rms):.3f}; 1 / sqrt(D) = {1 / math.sqrt(D):.3f}")
print(f"logits of random vectors: standard deviation {unembed(somewhere, E).std():.2f}")
factors = 1 + model.weights["model.norm.weight"]  # [D], of the norm before the head
print(f"learned factors: {factors.min():.1f} to {factors.max():.1f}")

# %% tags=["check"]
assert 0.45 < np.median(rms) * math.sqrt(D) < 0.65
assert np.median(rms) * math.sqrt(D) < unembed(somewhere, E).std() < 1
assert factors.min() > 2 and factors.max() < 5
np.testing.assert_allclose(unembed(somewhere, E).std(), math.sqrt(D) * np.sqrt(np.mean(E**2)), rtol=0.05)

# %% [markdown]
# It is of that order: about half as large, and the learned factors of the last norm, from 2 to 5, make up for it. (The
# standard deviation is somewhat more than $\sqrt D$ times the median row: it is $\sqrt D$ times the root mean square of
# all rows together, and the mean square counts the large rows more.)
#
# As the input of the first layer, such rows would be too small. Each layer *adds* its result to the vector, and what it
# adds is of order 1, because a norm follows each of its two halves, attention and feed-forward, and scales their
# outputs to about that size (tutorials [4](04_rms_norm.ipynb) and [9](09_geglu_and_the_block.ipynb)). A row of size
# 0.04 would be drowned out in the first layer: the model would hardly know which token it is reading. Multiplied by
# $\sqrt D$, the row is about as large as what is added.

# %%
record = model.trace(ids)
added = {
    "row of E": record["embedding"] / math.sqrt(D),
    "times sqrt(D)": record["embedding"],
    "attention adds": record["layers.0.post_attention_layernorm"],
    "feed-forward adds": record["layers.0.post_feedforward_layernorm"],
}
sizes = {name: np.sqrt(np.mean(value**2, axis=-1)) for name, value in added.items()}  # [T] each
figures.sizes_of_vectors(sizes)

for name, size in sizes.items():
    print(f"{name:18} {size.mean():.3f}")

# %% tags=["check"]
assert sizes["attention adds"].mean() > 5 * sizes["row of E"].mean()
assert 0.5 < sizes["attention adds"].mean() / sizes["times sqrt(D)"].mean() < 2

# %% [markdown]
# Both possible mistakes, no scale and the scale applied twice, have been made in reimplementations of Gemma, and
# neither raises an error. This package has a catalogue of such mistakes. `inject_mistakes` makes the model commit one
# of them inside its `with` block; its last argument lists how many tokens each pass reads.
#
# *Perplexity* is exp of the mean negative log-likelihood per token; lower is better. A model that guesses uniformly
# among all V = 2,048 pieces has a perplexity of 2,048. A higher one is worse than guessing: the model is confident in
# the wrong tokens.
#
# **Predict:** The perplexity of this text is 41. What is worse, to leave the scale out or to apply it twice, and is
# either of them worse than 2,048, which is guessing?
#
# <details><summary>Reveal</summary>
#
# Without the scale it is about 470. With the scale applied twice it is about 50,000, far worse than guessing: the
# layers add as much as before to a stream that is more than ten times too large, and after nearly every token the
# model expects the same token again.
#
# </details>

# %%
right, wrong = model.perplexity(text), {}
print(f"right: perplexity {right:,.0f}")
for mistake in CATALOGUE:
    if mistake.id in ("embed-scale-absent", "embed-scale-twice"):
        with inject_mistakes([mistake], model.config, [len(ids)]):
            wrong[mistake.id] = model.perplexity(text)
        print(f"{mistake.instead}: perplexity {wrong[mistake.id]:,.0f}")

# %% tags=["check"]
assert 5 * right < wrong["embed-scale-absent"] < V == 2048 < wrong["embed-scale-twice"]

# %% [markdown]
# Without the scale the model is much worse; with the scale applied twice it is worse than guessing.
#
# ## How large the embedding is
#
# Gemma's vocabulary is large because it was made for many languages, and it is the same for all sizes of the model. In
# a small model it has a large share of all parameters. From the configs of the released models (the norms are too few
# to see):
#
# **Predict:** Gemma 2 has 2, 9 or 27 billion parameters. In which size does the embedding have the largest share, and
# how large is it?
#
# <details><summary>Reveal</summary>
#
# In the smallest, where it has 23 %. In the 9B it has 10 %, in the 27B 4 %: the vocabulary stays, everything else
# grows.
#
# </details>

# %%
counts = {name: RELEASED[name].parameter_count() for name in ("gemma-2-2b", "gemma-2-9b", "gemma-2-27b")}
figures.shares_of_parameters(counts)

for name, count in counts.items():
    part, rest = count["embedding"], sum(count.values()) - count["embedding"]
    print(f"{name:12} embedding {part:>13,}, the rest {rest:>14,}; {part / (part + rest):.0%} embedding")

# %% tags=["check"]
for count in counts.values():
    assert count["norms"] < 0.001 * sum(count.values())

# %% [markdown]
# Table 2 of the report counts 128 more rows, which pad the matrix; with them, we get its exact numbers:

# %%
padded = replace(RELEASED["gemma-2-2b"], vocab_size=256_128).parameter_count()
print(f"{padded['embedding']:,} + {sum(padded.values()) - padded['embedding']:,}")

# %% tags=["check"]
assert padded["embedding"] == 590_118_912
assert sum(padded.values()) - padded["embedding"] == 2_024_517_888
assert 0.2 < padded["embedding"] / sum(padded.values()) < 0.25

# %% [markdown]
# More than a fifth of the 2B is its embedding. If the head were not tied, the matrix would be there twice.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** Turn ids into the vectors that the first layer reads.
#
# <details><summary>Hint 1</summary>
#
# An array of ids is an index of E.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The factor is the root of D, `E.shape[1]`. The result has E's dtype: `math.sqrt` keeps it.
#
# </details>


# %%
def look_up(ids, E):
    """ids [..., T], E [V, D] -> [..., T, D]"""
    ...


check(look_up, exercises.EMBED)

# %% [markdown]
# **2.** Turn vectors into a score for every piece.
#
# <details><summary>Hint 1</summary>
#
# Entry [t, v] is the dot product of x[t] and E[v].
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# All of them are one matrix product, with the transpose of E.
#
# </details>


# %%
def score_all(x, E):
    """x [..., T, D], E [V, D] -> logits [..., T, V]"""
    ...


check(score_all, exercises.LOGITS)

# %% [markdown]
# ## Now in your file
#
# Write `embed` and `unembed`. Each intermediate goes through the tape, under the name that the docstring gives it. The
# functions of later tutorials are ours until you get there, `soft_cap` among them, so the whole model runs already,
# with your embedding and your head. `config` is the dict of [tutorial 2](02_a_real_checkpoint.ipynb): D is
# `config["hidden_size"]`. Do not change an array in place after the tape has it: the backward pass of [tutorial
# 13](13_backward_by_hand.ipynb) reads it.
#
# If something differs, the answer lists the records that are wrong given their own inputs, so one mistake does not hide
# another. Their error is a multiple of what rounding explains. Then come the mistakes that give your numbers: "with it"
# is the error that is left if ours makes that mistake as well, and below 1 it is only rounding.

# %%
check_file("my_gemma.py", upto="embedding")

# %% [markdown]
# The solutions are in [solutions/03_embedding_and_head.py](solutions/03_embedding_and_head.py), those of your file in
# [solutions/my_gemma](solutions/my_gemma/03_embedding_and_head.py).
#
# ## Further reading
#
# - [gemma_np/model/embedding.py](../gemma_np/model/embedding.py), 40 lines with the backward pass.
# - Press and Wolf, [Using the Output Embedding to Improve Language Models](https://arxiv.org/abs/1608.05859), for the
#   tied head.
#
# Next: [4. RMSNorm, and why 1 + w](04_rms_norm.ipynb).
