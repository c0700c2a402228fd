"""The commands that run a model, one function each: generate, chat, perplexity, info, models."""

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemma_np.config import GLOBAL, RELEASED, GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import BUNDLED, find_config, load
from gemma_np.training.memory import training_memory


def generate(options: argparse.Namespace) -> None:
    """Write what follows a prompt."""
    model = load(options.model)
    _print_stream(model.stream(options.prompt, **_sampling(options)))


def chat(options: argparse.Namespace) -> None:
    """Talk: a line from standard input is a turn, until end of file."""
    model = load(options.model)
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
    print(f"{load(options.model).perplexity(text):.4f}")


def info(options: argparse.Namespace) -> None:
    """Describe a model: config, parameters, memory."""
    config = find_config(options.model)
    for line in describe(config):
        print(line)
    if options.training:
        if min(options.batch, options.length) < 1:
            raise GemmaError(f"batch: {options.batch}, length: {options.length}, expected 1 or more")
        parts = training_memory(config, options.batch, options.length)
        print(f"\nmemory for training in float32, {options.batch} texts of {options.length} tokens at once")
        for part, size in (parts | {"total": sum(parts.values())}).items():
            print(f"  {part:36}{size / 1e6:>14,.1f} MB")


def models(options: argparse.Namespace) -> None:
    """List the bundled models and the released ones."""
    for name, path in BUNDLED.items():
        count = sum(find_config(path).parameter_count().values())
        print(f"{name:14} bundled, {count / 1e6:.1f} M parameters, trained on Shakespeare")
    print()
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
