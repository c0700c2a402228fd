"""Write a conformance kit: small checkpoints and what they compute, for people who write Gemma in any language.

The checkpoints are random, with sizes and constants that are all different from each other and small enough that each
one matters: a mistake shows in the first numbers. Weights and ids are made of the bits of a PCG64 generator, which
NumPy never changes; the inputs of the single operations are drawn from NumPy's distributions.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.safetensors_file import write_tensors
from gemma_np.compression.export_gguf import export_gguf
from gemma_np.config import GemmaConfig, gemma1_config, gemma2_config, gemma3_config
from gemma_np.gemma import BUNDLED, DEFAULT, Gemma
from gemma_np.model.records import RECORDS
from gemma_np.oracle.trace import Reference
from gemma_np.testing import OPERATIONS
from gemma_np.text.chat import chat_ids
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.training.merging import merge

VERSION = 1

_SIZES = {
    "vocab_size": 61,
    "hidden_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 15,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
}
_IN_GEMMA_2 = {"query_pre_attn_scalar": 3, "sliding_window": 3}

CONFIGS: Mapping[str, GemmaConfig] = {
    "gemma1": replace(gemma1_config(2, query_pre_attn_scalar=6, **_SIZES), rope_theta=100.0),
    "gemma2": replace(
        gemma2_config(4, **_SIZES, **_IN_GEMMA_2),
        rope_theta=100.0,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": replace(
        gemma3_config(6, **_SIZES, **_IN_GEMMA_2),
        rope_theta=100.0,
        rope_local_base_freq=10.0,
        rope_scaling_factor=4.0,
    ),
}

CASES: Mapping[str, tuple[int, ...]] = {
    "short": (3,),
    "past the window": (12,),
    "chunks": (5, 4, 3),
    "decoding": (8, 1, 1, 1, 1),
}
"""The number of tokens in each pass."""

_TEXTS = (
    "To be, or not to be, that is the question.",
    " two  spaces\tand a tab",
    "12345 67",
    "\u00dcber na\u00efve caf\u00e9s \u4e2d\u6587 \U0001f600",
    "line\n\nbreaks\n",
    "a<end_of_turn>b",
    "",
)
_TURNS = (
    [{"role": "user", "content": "Who is there?"}],
    [
        {"role": "user", "content": " Good morrow. "},
        {"role": "model", "content": "And to you."},
        {"role": "user", "content": "What news?"},
    ],
)

README = """# A conformance kit for Gemma 1, 2 and 3

Version {version}. Small random checkpoints, and what they compute. Everything is in JSON, safetensors or GGUF.

- `models/`: a folder each with `config.json` and `model.safetensors`, named as on the hub; `-bf16` has bfloat16
  weights, `gemma2.gguf` is a GGUF file.
- `expected/`: the intermediates and logits of each case, in float32, computed in float64. `records.json` has the
  meaning of each name.
- `operations/`: single operations; inputs are named `in.*`, results `out.0`, `out.1` and so on.
- `tokenizer/`: a sentencepiece model and the ids of texts and of conversations.
- `expected.json`: the list of all of it, with the token ids. A case has one list of ids for each pass; later passes
  continue from the cache of the earlier ones.

A record of pass n (counted from 0) has the prefix `pass.n.`, those of the first pass have none. In float32 your numbers
should agree to 1e-4 of the largest number of a record.

To let gemma-np run your program over the kit, and name what is wrong:

    pip install gemma-np
    gemma-np conformance KIT -- ./my-gemma {{model}} {{ids}} {{out}}

It is called once for each case: `{{model}}` is a folder or GGUF file, `{{ids}}` a JSON file with the passes, `{{out}}`
the safetensors file to write: `logits` (`pass.1.logits` and so on for later passes), and any other records.
"""


def write_kit(folder: str | Path) -> int:
    """Write a kit to a new folder and return its bytes. Raises GemmaError when the folder exists."""
    atomic_write(Path(folder), _write_kit, as_folder=True)
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _write_kit(folder: Path) -> None:
    (folder / "README.md").write_text(README.format(version=VERSION), encoding="utf-8")
    records = {row.name: {"shape": row.letters, "meaning": row.meaning} for row in RECORDS}
    (folder / "records.json").write_text(json.dumps(records, indent=1) + "\n")
    for part in ("models", "expected", "operations", "tokenizer"):
        (folder / part).mkdir()
    cases = []
    for name in CONFIGS:
        model = kit_model(name)
        model.save(folder / "models" / name)
        rounded = merge([model], "bfloat16")
        rounded.save(folder / "models" / f"{name}-bf16")
        cases += [_case(folder, name, case, model) for case in CASES]
        cases.append(_case(folder, f"{name}-bf16", "past the window", rounded.dequantized()))
    tokenizer = Tokenizer((BUNDLED[DEFAULT] / "tokenizer.model").read_bytes())
    config = replace(CONFIGS["gemma2"], vocab_size=len(tokenizer), query_pre_attn_scalar=6)  # GGUF has no other
    in_gguf = Gemma(config, random_weights(config, len(CONFIGS)), tokenizer)
    export_gguf(in_gguf, "f32", folder / "models/gemma2.gguf")
    cases.append(_case(folder, "gemma2.gguf", "past the window", in_gguf))
    listed = {"version": VERSION, "cases": cases, "operations": _write_operations(folder / "operations")}
    (folder / "expected.json").write_text(json.dumps(listed, indent=1) + "\n")
    _write_tokenizer(folder / "tokenizer", tokenizer)


def kit_model(name: str) -> Gemma:
    """Return the model of this name in `CONFIGS`, in float32, as every kit has it."""
    return Gemma(CONFIGS[name], random_weights(CONFIGS[name], list(CONFIGS).index(name)), None)


def random_weights(config: GemmaConfig, seed: int) -> dict[str, np.ndarray]:
    """Return random weights of a config: matrices of variance 1 / in, norms around zero."""
    bits = np.random.PCG64(seed)
    weights = {}
    for name, shape in config.weight_shapes():
        uniform = (bits.random_raw(int(np.prod(shape))) >> np.uint64(40)).astype(np.float64) / 2**23 - 1  # -1 to 1
        scale = 0.3 if len(shape) == 1 else (3 / shape[1]) ** 0.5
        weights[name] = (scale * uniform).reshape(shape).astype(np.float32)
    return weights


def _case(folder: Path, name: str, case: str, model: Gemma) -> dict[str, Any]:
    """Write what a model computes in a case, and return its entry in the list."""
    bits, lengths = np.random.PCG64(len(case)), CASES[case]
    choices = model.config.vocab_size - 3  # ids 0 to 2 are control tokens
    ids = [2, *(3 + int(number) % choices for number in bits.random_raw(sum(lengths) - 1))]
    ends = np.cumsum(lengths).tolist()
    passes = [ids[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    exact = replace(model, weights={key: weight.astype(np.float64) for key, weight in model.weights.items()})
    file = f"expected/{name}-{case.replace(' ', '-')}.safetensors"
    records = Reference(exact, passes).records()
    write_tensors(folder / file, {key: np.ascontiguousarray(value, np.float32) for key, value in records.items()}, {})
    return {"name": case, "model": f"models/{name}", "passes": passes, "expected": file}


def _write_operations(folder: Path) -> list[dict[str, Any]]:
    """Write each operation of `gemma_np.testing` on one set of inputs, and return their list."""
    sizes = {"T": 5, "D": 8, "F": 7, "V": 11, "H": 4, "K": 2, "h": 6}
    listed = []
    for seed, (name, operation) in enumerate(OPERATIONS.items()):
        drawn = operation.draw(np.random.Generator(np.random.PCG64(seed)), sizes.__getitem__)
        arguments = {key: _in_float32(drawn[key]) for key in operation.arguments}
        results = operation.reference(*(_in_float64(value) for value in arguments.values()))
        arrays = {f"in.{key}": np.ascontiguousarray(np.atleast_1d(value)) for key, value in arguments.items()}
        for number, result in enumerate(results if isinstance(results, tuple) else (results,)):
            arrays[f"out.{number}"] = np.ascontiguousarray(result, np.float32)
        write_tensors(folder / f"{name}.safetensors", arrays, {})
        listed.append({"name": name, "file": f"operations/{name}.safetensors", "arguments": list(operation.arguments)})
    return listed


def _in_float32(value: Any) -> Any:
    is_float = isinstance(value, float) or (isinstance(value, np.ndarray) and value.dtype.kind == "f")
    return np.float32(value) if is_float else value


def _in_float64(value: Any) -> Any:
    return np.float64(value) if isinstance(value, np.floating | np.ndarray) and value.dtype.kind == "f" else value


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the vocabulary, and the ids of texts and conversations."""
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    lines: list[dict[str, Any]] = [{"text": text, "ids": tokenizer.encode(text)} for text in _TEXTS]
    lines += [{"messages": messages, "ids": chat_ids(messages, tokenizer)} for messages in _TURNS]
    (folder / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
