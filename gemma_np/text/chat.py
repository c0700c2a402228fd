"""Format conversations the way the instruction-tuned models were trained to read them.

The format has two roles. A system message stands at the beginning of the user's first turn, as in Google's template for
Gemma 3; the role assistant, of other formats, is the model's.

Source: Gemma 2 report, tables 4 and 5.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, cycle

from gemma_np.errors import GemmaError, quoted
from gemma_np.text.tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer

ROLES = ("user", "model")
OTHER_NAMES = {"assistant": "model"}
SYSTEM = "system"


def chat_ids(messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> list[int]:
    """Encode a conversation, up to and including the start of the model's next turn.

    messages: {"role": "user" or "model", "content": text}, alternating, the user's first and last; "assistant" is taken
    for "model", and the first message may be one of "system". Control pieces in the content are encoded as text;
    whitespace around it is stripped.

    Raises GemmaError for an unknown role and when the turns do not alternate.
    """
    check_messages(messages)
    ids = [tokenizer.bos]
    for turn in as_turns(messages):
        for part in turn_ids(turn, tokenizer):
            ids += part
    opening, _, _ = turn_ids({"role": "model", "content": ""}, tokenizer)
    return ids + opening


def as_turns(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return the turns of a conversation, each the user's or the model's; a system message begins the first of them."""
    turns = [{"role": _role(message), "content": message["content"]} for message in messages]
    if turns[0]["role"] == SYSTEM:
        system = turns.pop(0)["content"].strip()
        turns[0]["content"] = f"{system}\n\n{turns[0]['content'].lstrip()}"
    return turns


def turn_ids(turn: Mapping[str, str], tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
    """Encode the three parts of a turn: `<start_of_turn>` and the role, the content, `<end_of_turn>` and a newline."""
    opening = [tokenizer.id(START_OF_TURN), *tokenizer.encode_verbatim(f"{turn['role']}\n")]
    closing = [tokenizer.id(END_OF_TURN), *tokenizer.encode_verbatim("\n")]
    return opening, tokenizer.encode_verbatim(turn["content"].strip()), closing


def check_messages(messages: Sequence[Mapping[str, str]], last: str = "user") -> None:
    """Check that user and model alternate, from the user to `last`; a system message may stand before them.

    Raises GemmaError when they do not.
    """
    if isinstance(messages, str):
        raise GemmaError(f"messages: {quoted(messages)}, expected a list of {{'role': ..., 'content': ...}}")
    if not messages:
        raise GemmaError("messages: none, expected at least one from the user")
    system = [SYSTEM] if messages[0].get("role") == SYSTEM else []
    for number, (message, expected) in enumerate(zip(messages, chain(system, cycle(ROLES)), strict=False)):
        if set(message) != {"role", "content"} or not isinstance(message["content"], str):
            raise GemmaError(f"message {number}: {message!r}, expected exactly role and content, both text")
        role = message["role"]
        if role not in (*ROLES, *OTHER_NAMES, SYSTEM):
            raise GemmaError(f"message {number}: role {role!r}, expected 'system', 'user' or 'model' (or 'assistant')")
        if _role(message) != expected:
            raise GemmaError(f"message {number}: role {role!r}, expected {expected!r} (user and model take turns)")
    if _role(messages[-1]) != last:
        raise GemmaError(f"messages: the last is the {messages[-1]['role']}'s, expected the {last}'s")


def _role(message: Mapping[str, str]) -> str:
    """Return the role of a message by the format's own name."""
    return OTHER_NAMES.get(message["role"], message["role"])
