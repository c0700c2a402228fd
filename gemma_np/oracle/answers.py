"""Read an engine's answers: JSON lines in a few keys of our own, or as servers return them.

A line has the prompt, as text or ids, and what the engine wrote greedily, with the log-probabilities if it has them:

    {"prompt": "To be", "ids": [262, 1], "top_logprobs": [{"262": -0.1, "7": -2.5}, {"1": -0.3}]}
    {"prompt": [2, 64], "text": " or not"}
    {"prompt": "To be", "choices": [{"text": " or", "logprobs": {"tokens": [" or"], "top_logprobs": [{" or": -0.1}]}}]}
    {"prompt": "To be", "choices": [{"text": " or", "logprobs": {"content": [{...}, {...}]}}]}
    {"prompt": "To be", "completion_probabilities": [{...}, {...}]}

The third is the OpenAI completions API, as of vLLM; the last two are llama.cpp's, for `/v1/completions` and for
`/completion`. In these, a token is {"id": 262, "token": " or", "top_logprobs": [{"id": 262, "logprob": -0.1}]}.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gemma_np.errors import GemmaError, quoted
from gemma_np.json_input import NUMBER, TEXT, Schema, list_of, object_of, optional, read_json_lines, whole_number
from gemma_np.text.tokenizer import Tokenizer

_ID = whole_number(0)
_PROMPT = Schema("text or a list of ids", lambda value: isinstance(value, str | list) and bool(value), others=_ID)
_BY_TEXT = list_of(optional(object_of({}, others=optional(NUMBER))))
_BY_ID = list_of(
    optional(
        Schema(
            "an object whose names are ids",
            lambda value: isinstance(value, dict) and all(re.fullmatch("[0-9]{1,9}", name) for name in value),
            others=optional(NUMBER),
        )
    )
)
_TOKEN = {"id": optional(_ID), "token": optional(TEXT)}
_STEPS = list_of(object_of({**_TOKEN, "top_logprobs": optional(list_of(object_of({**_TOKEN, "logprob": NUMBER})))}))
_LOGPROBS = object_of(
    {"content": optional(_STEPS), "tokens": optional(list_of(TEXT)), "top_logprobs": optional(_BY_TEXT)}
)
ANSWER = object_of(
    {
        "ids": optional(list_of(_ID)),
        "top_logprobs": optional(_BY_ID),
        "text": optional(TEXT),
        "choices": optional(list_of(object_of({"text": TEXT, "logprobs": optional(_LOGPROBS)}))),
        "completion_probabilities": optional(_STEPS),
    }
)
"""What a line has besides the prompt, and what a server returns."""

_LINE = object_of({"prompt": _PROMPT, **ANSWER.fields})
_LOG_OF_ZERO = -100.0  # servers write -1e38 or -9999 for the logarithm of a probability that float32 rounds to 0

_Token = int | str  # what an engine calls a token: its id, or its text

TopLogProbs = list[dict[int, float]]
"""For each token: id -> log-probability, in nats."""


class Answer(NamedTuple):
    """One answer of an engine."""

    source: str  # file and line
    prompt: list[int]
    ids: list[int]  # what the engine wrote; none when it is not known what it read
    top: TopLogProbs  # as many as ids; empty when the engine gave none
    wrong_prompt: str = ""  # what is wrong with the ids that the engine reads for the text of the prompt


def read_answers(path: str | Path, tokenizer: Tokenizer) -> list[Answer]:
    """Read the answers in a file of JSON lines.

    Raises GemmaError, with the line, for one that is not valid, and for a file without answers.
    """
    lines = read_json_lines(Path(path), _LINE, "a file with one answer per line, as JSON")
    answers = [answer_of(line["prompt"], line, source, tokenizer) for source, line in lines]
    if not answers:
        raise GemmaError(f"{path}: no answers, expected one per line, as JSON")
    return answers


def answer_of(prompt: str | list[int], value: Mapping[str, Any], source: str, tokenizer: Tokenizer) -> Answer:
    """Return the answer in a JSON object of the schema `ANSWER`. Raises GemmaError when it has none."""
    if isinstance(prompt, str):
        prompt = tokenizer.encode(prompt)
    choice = value["choices"][0] if value.get("choices") else {"text": value.get("text")}
    tokens, tops = _tokens_of(value, choice.get("logprobs") or {})
    if tokens:
        ids = [_id_of(token, source, tokenizer) for token in tokens]
    elif text := choice.get("text"):
        ids = _continuation(prompt, text, tokenizer)
    elif text == "":
        raise GemmaError(f"{source}: text: empty, expected what the engine wrote; ask for ids, or leave the line out")
    else:
        raise GemmaError(f"{source}: no answer, expected ids, text, choices or completion_probabilities")
    if len(tops) not in (0, len(ids)):
        raise GemmaError(f"{source}: top_logprobs: {len(tops)}, expected one for each of {len(ids)} tokens")
    top = [
        {_id_of(token, source, tokenizer): logprob for token, logprob in one.items() if logprob > _LOG_OF_ZERO}
        for one in tops
    ]
    for token in [*prompt, *ids, *(token for one in top for token in one)]:
        if token >= len(tokenizer):
            raise GemmaError(f"{source}: id {token}, expected 0 to {len(tokenizer) - 1}")
    return Answer(source, prompt, ids, top if any(top) else [])


def _tokens_of(value: Mapping[str, Any], logprobs: Mapping[str, Any]) -> tuple[list[_Token], list[dict[_Token, float]]]:
    """Return the tokens, and the log-probabilities at each of them, by whatever the engine calls a token."""
    if steps := logprobs.get("content") or value.get("completion_probabilities"):
        tops = [{_token_of(one): one["logprob"] for one in step.get("top_logprobs") or ()} for step in steps]
        return [_token_of(step) for step in steps], tops
    if ids := value.get("ids"):
        return ids, [{int(id): logprob for id, logprob in one} for one in _pairs(value)]
    return logprobs.get("tokens") or [], [dict(one) for one in _pairs(logprobs)]


def _pairs(value: Mapping[str, Any]) -> list[list[tuple[str, float]]]:
    tops = value.get("top_logprobs") or ()
    return [[pair for pair in (one or {}).items() if pair[1] is not None] for one in tops]


def _token_of(step: Mapping[str, Any]) -> _Token:
    return step["id"] if step.get("id") is not None else step.get("token") or ""


def _id_of(token: _Token, source: str, tokenizer: Tokenizer) -> int:
    """Return the id of what an engine calls by its id, as token_id:N or by its text."""
    if isinstance(token, int):
        return token
    if match := re.fullmatch("token_id:([0-9]{1,9})", token):
        return int(match[1])
    as_byte = f"<0x{ord(token):02X}>" if len(token) == 1 and token.isascii() else token
    for piece in (token.replace(" ", "\u2581"), token, as_byte):
        if piece in tokenizer:
            return tokenizer.id(piece)
    raise GemmaError(f"{source}: {quoted(token)}: no token of the vocabulary; ask the engine for ids")


def _continuation(prompt: list[int], text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a text after a prompt: those of both together, if these begin with the prompt."""
    together = tokenizer.encode(tokenizer.decode(prompt) + text)
    if together[: len(prompt)] == prompt and len(together) > len(prompt):
        return together[len(prompt) :]
    return tokenizer.encode(text, bos=False)
