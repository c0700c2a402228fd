"""The commands that run a model: generate, chat, perplexity, inspect.

Each raises GemmaError for bad input, as one line that `gemma-np` prints.
"""

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.cli.arguments import DRAFT_HELP, Command, add_dtype, add_model, read_ids, refuse_without
from gemma_np.cli.options import add_number
from gemma_np.cli.outputs import add_output_file
from gemma_np.cli.terminal import print_status, printable, size_of
from gemma_np.compression.drafts import read_draft
from gemma_np.errors import GemmaError
from gemma_np.gemma import DEFAULT_CHAT, Gemma, load
from gemma_np.input_files import read_text
from gemma_np.inspection.inspect_text import inspect_text
from gemma_np.inspection.page import page
from gemma_np.memory import peak_memory
from gemma_np.mpi import Ranks
from gemma_np.progress import progress_bar
from gemma_np.text.speculation import LOOKUP_TOKENS, MODEL_TOKENS, Acceptance

GENERATION = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "int8_cache", "draft_tokens")


def add_commands(command: Command) -> None:
    """Register the commands of this group."""
    sub = command(
        generate,
        'gemma-np generate "To be"',
        'gemma-np generate --model google/gemma-2-2b "The capital of France is"',
        "gemma-np generate --model ./gemma-3-270m.gguf --temperature 0.8 --top-p 0.95 --seed 1 'Once upon a time'",
        'gemma-np generate --model shakespeare-4m --draft shakespeare-1m "To be"',
        'gemma-np generate --model google/gemma-2-2b --draft lookup "def add(a, b): return a + b; def subtract("',
    )
    add_model(sub)
    add_dtype(sub)
    _add_generation(sub, max_new_tokens=128)
    sub.add_argument("prompt", metavar="PROMPT", nargs="?", help="the text to continue")
    sub.add_argument("--ids", metavar="N,N,...", help="token ids to continue, instead of PROMPT")

    sub = command(
        chat,
        "gemma-np chat",
        "gemma-np chat --model google/gemma-2-2b-it",
        'echo "Why is the sky blue?" | gemma-np chat --model google/gemma-2-2b-it',
    )
    add_model(sub, DEFAULT_CHAT)
    add_dtype(sub)
    _add_generation(sub, max_new_tokens=None)

    sub = command(
        perplexity,
        "gemma-np perplexity --model ./gemma-2-2b book.txt",
        "gemma-np perplexity --model ./gemma-2-2b --context 4096 --stride 512 book.txt",
        "mpiexec -n 4 gemma-np perplexity --model ./gemma-2-2b book.txt",
        shares_work=True,
    )
    add_model(sub)
    add_dtype(sub)
    sub.add_argument("file", metavar="FILE", help="a UTF-8 text file, or - for standard input")
    add_number(sub, "--context", "tokens in a window; default: the context length")
    add_number(sub, "--stride", "tokens that each window scores; default: all of them")

    sub = command(
        inspect,
        'gemma-np inspect "To be, or not to be, that is the question." -o page.html',
        'gemma-np inspect --model google/gemma-2-2b "The capital of France is Paris." -o page.html',
    )
    add_model(sub)
    add_dtype(sub)
    sub.add_argument("passage", metavar="TEXT", help="the text to read, at most 256 tokens")
    add_output_file(sub, "the HTML page to write")


def generate(options: argparse.Namespace) -> None:
    """Continue a prompt."""
    if (options.prompt is None) == (options.ids is None):
        raise GemmaError("expected either PROMPT or --ids")
    model = load(options.model, options.dtype)
    generation = _generation(options, model)
    if options.ids is None:
        pieces = model.stream(options.prompt, **generation)
    else:
        pieces = (f"{token} " for token in model.stream_ids(read_ids(options.ids), **generation))
    _print_stream(pieces, generation["acceptance"])


def chat(options: argparse.Namespace) -> None:
    """Chat with an instruction-tuned model: each line of standard input is a turn."""
    model = load(options.model, options.dtype)
    generation = _generation(options, model)
    messages: list[dict[str, str]] = []
    interactive = sys.stdin.isatty()
    if options.model == DEFAULT_CHAT:
        print_status(f"{DEFAULT_CHAT} has read plays only; otherwise try --model google/gemma-2-2b-it")
    if interactive:
        print_status("Each line is one turn; Ctrl-D ends the chat.")
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            return
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        acceptance = Acceptance()
        answer = _print_stream(model.stream_chat(messages, **generation | {"acceptance": acceptance}), acceptance)
        messages.append({"role": "model", "content": answer})


def perplexity(options: argparse.Namespace) -> None:
    """Measure the perplexity of a model on a text."""
    ranks: Ranks = options.ranks
    if options.file == "-":  # mpiexec gives the standard input to rank 0
        text = ranks.all_gather("" if ranks.rank else sys.stdin.read())[0]
    else:
        text = read_text(Path(options.file))
    loss = load(options.model, options.dtype).text_loss(text, options.context, options.stride, ranks)
    if ranks.rank:
        return
    print(f"perplexity      {loss.perplexity:.4f}")
    print(f"bits per token  {loss.bits_per_token:.4f}")
    print(f"bits per byte   {loss.bits_per_byte:.4f}")
    print(f"tokens          {loss.tokens}")


def inspect(options: argparse.Namespace) -> None:
    """Show what a model does with a text, on one HTML page: attention, logit lens, next tokens."""
    model = load(options.model, options.dtype)
    inspection = inspect_text(
        model, options.passage, lambda layers: progress_bar(layers, desc="logit lens", unit="layers")
    )
    html = page(inspection, model.config, Path(options.model).name)
    path = Path(options.output)
    atomic_write(path, lambda partial: partial.write_text(html, encoding="utf-8"))
    print_status(f"{path}: {len(inspection.ids)} tokens; open it in a browser")


def _print_stream(pieces: Iterable[str], acceptance: Acceptance) -> str:
    """Print text as it arrives, and its speed and that of a draft to standard error; return all of it."""
    text, started, first = [], time.perf_counter(), 0.0
    for piece in pieces:
        first = first or time.perf_counter()
        text.append(piece)
        print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    print(flush=True)
    now, tokens = time.perf_counter(), len(text) - 1  # the last piece is only the rest of an incomplete character
    if tokens > 1:
        speed = (tokens - 1) / (now - first)
        peak = f", peak memory {size_of(peak_memory())}" if peak_memory() else ""
        drafted = f", {acceptance}" if acceptance.proposed else ""
        print_status(f"first token after {first - started:.2f} s, then {speed:.1f} tokens/s{drafted}{peak}")
    return "".join(text)


def _add_generation(parser: argparse.ArgumentParser, max_new_tokens: int | None) -> None:
    parser.add_argument("--int8-cache", action="store_true", help="keep keys and values in 8 bits")
    default = "" if max_new_tokens else "; default: 512, or as many as fit into the context"
    add_number(parser, "--max-new-tokens", f"generate at most N tokens{default}", max_new_tokens)
    meaning = "0 is greedy decoding, higher values are more random"
    add_number(parser, "--temperature", meaning, 0.0, metavar="T")
    add_number(parser, "--top-k", "sample from the K most likely tokens", metavar="K")
    meaning = "sample from the fewest tokens whose probabilities add up to P"
    add_number(parser, "--top-p", meaning, metavar="P")
    add_number(parser, "--seed", "the same seed gives the same text", metavar="S")
    meaning = f"propose tokens, which the model verifies several at a time; the distribution is the same: {DRAFT_HELP}"
    parser.add_argument("--draft", metavar="M", help=meaning)
    meaning = f"tokens that a draft proposes at once; default: {LOOKUP_TOKENS} for lookup, else {MODEL_TOKENS}"
    add_number(parser, "--draft-tokens", meaning)


def _generation(options: argparse.Namespace, model: Gemma) -> dict[str, Any]:
    """Return the options of `stream_ids`. Raises GemmaError for a draft that cannot be used."""
    if not options.draft:
        refuse_without("--draft", options, "draft_tokens")
    draft = model.resolve_draft(read_draft(options.draft)) if options.draft else None
    return {name: getattr(options, name) for name in GENERATION} | {"draft": draft, "acceptance": Acceptance()}
