"""Ask a running server for its greedy answers, by the OpenAI completions API, as of llama.cpp's server and vLLM."""

import json
from collections.abc import Sequence
from typing import Any

from gemma_np.errors import GemmaError, quoted
from gemma_np.json_input import TEXT, Schema, list_of, object_of, optional, parse_json, whole_number
from gemma_np.oracle.answers import ANSWER, Answer, answer_of
from gemma_np.oracle.judge_tokens import difference_of_text
from gemma_np.text.tokenizer import Tokenizer

PROMPTS = (
    "The capital of France is",
    "To be, or not to be, that is",
    "def fibonacci(n):",
    "1, 2, 3, 4, 5,",
    "Die Hauptstadt von Deutschland ist",
)
"""What is asked by default."""

_TIMEOUT = 600.0  # seconds
_MODELS = object_of({"data": list_of(object_of({"id": TEXT}))})
_IDS = object_of({"tokens": list_of(whole_number(0))})
_USAGE = optional(object_of({"prompt_tokens": optional(whole_number(0))}))
_REPLY = object_of({**ANSWER.fields, "usage": _USAGE})


def ask(url: str, prompts: Sequence[str], max_tokens: int, tokenizer: Tokenizer) -> list[Answer]:
    """Return the greedy answers to prompts of the first model that a server lists, with the log-probabilities of the 5
    most likely tokens.

    url: of the server, such as http://localhost:8080. Where it has a route /tokenize, the prompt of an answer is what
    the engine itself reads.

    Raises GemmaError when the server does not answer, or not in this format.
    """
    url = url.rstrip("/").removesuffix("/v1")
    models = _request(f"{url}/v1/models", _MODELS)["data"]
    if not models:
        raise GemmaError(f"{url}: no models, expected one")
    return [_answer(url, models[0]["id"], prompt, max_tokens, tokenizer) for prompt in prompts]


def _answer(url: str, model: str, prompt: str, max_tokens: int, tokenizer: Tokenizer) -> Answer:
    asked = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 5}
    asked["return_tokens_as_token_ids"] = True  # for vLLM; the text of a token may be that of two
    reply = _request(f"{url}/v1/completions", _REPLY, asked)
    ids = _ids_of(url, model, prompt)
    answer = answer_of(ids or prompt, reply, f"{url}: {quoted(prompt)}", tokenizer)
    if ids:
        return answer._replace(wrong_prompt=difference_of_text(ids, prompt, tokenizer))
    count = (reply.get("usage") or {}).get("prompt_tokens")
    if count in (None, len(answer.prompt)):
        return answer
    return answer._replace(ids=[], top=[], wrong_prompt=f"it has {count} tokens, expected {len(answer.prompt)}")


def _ids_of(url: str, model: str, prompt: str) -> list[int] | None:
    """Return what the engine reads for a prompt; None when it does not say."""
    asked = {"content": prompt, "add_special": True, "parse_special": True}  # for llama.cpp
    asked |= {"model": model, "prompt": prompt}  # for vLLM
    try:
        return _request(f"{url}/tokenize", _IDS, asked)["tokens"]
    except GemmaError:
        return None


def _request(url: str, schema: Schema, value: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what a server answers to a POST of a JSON value, or to a GET without one."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    content = None if value is None else json.dumps(value).encode()
    try:
        with urlopen(Request(url, content, {"Content-Type": "application/json"}), timeout=_TIMEOUT) as response:
            text = response.read().decode()
    except HTTPError as error:
        says = quoted(error.read().decode(errors="replace"))
        raise GemmaError(f"{url}: status {error.code} with {says}, expected an answer") from None
    except (OSError, ValueError, HTTPException) as error:
        raise GemmaError(f"{url}: no answer ({getattr(error, 'reason', error)}), expected a running server") from None
    reply: dict[str, Any] = parse_json(text, schema, url)
    return reply
