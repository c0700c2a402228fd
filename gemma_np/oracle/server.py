"""Ask a running server for its greedy answers, by the OpenAI completions API."""

import json
from collections.abc import Sequence
from typing import Any

from gemma_np.errors import GemmaError
from gemma_np.json_input import object_of, parse_json
from gemma_np.oracle.answers import Answer, answer_of
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


def ask(url: str, prompts: Sequence[str], max_tokens: int, tokenizer: Tokenizer) -> list[Answer]:
    """Return a server's greedy answers to prompts, with the log-probabilities of its 5 most likely tokens.

    url: of the server, such as http://localhost:8080. Raises GemmaError when it does not answer, or not in this format.
    """
    answers = []
    for prompt in prompts:
        asked = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 5}
        reply = _post(f"{url.rstrip('/')}/v1/completions", asked)
        answers.append(answer_of({**reply, "prompt": prompt}, f"{url}: {prompt!r}", tokenizer))
    return answers


def _post(url: str, value: dict[str, Any]) -> dict[str, Any]:
    from urllib.request import Request, urlopen

    request = Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=_TIMEOUT) as response:
            text = response.read().decode()
    except (OSError, ValueError) as error:
        raise GemmaError(f"{url}: no answer ({getattr(error, 'reason', error)}), expected a running server") from None
    reply: dict[str, Any] = parse_json(text, object_of({}), url)
    return reply
