"""The commands that describe models: info, models.

Each raises GemmaError for bad input, as one line that `gemma-np` prints.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemma_np.checkpoints.gguf_file import GGUFTensor, read_gguf
from gemma_np.checkpoints.gguf_mixture import mixture_bytes
from gemma_np.cli.arguments import Command, add_model
from gemma_np.cli.options import add_number
from gemma_np.cli.terminal import size_of
from gemma_np.config import GLOBAL, RELEASED, GemmaConfig
from gemma_np.gemma import BUNDLED_MODELS, resolve_config
from gemma_np.memory import activation_bytes, cache_bytes, training_bytes, weight_bytes

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
        info,
        "gemma-np info --model gemma-2-27b",
        "gemma-np info --model ./gemma-3-270m-q4_k_m.gguf",
        "gemma-np info --model ./my-checkpoint --training --batch-size 8 --seq-len 512",
    )
    add_model(sub)
    sub.add_argument("--training", action="store_true", help="also estimate the memory of training")
    add_number(sub, "--batch-size", "texts per step and rank", 8)
    add_number(sub, "--seq-len", "tokens in a text", 128)
    _add_json(sub)

    sub = command(models, "gemma-np models")
    _add_json(sub)


def info(options: argparse.Namespace) -> None:
    """Describe a model: its config, its parameters, and the memory it needs."""
    config = resolve_config(options.model)
    tensors = read_gguf(Path(options.model)).tensors if str(options.model).endswith(".gguf") else []
    training = training_bytes(config, options.batch_size, options.seq_len) if options.training else {}
    if options.json:
        values = {"config": vars(config), "parameters": config.parameter_count()}
        values |= {"generation_bytes": generation_bytes(config)}
        values |= {"formats": tensor_formats(tensors)} if tensors else {}
        values |= {"training_bytes": training} if training else {}
        print(json.dumps(values, indent=2))
        return
    for line in describe(config):
        print(line)
    if tensors:
        for line in describe_tensors(tensors, config):
            print(line)
    if training:
        print(f"\nmemory of training in float32, {options.batch_size} texts of {options.seq_len} tokens per step")
        for part, size in (training | {"total": sum(training.values())}).items():
            print(f"  {part:40}{size / 1e6:>14,.1f} MB")


def models(options: argparse.Namespace) -> None:
    """List the bundled and the released models."""
    bundled: list[dict[str, Any]] = [
        {"name": name, "parameters": sum(resolve_config(name).parameter_count().values()), "description": description}
        for name, description in BUNDLED_MODELS.items()
    ]
    released: list[dict[str, Any]] = [
        {
            "name": name,
            "hub_id": f"google/{name}{'-pt' if name.startswith('gemma-3') and name != 'gemma-3-270m' else ''}",
            "parameters": sum(config.parameter_count().values()),
            "layers": config.num_hidden_layers,
            "context": config.max_position_embeddings,
        }
        for name, config in RELEASED.items()
    ]
    if options.json:
        print(json.dumps({"bundled": bundled, "released": released}, indent=2))
        return
    print(f"{'bundled':24}{'parameters':>10}")
    for row in bundled:
        print("{name:24}{millions:8.1f} M  {description}".format(**row, millions=row["parameters"] / 1e6))
    print()
    print(f"{'name':14}{'hub id':27}{'parameters':>11}{'layers':>8}{'context':>9}{'float32':>10}")
    for row in released:
        billions = row["parameters"] / 1e9
        shown = "{name:14}{hub_id:27}{billions:9.2f} B{layers:8}{context:9,}{size:7.1f} GB"
        print(shown.format(**row, billions=billions, size=4 * billions))
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

    lengths = _lengths(config)
    yield f"\n{'memory of generation':24}{'weights':>14}" + "".join(f"{f'+ {n:,} tokens':>19}" for n in lengths)
    for label, sizes in generation_bytes(config).items():
        weights, *totals = sizes.values()
        yield f"  {label:24}{size_of(weights):>12}" + "".join(f"{size_of(total):>19}" for total in totals)
    yield f"{'  of which float32 cache':38}" + "".join(f"{size_of(cache_bytes(config, n)):>19}" for n in lengths)
    yield "  (a quarter of this cache with --int8-cache)"


def generation_bytes(config: GemmaConfig) -> dict[str, dict[str, int]]:
    """Estimate the bytes of generation for each format of the weights, without tokens and with some numbers of them."""
    rows = {label: (format, weight_bytes(config, format, size)) for label, (format, size) in MEMORY_TABLE.items()}
    rows["q4_k_m (GGUF)"] = "Q4_K", mixture_bytes(config, "q4_k_m")
    return {
        label: {"0 tokens": weights}
        | {
            f"{n} tokens": weights + cache_bytes(config, n, format) + activation_bytes(config, n, format)
            for n in _lengths(config)
        }
        for label, (format, weights) in rows.items()
    }


def _lengths(config: GemmaConfig) -> list[int]:
    """Return the numbers of tokens that memory is estimated for."""
    return sorted({min(length, config.max_position_embeddings) for length in (1000, 8000)})


def tensor_formats(tensors: list[GGUFTensor]) -> dict[str, dict[str, int]]:
    """Return the number of tensors, of their weights and of their bytes for each format of a GGUF file, the most
    frequent first."""
    return {
        type: {
            "tensors": count,
            "weights": sum(math.prod(tensor.shape) for tensor in tensors if tensor.type == type),
            "bytes": sum(tensor.bytes for tensor in tensors if tensor.type == type),
        }
        for type, count in Counter(tensor.type for tensor in tensors).most_common()
    }


def describe_tensors(tensors: list[GGUFTensor], config: GemmaConfig) -> Iterable[str]:
    """Return the lines that `info` prints about the formats in a GGUF file, and the memory that they need."""
    yield f"\n{'formats of this file':24}{'tensors':>9}{'size':>14}{'bits per weight':>18}"
    for type, found in tensor_formats(tensors).items():
        bits = 8 * found["bytes"] / found["weights"]
        yield f"  {type:22}{found['tensors']:9}{size_of(found['bytes']):>14}{bits:18.2f}"
    weights = sum(tensor.bytes for tensor in tensors)
    length = min(1000, config.max_position_embeddings)
    total = weights + cache_bytes(config, length) + activation_bytes(config, length, "Q4_K")
    yield f"  {'all':22}{len(tensors):9}{size_of(weights):>14}; with {length:,} tokens {size_of(total)} of memory"


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, with sizes in bytes")
