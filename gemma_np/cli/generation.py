"""The commands that generate text: generate, chat.

Each raises GemmaError for bad input, as one line that `gemma-np` prints.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from gemma_np.cli.arguments import DRAFT_HELP, Command, add_dtype, add_model, read_ids, refuse_without
from gemma_np.cli.conversation import HELP, Conversation
from gemma_np.cli.options import add_number
from gemma_np.cli.terminal import print_message, print_status, printable, size_of
from gemma_np.compression.drafts import read_draft
from gemma_np.errors import GemmaError
from gemma_np.gemma import DEFAULT_CHAT, Gemma, load
from gemma_np.memory import peak_memory
from gemma_np.text.logprobs import TokenLogprob, token_logprob
from gemma_np.text.speculation import LOOKUP_TOKENS, MODEL_TOKENS, Acceptance

GENERATION = (
    *("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "ignore_eos"),
    *("int8_cache", "draft_tokens"),
)


CHAT_TEMPERATURE = 0.7
"""The default of chat: greedy answers of small models repeat themselves."""


def add_commands(command: Command) -> None:
    """Register the commands of this group."""
    sub = command(
        generate,
        'gemma-np generate "To be"',
        "gemma-np generate - < prompt.txt",
        'gemma-np generate --model google/gemma-2-2b "The capital of France is"',
        "gemma-np generate --model ./gemma-3-270m.gguf --temperature 0.8 --top-p 0.95 --seed 1 'Once upon a time'",
        'gemma-np generate --model shakespeare-4m --draft shakespeare-1m "To be"',
        'gemma-np generate --model google/gemma-2-2b --draft lookup "def add(a, b): return a + b; def subtract("',
    )
    add_model(sub)
    add_dtype(sub)
    _add_generation(sub, max_new_tokens=128, temperature=0.0)
    sub.add_argument("--echo", action="store_true", help="print the prompt, too")
    add_number(
        sub,
        "--logprobs",
        "after the text, print each token's log-probability and those of the K likeliest",
        metavar="K",
    )
    sub.add_argument("prompt", metavar="PROMPT", nargs="?", help="the text to continue; - for standard input")
    sub.add_argument("--ids", metavar="N,N,...", help="token ids to continue, instead of PROMPT")

    sub = command(
        chat,
        "gemma-np chat",
        "gemma-np chat --model google/gemma-2-2b-it --system 'Answer in one sentence.'",
        'echo "Why is the sky blue?" | gemma-np chat --model google/gemma-2-2b-it',
    )
    add_model(sub, DEFAULT_CHAT)
    add_dtype(sub)
    sub.add_argument("--system", metavar="TEXT", default="", help="a system message, put in front of the first turn")
    _add_generation(sub, max_new_tokens=None, temperature=CHAT_TEMPERATURE)


def generate(options: argparse.Namespace) -> None:
    """Continue a prompt."""
    if (options.prompt is None) == (options.ids is None):
        raise GemmaError("expected either PROMPT or --ids")
    if options.ids is not None:
        refuse_without("PROMPT", options, "stop", "echo", "logprobs")
    model = load(options.model, options.dtype)
    generation = _generation(options, model)
    if options.ids is not None:
        pieces = (f"{token} " for token in model.stream_ids(read_ids(options.ids), **generation))
        _print_stream(pieces, generation["acceptance"])
        return
    prompt = sys.stdin.read().removesuffix("\n") if options.prompt == "-" else options.prompt
    if options.echo:
        _print(prompt)
    tokens, tokenizer = list[TokenLogprob](), model.require_tokenizer()
    if options.logprobs is not None:
        generation["on_token"] = lambda id, logits: tokens.append(
            token_logprob(id, logits, options.logprobs, tokenizer)
        )
    _print_stream(model.stream(prompt, stop=options.stop, **generation), generation["acceptance"])
    for token in tokens:
        likely = "  ".join(f"{other.logprob:.4f} {other.token}" for other in token.top_logprobs)
        print(f"{token.logprob:9.4f} {token.token:16} {likely}".rstrip())


def chat(options: argparse.Namespace) -> None:
    """Chat with an instruction-tuned model: each line of standard input is a turn."""
    model = load(options.model, options.dtype)
    generation = _generation(options, model)
    conversation, interactive = Conversation(options.system), sys.stdin.isatty()
    if options.model == DEFAULT_CHAT:
        print_status(f"{DEFAULT_CHAT} has read plays only; otherwise try --model google/gemma-2-2b-it")
    if interactive:
        print_status(f"Each line is one turn; {HELP}; Ctrl-C stops an answer, Ctrl-D ends the chat.")
    for line in _lines(interactive):
        if line.startswith("/"):
            try:
                print_status(conversation.run(line))
            except GemmaError as error:
                print_message(error)
            continue
        acceptance = Acceptance()
        pieces = model.stream_chat(
            conversation.asked(line), stop=options.stop, **generation | {"acceptance": acceptance}
        )
        if answer := _print_stream(pieces, acceptance, stoppable=interactive):
            conversation.add(line, answer)


def _lines(interactive: bool) -> Iterator[str]:
    """Yield the lines of standard input that are not empty; in a terminal, Ctrl-C begins a line anew."""
    if interactive:
        with suppress(ImportError):  # on Windows, the terminal itself has a history
            import readline  # noqa: F401 (the arrow keys edit a line, and bring back earlier ones)
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            if interactive:
                print()  # the shell's prompt begins a line
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            print()
            continue
        if line.strip():
            yield line


def _print_stream(pieces: Iterable[str], acceptance: Acceptance, *, stoppable: bool = False) -> str:
    """Print text as it arrives, and its speed and that of a draft to standard error; return all of it.

    stoppable: Ctrl-C ends the text, and not the program.
    """
    text, started, first = list[str](), time.perf_counter(), 0.0
    try:
        for piece in pieces:
            first = first or time.perf_counter()
            text.append(piece)
            _print(piece)
    except KeyboardInterrupt:
        if not stoppable:
            raise
    print(flush=True)
    now, tokens = time.perf_counter(), len(text) - 1  # the last piece is only the rest of an incomplete character
    if tokens > 1:
        speed = (tokens - 1) / (now - first)
        peak = f", peak memory {size_of(peak_memory())}" if peak_memory() else ""
        drafted = f", {acceptance}" if acceptance.proposed else ""
        print_status(f"first token after {first - started:.2f} s, then {speed:.1f} tokens/s{drafted}{peak}")
    return "".join(text)


def _print(text: str) -> None:
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)


def _add_generation(parser: argparse.ArgumentParser, max_new_tokens: int | None, temperature: float) -> None:
    parser.add_argument("--int8-cache", action="store_true", help="keep keys and values in 8 bits")
    default = "" if max_new_tokens else "; default: 512, or as many as fit into the context"
    add_number(parser, "--max-new-tokens", f"generate at most N tokens{default}", max_new_tokens)
    meaning = "0 is greedy decoding, higher values are more random"
    add_number(parser, "--temperature", meaning, temperature, metavar="T")
    add_number(parser, "--top-k", "sample from the K most likely tokens", metavar="K")
    meaning = "sample from the fewest tokens whose probabilities add up to P"
    add_number(parser, "--top-p", meaning, metavar="P")
    meaning = "sample from the tokens with at least P times the probability of the most likely one"
    add_number(parser, "--min-p", meaning, metavar="P")
    meaning = "above 1, tokens that are already in the text become less likely"
    add_number(parser, "--repetition-penalty", meaning, 1.0, metavar="R")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    parser.add_argument("--ignore-eos", action="store_true", help="go on after <eos> and <end_of_turn>")
    add_number(parser, "--seed", "the same seed gives the same text", metavar="S")
    meaning = f"propose tokens, which the model verifies several at a time; the distribution is the same: {DRAFT_HELP}"
    parser.add_argument("--draft", metavar="M", help=meaning)
    meaning = f"tokens that a draft proposes at once; default: {LOOKUP_TOKENS} for lookup, else {MODEL_TOKENS}"
    add_number(parser, "--draft-tokens", meaning)


def _generation(options: argparse.Namespace, model: Gemma) -> dict[str, Any]:
    """Return the options of `stream_ids`. Raises GemmaError for a draft that cannot be used."""
    if not options.draft:
        refuse_without("--draft", options, "draft_tokens")
    if not options.temperature:
        refuse_without("--temperature", options, "top_k", "top_p", "min_p")
    draft = model.resolve_draft(read_draft(options.draft)) if options.draft else None
    return {name: getattr(options, name) for name in GENERATION} | {"draft": draft, "acceptance": Acceptance()}
