# %% [markdown]
# # 1. Tokens and the embedding
#
# Welcome: this is the first of sixteen short tutorials, after which you can write Google's Gemma 2 on your own. You need
# Python and some linear algebra, and no knowledge of language models.
#
# To run it, in the root of a clone of the repository: `pip install -e ".[tutorials]"`, then
# `jupyter lab --ServerApp.root_dir=. tutorials/01_tokens_and_embedding.ipynb`. Go through the cells from top to bottom
# with Shift-Enter.
#
# After this you can turn a text into the vectors that Gemma reads, and a vector back into a score for every token; and
# you can say why the vectors are multiplied by $\sqrt D$. About 15 minutes. In the
# [Gemma 2 report](https://arxiv.org/abs/2408.00118): the paragraph "Tokenizer", and tables 1 and 2.
#
# Words and letters: [glossary](glossary.md).

# %%
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from support import check, lines
from support.exercises import tokens_and_embedding as exercises
from support.plots import matrix, pieces, use_style

import gemma_np
from gemma_np.config import RELEASED
from gemma_np.model.embedding import embed, unembed
from gemma_np.model.transformer import lm_head
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes
from gemma_np.text.tokenizer import Tokenizer

use_style()
model = gemma_np.load()
tokenizer = model.tokenizer
V, D = model.weights["model.embed_tokens.weight"].shape
print(f"a Gemma 2 of {sum(model.config.parameter_count().values()):,} parameters: V = {V} tokens, D = {D} channels")

# %% [markdown]
# The model comes with the package. It has all that Gemma 2 has, is more than two thousand times smaller than the smallest one
# that Google has released, and has read nothing but Shakespeare.

# %%
released = sum(RELEASED["gemma-2-2b"].parameter_count().values())
print(
    f"Gemma 2 2B: {released:,} parameters, {released / sum(model.config.parameter_count().values()):,.0f} times as many"
)
assert 2000 < released / sum(model.config.parameter_count().values()) < 3000

# %% [markdown]
# ## A text becomes numbers
#
# A model computes with numbers, so a text must become a list of them. Numbers for whole words would leave no way to write
# a new word; numbers for letters would make every text long. *Pieces* of words lie in between: a common word is one piece,
# a rare one is put together from several. The vocabulary is the list of all pieces, and a piece's place in it is its *id*.
# One occurrence of a piece in a text is called a *token*.

# %%
text = "To be, or not to be, that is the question."
ids = tokenizer.encode(text)
tokens = pieces(ids, tokenizer)
print("  ".join(f"{token} {id}" for token, id in zip(tokens, ids, strict=True)))

assert ids[1:] == tokenizer.encode(text, bos=False)
assert tokenizer.decode(ids) == text

# %% [markdown]
# Three things to see:
#
# - A single space before a word belongs to the word's first piece, and is shown as ▁. Nothing is thrown away, so that
#   decoding gives the very same text back.
# - The common word "the" is one piece, "question" is three.
# - `<bos>`, "beginning of sequence", comes first. It is one of the *control pieces*, which stand for no text. Every text that
#   a Gemma reads begins with it, exactly once; to forget it is among the mistakes most often made.
#
# The lines that put it there, once even when the text has it already. (The loop finds the other control pieces, so that
# each becomes its one id; the text between them goes to the sentencepiece library.)

# %%
lines(Tokenizer.encode)

# %% [markdown]
# ### Digits, spaces, and characters that the vocabulary lacks

# %%
for sample in ("In 1599", "a café", "two  spaces"):
    sample_ids = tokenizer.encode(sample, bos=False)
    print(f"{sample!r:15}", *pieces(sample_ids, tokenizer))
    assert tokenizer.decode(sample_ids) == sample
assert len(tokenizer.encode("1599", bos=False)) == 4

# %% [markdown]
# - Digits are *split*: a number is as many tokens as it has digits, so that no number is a word of its own that must be
#   learned by heart.
# - A run of spaces is one piece. In program code there are many.
# - What the vocabulary lacks is written in *bytes*: `<0xC3>` and `<0xA9>` are the two bytes of "é" in UTF-8. There are 256 pieces
#   for the 256 bytes, so that no text is beyond the model. In the Shakespeare that this small vocabulary was learned from
#   there are no digits, so here they are bytes, too; Gemma's own, of 256,000 pieces, has a piece for each digit.
#
# ### Where the text is cut
#
# The vocabulary was learned by *byte-pair encoding*: start from single characters; again and again, make a new piece of the
# two neighbours that stand together most often. The new pieces get their ids in that order, the most frequent pair first.
# A text is cut by doing the same merges again:
#
# 1. take the text as single characters;
# 2. of all neighbours that together are a piece, merge the two whose piece has the lowest id (the leftmost, if it
#    occurs twice);
# 3. go on until no two neighbours are a piece.
#
# So it is not the longest piece that wins. The piece ▁noble exists, but "nobler" is cut otherwise:

# %%
print(*pieces(tokenizer.encode(" nobler", bos=False), tokenizer))
print({piece: tokenizer.id(piece) for piece in ("er", "le", "▁noble")})
assert "▁noble" in tokenizer and "▁noble" not in pieces(tokenizer.encode(" nobler", bos=False), tokenizer)
assert tokenizer.id("er") < tokenizer.id("le")

# %% [markdown]
# "er" has a lower id than "le": the e goes to the r before the l can have it, and after that nothing can become ▁noble any
# more.
#
# ## A number becomes a vector
#
# An id says nothing by itself; 520 is not "more" than 483. So each piece gets a vector of D numbers, which training shapes.
# They are the rows of one matrix, the *embedding* $E$ [V, D]. The token with id $t$ becomes
#
# $$x = \sqrt D \; E_t \qquad x\ [D],\quad \text{for a text of } T \text{ tokens}\ [T, D]$$

# %%
lines(embed, "def", "return")

# %%
E = model.weights["model.embed_tokens.weight"]  # [V, D]
x = embed(np.array(ids), E)  # [T, D]
print(f"ids [{len(ids)}] -> {list(x.shape)}")
assert x.shape == (len(ids), D)
assert np.array_equal(x, model.trace(ids)["embedding"])

# %% [markdown]
# `embedding_rows` is `E[ids]`, or the same for a matrix that is stored in fewer bits. `model.trace(ids)` runs the model and keeps
# every array that it computed on the way, by name; here the one named "embedding" is compared. Below, and in the other
# tutorials, what it returns is called `record`, so that `record["embedding"]` is that array.
#
# Do the rows mean anything? The cosine of two rows is 1 when they point in the same direction, and 0 when they have nothing
# to do with each other:

# %%
directions = E / np.linalg.norm(E, axis=1, keepdims=True)  # [V, D]


def neighbours(piece, number=5):
    cosines = directions @ directions[tokenizer.id(piece)]  # [V]
    return pieces(np.argsort(-cosines)[1 : number + 1], tokenizer)


for piece in ("▁king", "▁night", "▁two", "▁hath", ","):
    print(f"{piece:8}", *neighbours(piece))
assert "▁queen" in neighbours("▁king") and "▁day" in neighbours("▁night") and "▁three" in neighbours("▁two")

# %%
groups = (
    ("▁king", "▁queen", "▁prince"),
    ("▁night", "▁day", "▁hour"),
    ("▁two", "▁three", "▁some"),
    ("▁hath", "▁has", "▁doth"),
)
chosen = [piece for group in groups for piece in group]
rows = directions[[tokenizer.id(piece) for piece in chosen]]
cosines = rows @ rows.T  # [12, 12]

figure, axes = plt.subplots(figsize=(6, 4.6))
matrix(axes, cosines, chosen, chosen, label="cosine", limit=1)
axes.set(title="How alike the rows of twelve pieces are", xlabel="piece", ylabel="piece")
plt.show()

blocks = cosines.reshape(4, 3, 4, 3)
within = np.mean([blocks[n, :, n, :][np.triu_indices(3, 1)].mean() for n in range(4)])
between = np.mean([blocks[n, :, m, :].mean() for n in range(4) for m in range(n)])
print(f"mean cosine within a group {within:.2f}, between groups {between:.2f}")
assert within > 0.4 > 0.2 > between

# %% [markdown]
# Nobody told the model that "night" and "day" are of a kind. They stand in like places, so what helps to predict one helps
# to predict the other, and training has moved their rows to each other.
#
# ## And back: the same matrix is the head
#
# At the end of the model, a vector has to become a score for every piece of the vocabulary, to say which is likely to come
# next. Gemma takes the dot product with each row of the same matrix; this is called a *tied* head. The scores are the
# *logits*:
#
# $$\mathrm{logits} = x E^\top \qquad x\ [T, D],\ E\ [V, D] \to [T, V]$$

# %%
lines(unembed, "def", "return")

# %% [markdown]
# `linear(x, E)` is $x E^\top$; no $\sqrt D$ here. The line in the model, and what the model expects after "To be, or not to":

# %%
lines(lm_head, "unembed")

# %%
record = model.trace(tokenizer.encode("To be, or not to"))
logits = unembed(record["norm"], E)  # [T, V]
best = np.argsort(-logits[-1])[:5]
print("likeliest after it:", *pieces(best, tokenizer))
np.testing.assert_allclose(logits, record["logits"], rtol=1e-5, atol=1e-5)
assert tokenizer.piece(int(best[0])) == "▁be"

# %% [markdown]
# ## Why the square root
#
# One matrix serves two masters, and they want different sizes. As a head it is multiplied with vectors that have been
# normalised to a root mean square of about 1 ([tutorial 2](02_rms_norm.ipynb)). Let such a vector have independent channels: then
# a dot product with a row is a sum of D terms, and its standard deviation is $\sqrt D$ times the root mean square of the row.
# For logits of order 1, the row must be of order $1 / \sqrt D$. Is it?

# %%
rms = np.sqrt(np.mean(E**2, axis=1))  # [V]
somewhere = np.random.default_rng(0).standard_normal((1000, D))  # vectors that point nowhere in particular
print(f"rows of E: median root mean square {np.median(rms):.3f}; 1 / sqrt(D) = {1 / math.sqrt(D):.3f}")
print(f"logits of random vectors: standard deviation {unembed(somewhere, E).std():.2f}")
assert 0.8 < np.median(rms) * math.sqrt(D) < 1.25
assert np.median(rms) * math.sqrt(D) < unembed(somewhere, E).std() < 1.5
np.testing.assert_allclose(unembed(somewhere, E).std(), math.sqrt(D) * np.sqrt(np.mean(E**2)), rtol=0.05)

# %% [markdown]
# It is. (The standard deviation is somewhat more than $\sqrt D$ times the median row: it is $\sqrt D$ times the root mean
# square of all rows together, and the mean square counts the large rows more.)
#
# As the start of the model such rows would be too small. Each layer *adds* what it finds to the vector, and it adds numbers
# of order 1, since a norm stands after each of its two halves, attention and feed-forward, and brings what they write to
# about that size (tutorials [2](02_rms_norm.ipynb) and [7](07_geglu_and_the_block.ipynb)). A row of 0.1 would drown in the first layer: the model would hardly know any more which token it is reading.
# Multiplied by $\sqrt D$, the row is as large as what is added.

# %%
record = model.trace(ids)
added = {
    "row of E": record["embedding"] / math.sqrt(D),
    "times sqrt(D)": record["embedding"],
    "attention adds": record["layers.0.post_attention_layernorm"],
    "feed-forward adds": record["layers.0.post_feedforward_layernorm"],
}
sizes = {name: np.sqrt(np.mean(value**2, axis=-1)) for name, value in added.items()}  # [T] each

figure, axes = plt.subplots()
for place, size in enumerate(sizes.values()):
    offsets = np.linspace(-0.2, 0.2, len(size))
    axes.scatter(place + offsets, size, color=f"C{place}", s=22)
axes.set(xticks=range(4), xticklabels=sizes, xlim=(-0.5, 3.5), ylabel="root mean square (log scale)")
axes.set(yscale="log", ylim=(0.04, 3), yticks=(0.1, 1), yticklabels=("0.1", "1"))
axes.set_title("The embedding beside what layer 0 adds to it (a dot a token)")
plt.show()

for name, size in sizes.items():
    print(f"{name:18} {size.mean():.3f}")
assert sizes["attention adds"].mean() > 5 * sizes["row of E"].mean()
assert 0.5 < sizes["attention adds"].mean() / sizes["times sqrt(D)"].mean() < 2

# %% [markdown]
# Both of the possible mistakes, no scale and the scale twice, have been made when Gemma was written anew, and there is no
# error message for them. This package has a catalogue of such mistakes. `inject_mistakes` puts one into the model for as long as its
# `with` lasts; the list says how many tokens the model reads at once.
#
# *Perplexity* says between how many tokens the model hesitates on average; less is better. Whoever guesses evenly among
# all V = 2,048 pieces has a perplexity of 2,048. One above that is worse than guessing: the model is sure of the wrong
# token.

# %%
print(f"right: perplexity {model.perplexity(text):,.0f}")
for mistake in CATALOGUE:
    if mistake.id in ("embed-scale-absent", "embed-scale-twice"):
        with inject_mistakes([mistake], model.config, [len(ids)]):
            wrong = model.perplexity(text)
        print(f"{mistake.instead}: perplexity {wrong:,.0f}")
        assert wrong > 5 * model.perplexity(text)
        assert (wrong > V) == (mistake.id == "embed-scale-twice") and V == 2048

# %% [markdown]
# Without the scale the model is much worse; with the scale twice it would do better to guess.
#
# ## How large the embedding is
#
# Gemma's vocabulary is large, since it was made for many languages, and it is the same for all sizes of the model. In a small
# model it is a large part. From the configs of the released models (the norms are too few to be seen):

# %%
names = ("gemma-2-2b", "gemma-2-9b", "gemma-2-27b")
counts = {name: RELEASED[name].parameter_count() for name in names}

figure, axes = plt.subplots(figsize=(7, 2.6))
left = np.zeros(len(names))
for colour, part in enumerate(("embedding", "attention", "feed-forward")):
    shares = np.array([100 * counts[name][part] / sum(counts[name].values()) for name in names])
    axes.barh(names, shares, left=left, color=f"C{colour}", label=part)
    left += shares
axes.invert_yaxis()
axes.set(xlabel="share of the parameters (%)", title="Where the parameters of Gemma 2 are", xlim=(0, 100))
axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.3))
plt.show()

for name in names:
    embedding, total = counts[name]["embedding"], sum(counts[name].values())
    assert counts[name]["norms"] < 0.001 * total
    print(
        f"{name:12} embedding {embedding:>13,}, the rest {total - embedding:>14,}; {100 * embedding / total:.0f} % embedding"
    )

# %% [markdown]
# Table 2 of the report counts 128 rows more, with which the matrix was padded; its numbers come out to the last digit:

# %%
padded = replace(RELEASED["gemma-2-2b"], vocab_size=256_128).parameter_count()
print(f"{padded['embedding']:,} + {sum(padded.values()) - padded['embedding']:,}")
assert padded["embedding"] == 590_118_912
assert sum(padded.values()) - padded["embedding"] == 2_024_517_888
assert 0.2 < padded["embedding"] / sum(padded.values()) < 0.25

# %% [markdown]
# More than a fifth of the 2B is its embedding. Were the head not tied, it would be there twice.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it says what is wrong, in words.
#
# **1.** Cut a text as the tokenizer does. Spaces are ▁ already, every character is a piece, and `ids` has the id of each piece.


# %%
def merge(text, ids):
    """text with ▁ for spaces, ids {piece: id} -> list of ids

    Hint: begin with pieces = list(text). pieces[n : n + 2] = [pieces[n] + pieces[n + 1]] merges two neighbours.
    """
    ...


check(merge, exercises.MERGE)

# %% [markdown]
# **2.** Turn ids into the vectors that the first layer reads.


# %%
def look_up(ids, E):
    """ids [..., T], E [V, D] -> [..., T, D]

    Hint: an array of ids is an index of E. The result has E's dtype.
    """
    ...


check(look_up, exercises.EMBED)

# %% [markdown]
# **3.** Turn vectors into a score for every piece.


# %%
def score_all(x, E):
    """x [..., T, D], E [V, D] -> logits [..., T, V]

    Hint: entry [t, v] is the dot product of x[t] and E[v].
    """
    ...


check(score_all, exercises.LOGITS)

# %% [markdown]
# The solutions are in [solutions/01_tokens_and_embedding.py](solutions/01_tokens_and_embedding.py).
#
# ## Where to read on
#
# - [gemma_np/model/embedding.py](../gemma_np/model/embedding.py), 40 lines with the backward pass.
# - [gemma_np/text/tokenizer.py](../gemma_np/text/tokenizer.py) around the sentencepiece library, and
#   [gemma_np/training/tokenizer_training.py](../gemma_np/training/tokenizer_training.py), which trains such a vocabulary.
# - Sennrich, Haddow and Birch, [Neural Machine Translation of Rare Words with Subword Units](https://arxiv.org/abs/1508.07909),
#   for byte-pair encoding; Kudo and Richardson, [SentencePiece](https://arxiv.org/abs/1808.06226).
# - Press and Wolf, [Using the Output Embedding to Improve Language Models](https://arxiv.org/abs/1608.05859), for the tied head.
#
# Next: [2. RMSNorm, and why 1 + w](02_rms_norm.ipynb).
