"""The commands that run a model: generate, chat, perplexity, inspect, info, models.

Each raises GemmaError for bad input, as one line that `gemma-np` prints.
"""

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.gguf_file import GGUFTensor, read_gguf
from gemma_np.checkpoints.gguf_mixture import mixture_bytes
from gemma_np.cli.arguments import Command, add_dtype, add_model, read_ids
from gemma_np.cli.options import add_number
from gemma_np.cli.outputs import add_output_file
from gemma_np.cli.terminal import printable
from gemma_np.config import GLOBAL, RELEASED, GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import BUNDLED, load, resolve_config
from gemma_np.input_files import read_text
from gemma_np.inspection.inspect_text import inspect_text
from gemma_np.inspection.page import page
from gemma_np.memory import activation_bytes, cache_bytes, peak_memory, training_bytes, weight_bytes

GENERATION = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "int8_cache")

MEMORY_TABLE = {  # label: format, group size
    "float64": ("float64", None),
    "float32": ("float32", None),
    "bfloat16 (as published)": ("bfloat16", None),
    "int8": ("int8", None),
    "int4, groups of 64": ("int4", 64),
    "int4, groups of 128": ("int4", 128),
}


def add_commands(command: Command) -> None:
    """Register the commands of this group."""
    sub = command(
        generate,
        'gemma-np generate "To be"',
        'gemma-np generate --model google/gemma-2-2b "The capital of France is"',
        "gemma-np generate --model ./gemma-3-270m.gguf --temperature 0.8 --top-p 0.95 --seed 1 'Once upon a time'",
    )
    add_model(sub)
    add_dtype(sub)
    _add_generation(sub, max_new_tokens=128)
    sub.add_argument("prompt", metavar="PROMPT", nargs="?", help="the text to continue")
    sub.add_argument("--ids", metavar="N,N,...", help="token ids to continue, instead of PROMPT")

    sub = command(
        chat,
        "gemma-np chat --model google/gemma-2-2b-it",
        'echo "Why is the sky blue?" | gemma-np chat --model google/gemma-2-2b-it',
    )
    add_model(sub)
    add_dtype(sub)
    _add_generation(sub, max_new_tokens=None)

    sub = command(
        perplexity,
        "gemma-np perplexity --model ./gemma-2-2b book.txt",
        "gemma-np perplexity --model ./gemma-2-2b --context 4096 --stride 512 book.txt",
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

    sub = command(
        info,
        "gemma-np info --model gemma-2-27b",
        "gemma-np info --model ./gemma-3-270m-q4_k_m.gguf",
        "gemma-np info --model ./my-checkpoint --training --batch-size 8 --seq-len 512",
    )
    add_model(sub)
    sub.add_argument("--training", action="store_true", help="also estimate the memory of training")
    add_number(sub, "--batch-size", "texts per step and rank", 8)
    add_number(sub, "--seq-len", "tokens in a text", 128)

    command(models, "gemma-np models")


def generate(options: argparse.Namespace) -> None:
    """Continue a prompt."""
    if (options.prompt is None) == (options.ids is None):
        raise GemmaError("expected either PROMPT or --ids")
    model = load(options.model, options.dtype)
    if options.ids is None:
        _print_stream(model.stream(options.prompt, **_generation(options)))
    else:
        _print_stream(f"{token} " for token in model.stream_ids(read_ids(options.ids), **_generation(options)))


def chat(options: argparse.Namespace) -> None:
    """Chat with an instruction-tuned model: each line of standard input is a turn."""
    model = load(options.model, options.dtype)
    messages: list[dict[str, str]] = []
    interactive = sys.stdin.isatty()
    if options.model in BUNDLED:
        print(f"{options.model} was trained on plays only; to chat, try google/gemma-2-2b-it", file=sys.stderr)
    if interactive:
        print("Each line is one turn; Ctrl-D ends the chat.", file=sys.stderr)
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            return
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        answer = _print_stream(model.stream_chat(messages, **_generation(options)))
        messages.append({"role": "model", "content": answer})


def perplexity(options: argparse.Namespace) -> None:
    """Measure the perplexity of a model on a text."""
    text = sys.stdin.read() if options.file == "-" else read_text(Path(options.file))
    loss = load(options.model, options.dtype).text_loss(text, options.context, options.stride)
    print(f"perplexity      {loss.perplexity:.4f}")
    print(f"bits per token  {loss.bits_per_token:.4f}")
    print(f"bits per byte   {loss.bits_per_byte:.4f}")
    print(f"tokens          {loss.tokens}")


def inspect(options: argparse.Namespace) -> None:
    """Show what a model does with a text, on one HTML page: attention, logit lens, next tokens."""
    from tqdm import tqdm

    model = load(options.model, options.dtype)
    inspection = inspect_text(
        model, options.passage, lambda layers: tqdm(layers, "logit lens", unit=" layers", delay=1, leave=False)
    )
    html = page(inspection, model.config, Path(options.model).name)
    path = Path(options.output)
    atomic_write(path, lambda partial: partial.write_text(html, encoding="utf-8"))
    print(f"{path}: {len(inspection.ids)} tokens; open it in a browser", file=sys.stderr)


def info(options: argparse.Namespace) -> None:
    """Describe a model: its config, its parameters, and the memory it needs."""
    config = resolve_config(options.model)
    for line in describe(config):
        print(line)
    if str(options.model).endswith(".gguf"):
        for line in describe_tensors(read_gguf(Path(options.model)).tensors, config):
            print(line)
    if options.training:
        parts = training_bytes(config, options.batch_size, options.seq_len)
        print(f"\nmemory of training in float32, {options.batch_size} texts of {options.seq_len} tokens per step")
        for part, size in (parts | {"total": sum(parts.values())}).items():
            print(f"  {part:40}{size / 1e6:>14,.1f} MB")


def models(options: argparse.Namespace) -> None:
    """List the bundled and the released models."""
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
    print("\nTo chat, use the instruction-tuned models, which end in -it: google/gemma-2-2b-it, google/gemma-3-1b-it.")


def describe(config: GemmaConfig) -> Iterable[str]:
    """Return the lines that `info` prints."""
    for name, value in vars(config).items():
        if name != "layer_types" and value is not None:
            yield f"{name:26}{value}"
    global_layers = config.layer_types.count(GLOBAL)
    yield f"{'layer_types':26}{config.num_hidden_layers - global_layers} local, {global_layers} global"

    parts = config.parameter_count()
    total = sum(parts.values())
    yield "\nparameters"
    for part, count in (parts | {"total": total}).items():
        yield f"  {part:24}{count:>16,}{count / total:8.1%}"

    lengths = sorted({min(length, config.max_position_embeddings) for length in (1000, 8000)})
    yield f"\n{'memory of generation':24}{'weights':>14}" + "".join(f"{f'+ {n:,} tokens':>19}" for n in lengths)
    rows = {label: (format, weight_bytes(config, format, size)) for label, (format, size) in MEMORY_TABLE.items()}
    rows["q4_k_m (GGUF)"] = "Q4_K", mixture_bytes(config, "q4_k_m")
    for label, (format, weights) in rows.items():
        totals = (weights + cache_bytes(config, n, format) + activation_bytes(config, n, format) for n in lengths)
        yield f"  {label:24}{_size(weights):>12}" + "".join(f"{_size(total):>19}" for total in totals)
    yield f"{'  of which float32 cache':38}" + "".join(f"{_size(cache_bytes(config, n)):>19}" for n in lengths)
    yield "  (a quarter of this cache with --int8-cache)"


def describe_tensors(tensors: list[GGUFTensor], config: GemmaConfig) -> Iterable[str]:
    """Return the lines that `info` prints about the formats in a GGUF file, and the memory that they need."""
    yield f"\n{'formats of this file':24}{'tensors':>9}{'size':>14}{'bits per weight':>18}"
    counts = Counter(tensor.type for tensor in tensors)
    for type, count in counts.most_common():
        size = sum(tensor.bytes for tensor in tensors if tensor.type == type)
        numbers = sum(math.prod(tensor.shape) for tensor in tensors if tensor.type == type)
        yield f"  {type:22}{count:9}{_size(size):>14}{8 * size / numbers:18.2f}"
    weights = sum(tensor.bytes for tensor in tensors)
    length = min(1000, config.max_position_embeddings)
    total = weights + cache_bytes(config, length) + activation_bytes(config, length, "Q4_K")
    yield f"  {'all':22}{len(tensors):9}{_size(weights):>14}; with {length:,} tokens {_size(total)} of memory"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _print_stream(pieces: Iterable[str]) -> str:
    """Print text as it arrives, and its speed to standard error; return all of it."""
    text, started, first = [], time.perf_counter(), 0.0
    for piece in pieces:
        first = first or time.perf_counter()
        text.append(piece)
        print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    print(flush=True)
    now, tokens = time.perf_counter(), len(text) - 1  # the last piece is only the rest of an incomplete character
    if tokens > 1:
        speed = (tokens - 1) / (now - first)
        peak = f", peak memory {_size(peak_memory())}" if peak_memory() else ""
        print(f"first token after {first - started:.2f} s, then {speed:.1f} tokens/s{peak}", file=sys.stderr)
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


def _generation(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in GENERATION}
