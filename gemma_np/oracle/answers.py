"""Read an engine's answers: JSON lines in a few keys of our own, or as servers return them.

A line has the prompt, as text or ids, and what the engine wrote greedily, with the log-probabilities if it has them:

    {"prompt": "To be", "ids": [262, 1], "top_logprobs": [{"262": -0.1, "7": -2.5}, {"1": -0.3}]}
    {"prompt": [2, 64], "text": " or not"}
    {"prompt": "To be", "choices": [{"text": " or", "logprobs": {"tokens": [" or"], "top_logprobs": [{" or": -0.1}]}}]}
    {"prompt": "To be", "completion_probabilities": [{"id": 262, "top_logprobs": [{"id": 262, "logprob": -0.1}]}]}

The third is the OpenAI completions API, also of vLLM, Ollama and llama-cpp-python; the fourth is that of llama.cpp's
server.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gemma_np.errors import GemmaError, quoted
from gemma_np.json_input import NUMBER, TEXT, Schema, list_of, object_of, optional, read_json_lines, whole_number
from gemma_np.text.tokenizer import Tokenizer

_IDS = list_of(whole_number(0))
_PROMPT = Schema("text or a list of ids", lambda value: isinstance(value, str | list) and bool(value))
_TOP = list_of(optional(object_of({}, others=optional(NUMBER))))
_CHOICE = object_of(
    {"text": TEXT, "logprobs": optional(object_of({"tokens": list_of(TEXT), "top_logprobs": optional(_TOP)}))}
)
_WITH_ID = object_of({"id": whole_number(0), "logprob": NUMBER})
_STEP = object_of({"id": whole_number(0), "top_logprobs": optional(list_of(_WITH_ID))})
_LINE = object_of(
    {
        "prompt": _PROMPT,
        "ids": optional(_IDS),
        "text": optional(TEXT),
        "top_logprobs": optional(_TOP),
        "choices": optional(list_of(_CHOICE)),
        "completion_probabilities": optional(list_of(_STEP)),
    }
)

TopLogProbs = list[dict[int, float]]
"""For each token: id -> log-probability, in nats."""


class Answer(NamedTuple):
    """One answer of an engine."""

    source: str  # file and line
    prompt: list[int]
    ids: list[int]  # what the engine wrote
    top: TopLogProbs  # as many as ids; empty when the engine gave none


def read_answers(path: str | Path, tokenizer: Tokenizer) -> list[Answer]:
    """Read the answers in a file of JSON lines.

    Raises GemmaError, with the line, for one that is not valid, and for a file without answers.
    """
    lines = read_json_lines(Path(path), _LINE, "a file with one answer per line, as JSON")
    answers = [answer_of(line, source, tokenizer) for source, line in lines]
    if not answers:
        raise GemmaError(f"{path}: no answers, expected one per line, as JSON")
    return answers


def answer_of(line: Mapping[str, Any], source: str, tokenizer: Tokenizer) -> Answer:
    """Return the answer in one JSON object. Raises GemmaError when it is none."""
    prompt = line["prompt"] if isinstance(line["prompt"], list) else tokenizer.encode(line["prompt"])
    if steps := line.get("completion_probabilities"):
        ids = [step["id"] for step in steps]
        top = [{one["id"]: one["logprob"] for one in step.get("top_logprobs") or ()} for step in steps]
    elif choices := line.get("choices"):
        ids, top = _of_choice(choices[0], prompt, source, tokenizer)
    elif line.get("ids"):
        ids, top = line["ids"], [_by_id(one, source, tokenizer) for one in line.get("top_logprobs") or ()]
    elif line.get("text"):
        ids, top = _continuation(prompt, line["text"], tokenizer), []
    else:
        raise GemmaError(f"{source}: no answer, expected ids, text, choices or completion_probabilities")
    if len(top) not in (0, len(ids)):
        raise GemmaError(f"{source}: top_logprobs: {len(top)}, expected one for each of {len(ids)} tokens")
    for token in [*prompt, *ids, *(token for one in top for token in one)]:
        if token >= len(tokenizer):
            raise GemmaError(f"{source}: id {token}, expected 0 to {len(tokenizer) - 1}")
    return Answer(source, prompt, ids, top if any(top) else [])


def _of_choice(
    choice: Mapping[str, Any], prompt: list[int], source: str, tokenizer: Tokenizer
) -> tuple[list[int], TopLogProbs]:
    logprobs = choice.get("logprobs")
    if not logprobs:
        return _continuation(prompt, choice["text"], tokenizer), []
    ids = [_id_of(piece, source, tokenizer) for piece in logprobs["tokens"]]
    return ids, [_by_id(one, source, tokenizer) for one in logprobs.get("top_logprobs") or ()]


def _by_id(logprobs: Mapping[str, float | None] | None, source: str, tokenizer: Tokenizer) -> dict[int, float]:
    return {_id_of(name, source, tokenizer): value for name, value in (logprobs or {}).items() if value is not None}


def _id_of(name: str, source: str, tokenizer: Tokenizer) -> int:
    """Return the id that a server calls by a number, as token_id:N, or by its text."""
    number = name.removeprefix("token_id:")
    if number.isdecimal() and (number != name or name not in tokenizer):
        return int(number)
    as_byte = f"<0x{ord(name):02X}>" if len(name) == 1 and name.isascii() else name
    for piece in (name.replace(" ", "\u2581"), name, as_byte):
        if piece in tokenizer:
            return tokenizer.id(piece)
    raise GemmaError(f"{source}: {quoted(name)}: no token of the vocabulary; ask the engine for ids")


def _continuation(prompt: list[int], text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a text after a prompt: those of both together, if these begin with the prompt."""
    together = tokenizer.encode(tokenizer.decode(prompt) + text)
    if together[: len(prompt)] == prompt and len(together) > len(prompt):
        return together[len(prompt) :]
    return tokenizer.encode(text, bos=False)
