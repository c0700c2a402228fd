# %% [markdown]
# # 1. Tokens
#
# Welcome to the first of twenty short tutorials. After them you can write Google's Gemma 2 yourself. You need Python
# and some linear algebra, but no knowledge of language models.
#
# To run this notebook, in the root of a clone of the repository: `pip install -e ".[tutorials]"`, then `jupyter lab
# --ServerApp.root_dir=. tutorials/01_tokens.ipynb`. Run the cells from top to bottom with Shift-Enter.
#
# After this you can turn a text into the ids that Gemma reads, and ids back into a text; and you can say why one word
# is a single token and another is three. About 15 minutes. In the [Gemma 2 report](https://arxiv.org/abs/2408.00118):
# the paragraph "Tokenizer".
#
# Terms and letters: [glossary](glossary.md).

# %%
from collections import Counter
from itertools import pairwise

import numpy as np
from support import check, lines
from support.exercises import tokens as exercises
from support.figures import tokens as figures
from support.plots import pieces, use_style

import gemma_np
from gemma_np.config import RELEASED
from gemma_np.text.tokenizer import Tokenizer

# %%
use_style()
model = gemma_np.load()
tokenizer = model.tokenizer
parameters = sum(model.config.parameter_count().values())
print(f"a Gemma 2 of {parameters:,} parameters, which reads and writes {len(tokenizer):,} different tokens")

# %% [markdown]
# The model comes with the package. It has every part of Gemma 2, is more than two thousand times smaller than the
# smallest Gemma 2 that Google released, and has read nothing but Shakespeare.

# %%
released = sum(RELEASED["gemma-2-2b"].parameter_count().values())
print(f"Gemma 2 2B: {released:,} parameters, {released / parameters:,.0f} times as many")

# %% tags=["check"]
assert 2000 < released / parameters < 3000

# %% [markdown]
# ## A text becomes numbers
#
# A model computes with numbers, so a text has to become a list of numbers. With one number per word, new words could
# not be written; with one per letter, every text would become long. *Pieces* of words lie in between: a common word is
# one piece, a rare one is made of several. The vocabulary is the list of all pieces, and the index of a piece in it is
# its *id*. An occurrence of a piece in a text is called a *token*.

# %%
text = "To be, or not to be, that is the question."
ids = tokenizer.encode(text)
tokens = pieces(ids, tokenizer)
print("  ".join(f"{token} {id}" for token, id in zip(tokens, ids, strict=True)))
print(tokenizer.decode(ids))

# %% tags=["check"]
assert ids[1:] == tokenizer.encode(text, bos=False)
assert tokenizer.decode(ids) == text

# %% [markdown]
# Note three things:
#
# - A single space before a word belongs to the word's first piece, and is shown as ▁. Nothing is lost: decoding returns
#   exactly the same text.
# - The common word "the" is one piece, "question" is three.
# - `<bos>`, "beginning of sequence", comes first. It is one of the *control pieces*, which stand for no text. Every
#   text that a Gemma reads begins with it, exactly once; forgetting it is one of the most common mistakes.
#
# These lines add it, only once even if the text already has it. (The loop finds the other control pieces and turns each
# into its id; the sentencepiece library encodes the text between them.)

# %%
lines(Tokenizer.encode)

# %% [markdown]
# ### Digits, spaces, and characters outside the vocabulary
#
# **Predict:** How many tokens is 1599: one, two or four?
#
# <details><summary>Reveal</summary>
#
# Four, one for each digit. A number gets no piece of its own, however common it is.
#
# </details>

# %%
for sample in ("In 1599", "a café", "two  spaces"):
    print(f"{sample!r:15}", *pieces(tokenizer.encode(sample, bos=False), tokenizer))

# %% tags=["check"]
for sample in ("In 1599", "a café", "two  spaces"):
    assert tokenizer.decode(tokenizer.encode(sample, bos=False)) == sample
assert len(tokenizer.encode("1599", bos=False)) == 4

# %% [markdown]
# - Digits are *split*: a number has as many tokens as digits, so the model need not learn each number as a separate
#   word.
# - A run of spaces is one piece. Program code has many of them.
# - Characters outside the vocabulary are encoded as *bytes*: `<0xC3>` and `<0xA9>` are the two bytes of "é" in UTF-8.
#   There is a piece for each of the 256 bytes, so every text can be encoded. This small vocabulary was trained on
#   Shakespeare, which has no digits, so here digits are bytes as well; Gemma's own vocabulary of 256,000 pieces has a
#   piece for each digit.
#
# ### Where a text is split
#
# The vocabulary was trained by *byte-pair encoding*: start from single characters; then, again and again, make a new
# piece of the two neighbours that occur together most often. The new pieces get their ids in that order, the most
# frequent pair first.
#
# Here it is for a text of five words, which has six different characters. They get the ids 0 to 5. (The sentencepiece
# library gives them the last ids instead; that changes nothing, since they are never made by merging.)

# %%
words = [list(word) for word in ("low", "low", "lower", "newer", "new")]
vocabulary = sorted({character for word in words for character in word})
print({piece: id for id, piece in enumerate(vocabulary)})

for _ in range(5):
    pairs = Counter(pair for word in words for pair in pairwise(word))
    (a, b), count = pairs.most_common(1)[0]
    vocabulary.append(a + b)
    for word in words:
        while (a, b) in pairwise(word):
            place = list(pairwise(word)).index((a, b))
            word[place : place + 2] = [a + b]
    print(f"{len(vocabulary) - 1:2}: {a} + {b} ({count} times) ", *(" ".join(word) for word in words), sep="   ")

# %% tags=["check"]
assert vocabulary[6:] == ["lo", "low", "er", "ne", "new"]

# %% [markdown]
# To split a new text, repeat the same merges:
#
# 1. split the text into single characters;
# 2. of all neighbours that form a piece together, merge the two whose piece has the lowest id (the leftmost if it
#    occurs twice);
# 3. repeat until no two neighbours form a piece.
#
# With the vocabulary above, "lower" goes from `l o w e r` to `lo w e r` (6 is the lowest id), `low e r` (7) and `low
# er` (8): two tokens, with the ids 7 and 8. "now" stays `n o w`, three tokens: no two neighbours in it are a piece.
#
# **Predict:** How is "ner" split: as `ne r` or as `n er`?
#
# <details><summary>Reveal</summary>
#
# As `n er`. Both pairs are pieces, and "ne" stands further left, but "er" was made earlier (id 8) than "ne" (id 9).
# The lowest id wins.
#
# </details>
#
# So the longest piece does not always win. In the vocabulary of the bundled model, the piece ▁noble exists, but
# "nobler" is split differently:

# %%
print(*pieces(tokenizer.encode(" nobler", bos=False), tokenizer))
print({piece: tokenizer.id(piece) for piece in ("er", "le", "▁noble")})

# %% tags=["check"]
assert "▁noble" in tokenizer and "▁noble" not in pieces(tokenizer.encode(" nobler", bos=False), tokenizer)
assert tokenizer.id("er") < tokenizer.id("le")

# %% [markdown]
# "er" has a lower id than "le", so the e is merged with the r before the l can have it, and after that nothing can
# become ▁noble.
#
# The first pieces are short, and later ones are built from them:

# %%
first = tokenizer.id("<0xFF>") + 1  # before it are the control pieces, runs of spaces, and bytes
merged = [id for id in range(first, len(tokenizer)) if len(tokenizer.piece(id)) > 1]  # the single characters are last
lengths = np.array([len(tokenizer.piece(id)) for id in merged])
means = lengths[: len(lengths) // 100 * 100].reshape(-1, 100).mean(axis=1)  # of each hundred pieces
figures.lengths_of_pieces(merged, lengths, means)

longest = [tokenizer.piece(id) for id, length in zip(merged, lengths, strict=True) if length == lengths.max()]
print("the first:", *pieces(merged[:8], tokenizer), "  the longest:", *longest)

# %% tags=["check"]
assert means[0] < 3 < 4 < means[-1] and "ANTIPHOLUS" in longest

# %% [markdown]
# ANTIPHOLUS is there because two characters of one play have this name, which stands before everything they say. A
# vocabulary shows what it was trained on. Gemma's is so large because it was made for many languages.
#
# ## And back
#
# To turn ids into text, write their pieces one after the other, with a space for each ▁. Two things need care:
# control pieces stand for no text, and a character that is stored as bytes can only be decoded when all its bytes are
# there. Each byte alone is not a character:
#
# **Predict:** The two bytes of "é" are two tokens. What does a text look like that ends between them?
#
# <details><summary>Reveal</summary>
#
# It ends in �, the character that stands for bytes that cannot be decoded. One token later it is gone, and "é" is in
# its place.
#
# </details>

# %%
ids = tokenizer.encode("a café")
print(list(zip(ids, pieces(ids, tokenizer), strict=True)))
for number in range(1, len(ids) + 1):
    print(number, "tokens:", repr(tokenizer.decode(ids[:number])))

# %% tags=["check"]
assert tokenizer.decode(ids) == "a café"
assert bytes([0xC3, 0xA9]).decode() == "é"

# %% [markdown]
# A program that prints text token by token has to wait for the second byte (`Tokenizer.decode_stream` does).
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** Split a text as the tokenizer does. Spaces are already ▁, every character is a piece, and `ids` has the id of
# each piece.
#
# <details><summary>Hint 1</summary>
#
# Begin with `pieces = list(text)`. `pieces[n : n + 2] = [pieces[n] + pieces[n + 1]]` merges two neighbours.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# In a loop: collect `(id, n)` of all neighbours n, n + 1 whose text together is in `ids`. If there are none, return the
# ids of the pieces.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `min` of such pairs is the one with the lowest id, and the leftmost of equal ones.
#
# </details>


# %%
def merge(text, ids):
    """text with ▁ for spaces, ids {piece: id} -> list of ids"""
    ...


check(merge, exercises.MERGE)

# %% [markdown]
# **2.** The way back: from pieces to text. You get the pieces of a text, such as `["<bos>", "▁caf", "<0xC3>",
# "<0xA9>"]`. The control pieces that occur are `<bos>` and `<eos>`.
#
# <details><summary>Hint 1</summary>
#
# Collect bytes, not characters: `piece.encode()` is a piece as bytes.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A piece such as `<0xC3>` is a byte by itself: `int("C3", 16)` is 0xC3, and `bytes([0xC3])` one byte.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# At the end, `found.decode()` makes a text of all bytes.
#
# </details>


# %%
def to_text(pieces):
    """list of pieces -> the text, a string"""
    ...


check(to_text, exercises.TEXT)

# %% [markdown]
# The solutions are in [solutions/01_tokens.py](solutions/01_tokens.py).
#
# ## Further reading
#
# - [gemma_np/text/tokenizer.py](../gemma_np/text/tokenizer.py), a wrapper of the sentencepiece library, and
#   [gemma_np/training/tokenizer_training.py](../gemma_np/training/tokenizer_training.py), which trains such a
#   vocabulary.
# - Sennrich, Haddow and Birch, [Neural Machine Translation of Rare Words with Subword
#   Units](https://arxiv.org/abs/1508.07909), for byte-pair encoding; Kudo and Richardson,
#   [SentencePiece](https://arxiv.org/abs/1808.06226).
#
# From the next tutorial on you write your own Gemma 2, in one file: [my_gemma.py](my_gemma.py). It has the signatures
# and shapes of all its functions, and imports nothing but NumPy. Each tutorial says which ones to write, and
# `check_file("my_gemma.py", upto=...)` runs your file and says what is right, what differs first, and why.
#
# Next: [2. A real checkpoint](02_a_real_checkpoint.ipynb).
