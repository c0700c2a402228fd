"""The files of a folder beside weights, config and vocabulary: other programs then use it as they use Google's folders.

`tokenizer_config.json` and `special_tokens_map.json` tell transformers and vLLM to put `<bos>` first, which pieces are
special, and how a conversation is formatted; `generation_config.json` tells them where a generation ends.
"""

from pathlib import Path
from typing import Any

from gemma_np.checkpoints.atomic_write import write_content, write_json
from gemma_np.input_files import read_bytes
from gemma_np.text.chat_template import CHAT_TEMPLATE
from gemma_np.text.tokenizer import Tokenizer

_WEIGHTS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
"""How the names of files with weights end, or with the state of a training run."""

_OF_WEIGHTS = (
    *("config.json", "tokenizer.model", "log.jsonl"),  # written anew; the log of a run
    *("quantize_config.json", "quant_config.json", "recipe.yaml"),  # how weights are quantized
)


def write_companion_files(folder: Path, tokenizer: Tokenizer | None, source: Path | None) -> None:
    """Write the companion files of a folder.

    source: the folder that the model was read from. Its files are copied, as far as they are not about its weights;
    hidden files and folders are left out. What it does not have is made from the tokenizer, if there is one.

    Raises GemmaError when a file cannot be read or written.
    """
    kept = [path for path in sorted(source.iterdir()) if _is_kept(path)] if source and source.is_dir() else []
    for path in kept:
        write_content(folder / path.name, read_bytes(path, "a file of a checkpoint"))
    names = {path.name for path in kept}
    for name, values in _FILES.items():
        if tokenizer is not None and name not in names:
            write_json(folder / name, values(tokenizer))


def _is_kept(path: Path) -> bool:
    return (
        path.is_file()
        and not path.name.startswith(".")
        and not path.name.endswith(_WEIGHTS)
        and path.name not in _OF_WEIGHTS
    )


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of tokenizer_config.json."""
    special = {*tokenizer.special.values(), *tokenizer.turn_pieces}
    added = sorted(special | tokenizer.user_defined, key=tokenizer.id)
    values = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "spaces_between_special_tokens": False,
        "mask_token": None,  # transformers would add one to a vocabulary without
        **special_tokens_map(tokenizer),
        "added_tokens_decoder": {tokenizer.id(piece): _added_token(piece, piece in special) for piece in added},
    }
    return values | ({"chat_template": CHAT_TEMPLATE} if tokenizer.turn_pieces else {})


def _added_token(piece: str, special: bool) -> dict[str, Any]:
    """Describe a piece that stays whole; those that are not special are found in a text whose spaces are U+2581."""
    anywhere = {"lstrip": False, "rstrip": False, "single_word": False}
    return {"content": piece, **anywhere, "normalized": not special, "special": special}


def special_tokens_map(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of special_tokens_map.json."""
    named = {f"{meaning}_token": piece for meaning, piece in tokenizer.special.items()}
    return {**named, "additional_special_tokens": tokenizer.turn_pieces}


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of generation_config.json: a generation ends as ours does."""
    pad = tokenizer.special.get("pad")
    padding = {} if pad is None else {"pad_token_id": tokenizer.id(pad)}
    return {"bos_token_id": tokenizer.bos, "eos_token_id": sorted(tokenizer.ends), **padding}


_FILES = {
    "tokenizer_config.json": tokenizer_config,
    "special_tokens_map.json": special_tokens_map,
    "generation_config.json": generation_config,
}
