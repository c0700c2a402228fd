"""The commands that run a model, one function each: generate, chat, perplexity, inspect, info, models.

Each raises GemmaError for what it cannot do, in the one line that `gemma-np` then prints.
"""

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.cli.oracle import read_ids
from gemma_np.config import GLOBAL, RELEASED, GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import BUNDLED, Gemma, load, resolve_config
from gemma_np.inspection.page import page
from gemma_np.inspection.reading import read
from gemma_np.memory import STORAGE, cache_bytes, peak_memory, training_memory, weight_bytes, work_bytes


def generate(options: argparse.Namespace) -> None:
    """Write what follows a prompt."""
    if (options.prompt is None) == (options.ids is None):
        raise GemmaError("expected either PROMPT or --ids")
    model = _load(options)
    if options.ids is None:
        _print_stream(model.stream(options.prompt, **_sampling(options)))
    else:
        _print_stream(f"{token} " for token in model.stream_ids(read_ids(options.ids), **_sampling(options)))


def chat(options: argparse.Namespace) -> None:
    """Talk: a line from standard input is a turn, until end of file."""
    model = _load(options)
    messages: list[dict[str, str]] = []
    interactive = sys.stdin.isatty()
    if options.model in BUNDLED:
        print(f"{options.model} has only read plays; google/gemma-2-2b-it, say, has learned to answer", file=sys.stderr)
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
        what = getattr(error, "strerror", None) or error
        raise GemmaError(f"{options.file}: {what}, expected a text file in UTF-8") from None
    loss = load(options.model, options.dtype).text_loss(text, options.context, options.stride)
    print(f"perplexity      {loss.perplexity:.4f}")
    print(f"bits per token  {loss.bits_per_token:.4f}")
    print(f"bits per byte   {loss.bits_per_byte:.4f}")
    print(f"tokens          {loss.tokens}")


def inspect(options: argparse.Namespace) -> None:
    """Show what a model does with a text: attention, logit lens, next tokens, on one page of HTML."""
    from tqdm import tqdm

    model = load(options.model, options.dtype)
    reading = read(model, options.text, lambda layers: tqdm(layers, "lens", unit=" layers", delay=1, leave=False))
    html = page(reading, model.config, Path(options.model).name)
    path = Path(options.output)
    atomic_write(path, lambda partial: partial.write_text(html, encoding="utf-8"))
    print(f"{path}: {len(reading.ids)} tokens; open it in a browser", file=sys.stderr)


def info(options: argparse.Namespace) -> None:
    """Describe a model: config, parameters, memory."""
    config = resolve_config(options.model)
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
        count = sum(resolve_config(path).parameter_count().values())
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

    lengths = sorted({min(length, config.max_position_embeddings) for length in (1000, 8000)})
    yield f"\n{'memory to write text':24}{'weights':>14}" + "".join(f"{f'+ {n:,} tokens':>19}" for n in lengths)
    for storage in STORAGE:
        weights = weight_bytes(config, storage)
        with_text = (weights + cache_bytes(config, n, storage) + work_bytes(config, n, storage) for n in lengths)
        yield f"  {storage:24}{_size(weights):>12}" + "".join(f"{_size(total):>19}" for total in with_text)
    yield f"{'  of that the cache,':38}" + "".join(f"{_size(cache_bytes(config, n)):>19}" for n in lengths)
    yield "  and a quarter of it with --int8-cache"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _load(options: argparse.Namespace) -> Gemma:
    return replace(load(options.model, options.dtype), int8_cache=options.int8_cache)


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
        peak = f", peak memory {_size(peak_memory())}" if peak_memory() else ""
        print(f"first token after {first - started:.2f} s, then {rate:.1f} tokens/s{peak}", file=sys.stderr)
    return "".join(text)


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    return {name: getattr(options, name) for name in names}
