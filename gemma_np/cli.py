"""The command line, one function a subcommand. What it computes is computed elsewhere."""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np import cli_training
from gemma_np.config import GLOBAL, RELEASED, GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, find_config, load

NO_MODEL = (
    "--model: missing; name a checkpoint folder, a .gguf file, or a hub id such as google/gemma-2-2b-it "
    "(gemma-np models lists the released ones)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `gemma-np` and return its exit status: 0, 2 for bad input (one line on standard error), 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    warnings.showwarning = lambda message, *_, **__: print(f"gemma-np: warning: {message}", file=sys.stderr)
    try:
        with np.errstate(all="ignore"):  # NaN in the weights is told once, by the tensor's name
            options.run(options)
        sys.stdout.flush()
    except GemmaError as error:
        print(f"gemma-np: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"gemma-np: out of memory: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `gemma-np generate ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def generate(options: argparse.Namespace) -> None:
    """Write what follows a prompt."""
    model = load_model(options)
    _print_stream(model.stream(options.prompt, **_sampling(options)))


def chat(options: argparse.Namespace) -> None:
    """Talk: a line from standard input is a turn, until end of file."""
    model = load_model(options)
    messages: list[dict[str, str]] = []
    interactive = sys.stdin.isatty()
    if interactive:
        print("One line is one turn; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            return
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        answer = _print_stream(model.stream_chat(messages, **_sampling(options)))
        messages.append({"role": "model", "content": answer})


def perplexity(options: argparse.Namespace) -> None:
    """Measure how well a model predicts a text."""
    try:
        text = sys.stdin.read() if options.file == "-" else Path(options.file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GemmaError(f"{options.file}: {error}, expected a text file in UTF-8") from None
    print(f"{load_model(options).perplexity(text):.4f}")


def info(options: argparse.Namespace) -> None:
    """Describe a model: config, parameters, memory."""
    if options.model is None:
        raise GemmaError(NO_MODEL)
    config = find_config(options.model)
    for line in describe(config):
        print(line)


def models(options: argparse.Namespace) -> None:
    """List the released models."""
    print(f"{'name':14}{'hub id':27}{'parameters':>11}{'layers':>8}{'context':>9}{'float32':>10}")
    for name, config in RELEASED.items():
        count = sum(config.parameter_count().values())
        pretrained = f"google/{name}-pt" if name.startswith("gemma-3") and name != "gemma-3-270m" else f"google/{name}"
        print(
            f"{name:14}{pretrained:27}{count / 1e9:9.2f} B{config.num_hidden_layers:8}"
            f"{config.max_position_embeddings:9,}{count * 4 / 1e9:7.1f} GB"
        )
    print("\nThe instruction-tuned ones, for chat, end in -it: google/gemma-2-2b-it, google/gemma-3-1b-it.")


def describe(config: GemmaConfig) -> Iterable[str]:
    """The lines that `info` prints."""
    for name, value in vars(config).items():
        if name != "layer_types" and value is not None:
            yield f"{name:26}{value}"
    globals_ = config.layer_types.count(GLOBAL)
    yield f"{'layer_types':26}{config.num_hidden_layers - globals_} local, {globals_} global"

    parts = config.parameter_count()
    total = sum(parts.values())
    yield "\nparameters"
    for part, count in (parts | {"total": total}).items():
        yield f"  {part:24}{count:>16,}{count / total:8.1%}"

    yield "\nmemory for the weights"
    for dtype, size in (("float64", 8), ("float32", 4), ("bfloat16 (as published)", 2)):
        yield f"  {dtype:24}{total * size / 1e9:>13.2f} GB"

    per_layer = 2 * config.num_key_value_heads * config.head_dim * 4 * 1000 / 1e6
    yield "\nmemory for the cache, float32, per 1,000 tokens"
    if config.sliding_window and globals_ < config.num_hidden_layers:
        yield f"  {f'up to {config.sliding_window:,} tokens':24}{per_layer * config.num_hidden_layers:>13.1f} MB"
        yield f"  {'after that':24}{per_layer * globals_:>13.1f} MB"
    else:
        yield f"  {'at any length':24}{per_layer * config.num_hidden_layers:>13.1f} MB"


def load_model(options: argparse.Namespace) -> Gemma:
    """The model that --model names."""
    if options.model is None:
        raise GemmaError(NO_MODEL)
    return load(options.model)


def _print_stream(pieces: Iterable[str]) -> str:
    """Print the text as it comes, and its speed to standard error; return it whole."""
    text, started, first = [], time.perf_counter(), 0.0
    for piece in pieces:
        first = first or time.perf_counter()
        text.append(piece)
        print(piece, end="", flush=True)
    print(flush=True)
    now, tokens = time.perf_counter(), len(text) - 1  # the last piece is what was left of a character
    if tokens > 1:
        rate = (tokens - 1) / (now - first)
        print(f"first token after {first - started:.2f} s, then {rate:.1f} tokens/s", file=sys.stderr)
    return "".join(text)


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    return {name: getattr(options, name) for name in names}


def parser() -> argparse.ArgumentParser:
    """The arguments of every subcommand."""
    top = argparse.ArgumentParser("gemma-np", description="Google's Gemma 2, whole, in NumPy that a person can read.")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], None], example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            run.__name__,
            help=run.__doc__,
            description=run.__doc__,
            epilog=f"examples:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    sub = command(
        generate,
        '  gemma-np generate --model google/gemma-2-2b "The capital of France is"\n'
        "  gemma-np generate --model ./gemma-3-270m.gguf --temperature 0.8 --top-p 0.95 --seed 1 'Once upon a time'",
    )
    _add_model(sub)
    _add_sampling(sub, max_new_tokens=128)
    sub.add_argument("prompt", metavar="PROMPT", help="the text to continue")

    sub = command(
        chat,
        "  gemma-np chat --model google/gemma-2-2b-it\n"
        '  echo "Why is the sky blue?" | gemma-np chat --model google/gemma-2-2b-it',
    )
    _add_model(sub)
    _add_sampling(sub, max_new_tokens=512)

    sub = command(perplexity, "  gemma-np perplexity --model ./gemma-2-2b book.txt")
    _add_model(sub)
    sub.add_argument("file", metavar="FILE", help="a text file in UTF-8, or - for standard input")

    sub = command(info, "  gemma-np info --model gemma-2-27b\n  gemma-np info --model ./my-checkpoint")
    _add_model(sub)

    command(models, "  gemma-np models")

    sub = command(cli_training.tokenizer, "  gemma-np tokenizer texts/ --size 2048 -o tokenizer.model")
    cli_training.add_tokenizer_arguments(sub)

    sub = command(
        cli_training.train,
        "  gemma-np train texts/ --tokenizer tokenizer.model -o run --steps 2000\n"
        "  gemma-np train texts/ --tokenizer tokenizer.model -o run --steps 2000 --resume\n"
        "  gemma-np train letters/ --model google/gemma-3-270m -o tuned --rate 1e-5 --length 512 --batch 1",
    )
    cli_training.add_train_arguments(sub)

    sub = command(
        cli_training.distill,
        "  gemma-np distill texts/ --teacher run -o student --hidden-size 64 --ffn 256 --heads 2 --kv-heads 1",
    )
    cli_training.add_distill_arguments(sub)

    sub = command(cli_training.merge, "  gemma-np merge run-1 run-2 run-3 -o merged")
    cli_training.add_merge_arguments(sub)
    return top


def _add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", metavar="M", help="a checkpoint folder, a .gguf file, or a hub id")


def _add_sampling(sub: argparse.ArgumentParser, max_new_tokens: int) -> None:
    sub.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=int,
        default=max_new_tokens,
        help=f"stop after N tokens (default {max_new_tokens})",
    )
    sub.add_argument(
        "--temperature", metavar="T", type=float, default=0.0, help="0 is greedy (default); higher is more varied"
    )
    sub.add_argument("--top-k", metavar="K", type=int, help="draw from the K most likely tokens")
    sub.add_argument("--top-p", metavar="P", type=float, help="draw from the fewest tokens with probability P together")
    sub.add_argument("--seed", metavar="S", type=int, help="the same seed gives the same text")
