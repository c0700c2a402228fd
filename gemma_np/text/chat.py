"""Format conversations the way the instruction-tuned models were trained to read them.

Source: Gemma 2 report, tables 4 and 5. There are two roles; there is no system role.
"""

from collections.abc import Mapping, Sequence

from gemma_np.errors import GemmaError
from gemma_np.text.tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer

ROLES = ("user", "model")


def chat_ids(messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> list[int]:
    """Encode a conversation, up to and including the start of the model's next turn.

    messages: {"role": "user" or "model", "content": text}, alternating, the user's first and last. Control pieces in
    the content are encoded as text; whitespace around it is stripped.

    Raises GemmaError for an unknown role and when the turns do not alternate.
    """
    check_messages(messages)
    ids = [tokenizer.bos]
    for message in messages:
        for part in turn_ids(message, tokenizer):
            ids += part
    opening, _, _ = turn_ids({"role": "model", "content": ""}, tokenizer)
    return ids + opening


def turn_ids(message: Mapping[str, str], tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
    """Encode the three parts of a turn: `<start_of_turn>` and the role, the content, `<end_of_turn>` and a newline."""
    opening = [tokenizer.id(START_OF_TURN), *tokenizer.encode_verbatim(f"{message['role']}\n")]
    closing = [tokenizer.id(END_OF_TURN), *tokenizer.encode_verbatim("\n")]
    return opening, tokenizer.encode_verbatim(message["content"].strip()), closing


def check_messages(messages: Sequence[Mapping[str, str]], last: str = "user") -> None:
    """Check that user and model alternate, from the user to `last`. Raises GemmaError when they do not."""
    if not messages:
        raise GemmaError("messages: none, expected at least one from the user")
    for number, message in enumerate(messages):
        if set(message) != {"role", "content"} or not isinstance(message["content"], str):
            raise GemmaError(f"message {number}: {message!r}, expected exactly role and content, both text")
        role, expected = message["role"], ROLES[number % 2]
        if role not in ROLES:
            raise GemmaError(f"message {number}: role {role!r}, expected 'user' or 'model' (the format has no other)")
        if role != expected:
            raise GemmaError(f"message {number}: role {role!r}, expected {expected!r} (user and model take turns)")
    if messages[-1]["role"] != last:
        raise GemmaError(f"messages: the last is the {messages[-1]['role']}'s, expected the {last}'s")
