"""Judge an engine's tokens: the ids of texts and of conversations, against the reference's, with what differs named.

A line of the file has a text or messages, and the engine's ids of it:

    {"text": "To be", "ids": [2, 1841, 577]}
    {"messages": [{"role": "user", "content": "Hello"}], "ids": [2, 106, 1645]}
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gemma_np.errors import GemmaError
from gemma_np.json_input import TEXT, list_of, object_of, optional, read_json_lines, whole_number
from gemma_np.text.chat import as_turns, chat_ids, turn_ids
from gemma_np.text.tokenizer import Tokenizer

_MESSAGES = list_of(object_of({"role": TEXT, "content": TEXT}))
_LINE = object_of({"text": optional(TEXT), "messages": optional(_MESSAGES), "ids": list_of(whole_number(0))})

Messages = Sequence[dict[str, str]]


class TokenJudgement(NamedTuple):
    """The verdict on the ids of one text or conversation."""

    source: str  # file and line
    difference: str  # what is wrong; empty when the ids are right


def judge_tokens(path: str | Path, tokenizer: Tokenizer) -> list[TokenJudgement]:
    """Judge the ids in a file of JSON lines. Raises GemmaError, with the line, for one that is not valid."""
    judgements = []
    for source, line in read_json_lines(Path(path), _LINE, "a file with a text and its ids per line, as JSON"):
        try:
            judgements.append(TokenJudgement(source, _difference_of_line(line, tokenizer)))
        except GemmaError as error:
            raise GemmaError(f"{source}: {error}") from None
    if not judgements:
        raise GemmaError(f"{path}: no lines, expected a text and its ids on each")
    return judgements


def _difference_of_line(line: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    text, messages = line.get("text"), line.get("messages")
    if text is not None and messages is None:
        return difference_of_text(line["ids"], text, tokenizer)
    if messages is not None and text is None:
        return _difference(
            line["ids"], chat_ids(messages, tokenizer), _other_turns(as_turns(messages), tokenizer), tokenizer
        )
    raise GemmaError("expected either text or messages")


def difference_of_text(ids: list[int], text: str, tokenizer: Tokenizer) -> str:
    """Return what is wrong with an engine's ids of a text, in words; an empty text when they are right."""
    return _difference(ids, tokenizer.encode(text), _other_texts(text, tokenizer), tokenizer)


def _difference(
    found: list[int], right: list[int], others: Iterator[tuple[str, list[int]]], tokenizer: Tokenizer
) -> str:
    """Return what is wrong with ids, in words."""
    for says, ids in (("", right), *others):
        for ends, changed in _other_ends(ids, tokenizer):
            if found == changed:
                return "; ".join(filter(None, (says, ends)))
    return _first_difference(found, right, tokenizer)


def _other_ends(ids: list[int], tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    """Yield ids with another beginning and end."""
    bos, eos = tokenizer.bos, tokenizer.eos
    for says, start in (("", ids), ("<bos> is missing", ids[1:]), ("<bos> stands twice", [bos, *ids])):
        yield says, start
        yield "; ".join(filter(None, (says, "<eos> is added at the end"))), [*start, eos]


def _other_texts(text: str, tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    """Yield the ids of a text after what engines do to it."""
    changed = {
        "a space is put in front": f" {text}",
        "spaces at the ends are removed": text.strip(),
        "runs of spaces become one": re.sub(" +", " ", text),
        "white space becomes single spaces": " ".join(text.split()),
        "a space is put in front, and runs of spaces become one": " " + re.sub(" +", " ", text).strip(),
        "newlines become spaces": text.replace("\n", " "),
        "the text is normalized (NFKC)": unicodedata.normalize("NFKC", text),
        "the text is decomposed (NFD)": unicodedata.normalize("NFD", text),
        "the text is in lower case": text.lower(),
    }
    for says, other in changed.items():
        if other != text:
            yield says, tokenizer.encode(other)
    yield "control pieces are encoded as text", [tokenizer.bos, *tokenizer.encode_verbatim(text)]
    words = [piece for word in re.findall(r"\s?\S+|\s+", text) for piece in tokenizer.encode(word, bos=False)]
    yield "the text is encoded word by word", [tokenizer.bos, *words]


def _other_turns(messages: Messages, tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    """Yield the ids of a conversation in other formats."""
    turns = [turn_ids(message, tokenizer) for message in messages]
    opening, _, closing = turn_ids({"role": "model", "content": ""}, tokenizer)
    newline, end = closing[1:], closing[:1]

    def joined(parts: Sequence[tuple[list[int], list[int], list[int]]], last: list[int]) -> list[int]:
        return [tokenizer.bos, *(token for turn in parts for part in turn for token in part), *last]

    yield "the model's turn is not opened", joined(turns, [])
    yield "there is no newline after <start_of_turn>model", joined(turns, opening[: -len(newline)])
    yield (
        "there is no newline after the roles",
        joined([(first[: -len(newline)], content, last) for first, content, last in turns], opening[: -len(newline)]),
    )
    yield (
        "there is no newline after <end_of_turn>",
        joined([(first, content, end) for first, content, _ in turns], opening),
    )
    yield "the model's role is called assistant", _renamed(messages, {"model": "assistant"}, tokenizer)
    yield "a space follows the role's newline", _spaced(messages, tokenizer)
    kept = [tokenizer.encode_verbatim(message["content"]) for message in messages]
    unstripped = [(first, content, last) for (first, _, last), content in zip(turns, kept, strict=True)]
    yield "white space around the contents is kept", joined(unstripped, opening)
    as_text = "".join(f"<start_of_turn>{one['role']}\n{one['content'].strip()}<end_of_turn>\n" for one in messages)
    as_text += "<start_of_turn>model\n"
    yield "control pieces in the contents are not encoded as text", tokenizer.encode(as_text)
    yield "the turns' control pieces are encoded as text", [tokenizer.bos, *tokenizer.encode_verbatim(as_text)]
    yield "there are no turns: only the last content", tokenizer.encode(messages[-1]["content"])


def _renamed(messages: Messages, names: dict[str, str], tokenizer: Tokenizer) -> list[int]:
    ids = [tokenizer.bos]
    for message in [*messages, {"role": "model", "content": ""}]:
        first, content, last = turn_ids({**message, "role": names.get(message["role"], message["role"])}, tokenizer)
        ids += [*first, *content, *last]
    return ids[: -len(last)]


def _spaced(messages: Messages, tokenizer: Tokenizer) -> list[int]:
    ids = [tokenizer.bos]
    for message in messages:
        first, _, last = turn_ids(message, tokenizer)
        ids += [*first, *tokenizer.encode_verbatim(f" {message['content'].strip()}"), *last]
    opening, _, _ = turn_ids({"role": "model", "content": ""}, tokenizer)
    return ids + opening


def _first_difference(found: list[int], right: list[int], tokenizer: Tokenizer) -> str:
    """Describe the first place where ids differ, by the pieces there."""
    place = next(
        (n for n, (one, other) in enumerate(zip(found, right, strict=False)) if one != other),
        min(len(found), len(right)),
    )
    theirs, ours = (_pieces(ids[place : place + 3], tokenizer) for ids in (found, right))
    what = ""
    if any(piece.startswith("<0x") for piece in theirs + ours):
        what = " (bytes)"
    elif any(re.search(r"\d{2}", piece) for piece in theirs):
        what = " (digits are not split)"
    return f"at {place} it has {' '.join(theirs) or 'the end'}, expected {' '.join(ours) or 'the end'}{what}"


def _pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    return [repr(tokenizer.piece(id)) if id < len(tokenizer) else f"id {id}" for id in ids]
