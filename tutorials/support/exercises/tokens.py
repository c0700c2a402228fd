"""The exercises on tokens."""

import re
from functools import cache
from itertools import pairwise

import numpy as np

from gemma_np.gemma import BUNDLED
from gemma_np.text.tokenizer import Tokenizer
from support.exercise import Cases, Exercise

WORDS = ("▁absence", "▁answers", "▁asked", "▁becomes", "▁lighthouse", "▁look", "▁outrageous", "▁serves", "▁which")


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer((BUNDLED["shakespeare-1m"] / "tokenizer.model").read_bytes())


@cache
def vocabulary() -> dict[str, int]:
    """Return the trained pieces of the bundled tokenizer, {piece: id}: all but the control pieces and the bytes."""
    tokenizer = _tokenizer()
    return {tokenizer.piece(id): id for id in range(tokenizer.id("<0xFF>") + 1, len(tokenizer))}


def _merge_cases(generator: np.random.Generator) -> Cases:
    texts = {
        "two characters": "he",
        "three characters": "her",
        "a word": "▁question",
        "a word that is not split into its longest pieces": "▁later",
        "many words": "".join(generator.permutation(WORDS)),
    }
    return {case: (text, vocabulary()) for case, text in texts.items()}


def _merged(text: str, ids: dict[str, int]) -> list[int]:
    return _tokenizer().encode(text.replace("▁", " "), bos=False)


def _longest_first(text: str, ids: dict[str, int]) -> list[int]:
    found = []
    while text:
        piece = next(text[:end] for end in range(len(text), 0, -1) if text[:end] in ids)
        found.append(ids[piece])
        text = text[len(piece) :]
    return found


def _merged_by(text: str, ids: dict[str, int], sign: int, most: int = 10_000) -> list[int]:
    """Merge, at most `most` times, the pair with the lowest sign * id; with a sign of 0, the leftmost pair."""
    pieces = list(text)
    for _ in range(most):
        pairs = [(sign * ids[a + b], n) for n, (a, b) in enumerate(pairwise(pieces)) if a + b in ids]
        if not pairs:
            break
        _, n = min(pairs)
        pieces[n : n + 2] = [pieces[n] + pieces[n + 1]]
    return [ids[piece] for piece in pieces]


MERGE = Exercise(
    reference=_merged,
    cases=_merge_cases,
    mistakes={
        "the longest matching piece is taken from the left; merge neighbours, lowest id first": _longest_first,
        "the first pair from the left is merged; merge the pair whose piece has the lowest id": lambda text, ids: (
            _merged_by(text, ids, sign=0)
        ),
        "the pair whose piece has the highest id is merged; merge the one with the lowest": lambda text, ids: (
            _merged_by(text, ids, sign=-1)
        ),
        "it stops after one merge; continue until no pair of neighbours is a piece": lambda text, ids: _merged_by(
            text, ids, sign=1, most=1
        ),
        "it returns the pieces; return their ids, ids[piece]": lambda text, ids: [
            _tokenizer().piece(id) for id in _merged(text, ids)
        ],
        "nothing is merged; merge neighbours until no pair of them is a piece": lambda text, ids: [
            ids[character] for character in text
        ],
    },
)


def _text_cases(generator: np.random.Generator) -> Cases:
    texts = {
        "one word": "the",
        "several words": "to be or not",
        "a text with <bos>": "<bos>To be, or not",
        "spaces at the beginning, and two in a row": "  two  spaces",
        "characters that are stored as bytes": "naïve café",
        "a number, and <bos> and <eos>": f"<bos>In {generator.integers(1000, 2000)}<eos>",
    }
    tokenizer = _tokenizer()
    return {case: ([tokenizer.piece(id) for id in tokenizer.encode(text, bos=False)],) for case, text in texts.items()}


def _text(pieces: list[str]) -> str:
    return _tokenizer().decode(_tokenizer().id(piece) for piece in pieces)


def _characters(pieces: list[str]) -> str:
    """Read each byte as if it were a character."""
    joined = re.sub("<0x(..)>", lambda byte: chr(int(byte[1], 16)), "".join(pieces))
    return re.sub("<bos>|<eos>", "", joined).replace("▁", " ")


def _bytes_dropped(pieces: list[str]) -> str:
    return _text([piece for piece in pieces if not piece.startswith("<0x")])


TEXT = Exercise(
    reference=_text,
    cases=_text_cases,
    mistakes={
        "▁ stands for a space; replace it": lambda pieces: _text(pieces).replace(" ", "▁"),
        "there is a space between any two pieces; join them without one, the spaces are in the pieces": (
            lambda pieces: " ".join(pieces)
        ),
        "<bos> and <eos> stand for no text; leave them out": lambda pieces: "".join(
            piece if piece in ("<bos>", "<eos>") else _text([piece]) for piece in pieces
        ),
        "the spaces at the beginning are missing; keep all of them": lambda pieces: _text(pieces).lstrip(),
        "each byte became a character of its own; collect all bytes, then decode them together": _characters,
        "<0xC3> is a byte, not six characters; int('C3', 16) is its number": lambda pieces: re.sub(
            "<bos>|<eos>", "", "".join(pieces)
        ).replace("▁", " "),
        "the bytes are missing; bytes([0xC3, 0xA9]).decode() is a character": _bytes_dropped,
        "each byte was decoded by itself, which gives no character; collect all bytes, then decode them together": (
            lambda pieces: "".join(_text([piece]) for piece in pieces)
        ),
    },
)
