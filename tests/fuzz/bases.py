"""Valid files to mutate, made when they are needed: {name: content}."""

import dataclasses
import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from gemma_np import Gemma, training
from gemma_np.checkpoints.config_json import config_to_json
from gemma_np.checkpoints.saving import save_folder
from gemma_np.compression.export_gguf import export_gguf
from gemma_np.compression.quantization import Scheme
from gemma_np.compression.quantize_model import quantize_model
from gemma_np.mpi import Ranks
from gemma_np.oracle.trace import write_trace
from tests.support import tiny
from tests.support.strategies import random_weights

IDS = [2, 5, 9, 40, 7, 31]
SHAPE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
SHAPE |= {"intermediate_size": 8, "sliding_window": 4, "max_position_embeddings": 64}
CONFIG = training.TrainingConfig(
    steps=4, batch_size=2, seq_len=32, learning_rate=0.01, warmup_steps=1, save_every=2, eval_every=2, val_fraction=0.3
)
CONVERSATION = [{"role": "user", "content": "How many?"}, {"role": "model", "content": "None."}]
QUESTION = {"question": "Who lit the lamp?", "choices": ["She", "The sea", "12"], "answer": 0}


class Interrupt(Exception):
    """Stops a training run."""


class InterruptedRanks(Ranks):
    """One process, which is killed in its third step."""

    reductions = 0

    def all_reduce(self, array):
        if array.size == 1:  # the loss
            self.reductions += 1
        if self.reductions == 3:
            raise Interrupt


def content(folder):
    """Return the files below a folder."""
    names = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


def made(write):
    """Return the files that `write` writes into the folder that it is given."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return content(Path(folder))


def new_model():
    return training.new_model(tiny.tokenizer(), **SHAPE)


def two_layers(model_type, **sizes):
    """Return a small model of two layers, with the sizes and constants that a test needs."""
    kinds = {"layer_types": tiny.config(model_type).layer_types[:2], "num_hidden_layers": 2}
    return tiny.gemma(model_type, **kinds, **sizes)


@cache
def configs():
    """config.json files of each model type, with old and new keys."""
    files = {}
    for model_type in ("gemma", "gemma2", "gemma3_text"):
        files[f"{model_type}/config.json"] = config_to_json(two_layers(model_type).config)
    new = files["gemma2/config.json"] | {"rope_parameters": {"rope_theta": 300.0, "rope_type": "default"}}
    files["gemma2-new/config.json"] = {name: value for name, value in new.items() if name != "rope_theta"}
    new = files["gemma3_text/config.json"] | {"sliding_window_pattern": 2}
    for name in ("rope_theta", "rope_local_base_freq", "rope_scaling", "layer_types"):
        new.pop(name, None)
    new["rope_parameters"] = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 300.0},
    }
    files["gemma3-new/config.json"] = new
    text = {name: value for name, value in files["gemma3_text/config.json"].items() if name != "model_type"}
    files["gemma3/config.json"] = {"model_type": "gemma3", "text_config": text | {"model_type": "gemma3_text"}}
    return {name: json.dumps(values).encode() for name, values in files.items()}


@cache
def checkpoints():
    """A checkpoint folder of each model type, in two dtypes."""

    def write(folder):
        for model_type in ("gemma", "gemma2", "gemma3_text"):
            two_layers(model_type).save(folder / model_type)
        model = two_layers("gemma2")
        half = {name: weight.astype(np.float16) for name, weight in model.weights.items()}
        save_folder(folder / "half", model.config, half.items(), tiny.tokenizer())

    return made(write)


@cache
def shards():
    """A checkpoint in shards with an index."""
    model = two_layers("gemma2")
    return made(
        lambda folder: save_folder(folder / "model", model.config, model.weights.items(), tiny.tokenizer(), 20_000)
    )


@cache
def quantized():
    """A checkpoint in each quantized format."""
    schemes = {
        "int8": Scheme("int8"),
        "int4": Scheme("int4", 8),
        "zeros": Scheme("int4", 8, zero_points=True),
        "float8": Scheme("float8"),
    }
    model = two_layers("gemma2", hidden_size=16, intermediate_size=16)

    def write(folder):
        for name, scheme in schemes.items():
            weights = quantize_model(model, scheme)
            save_folder(folder / name, model.config, weights, tiny.tokenizer())

    return made(write)


@cache
def gguf():
    """A GGUF file of each model type."""

    def write(folder):
        for model_type in ("gemma", "gemma2", "gemma3_text"):
            sizes = {"hidden_size": 32, "head_dim": 32, "intermediate_size": 32, "query_pre_attn_scalar": 32}
            sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
            if model_type == "gemma2":
                sizes |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
            kinds = {"gemma3_text": ("sliding_attention",) * 2}
            config = two_layers(model_type, **sizes).config
            config = dataclasses.replace(config, layer_types=kinds.get(model_type, config.layer_types))
            model = Gemma(config, random_weights(config, 0), tiny.tokenizer())
            export_gguf(model, "q4_0" if model_type == "gemma" else "q8_0", folder / f"{model_type}.gguf")

    return made(write)


@cache
def dump():
    """A model, a trace of it, another implementation's dump with its own names, and the map between the names."""

    def write(folder):
        model = two_layers("gemma2")
        model.save(folder / "model")
        write_trace(model, [IDS[:4], IDS[4:]], folder / "ref.safetensors", source="model")
        write_trace(model, [IDS[:4], IDS[4:]], folder / "theirs.safetensors", source="model", pattern="layers.0.*")
        (folder / "names.json").write_text(json.dumps({"blk.{layer}.norm": "layers.{layer}.input_layernorm"}))

    files = made(write)
    # The new name is as long as the old one, so that the header stays as it is.
    theirs = files["theirs.safetensors"]
    old, new = b'"layers.0.input_layernorm"', b'"blk.0.norm"'
    files["theirs.safetensors"] = renamed(theirs, old, new)
    return files


def renamed(data, old, new):
    """Return a safetensors file with a name in its header replaced."""
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(old, new)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


@cache
def texts():
    return {f"texts/{number}.txt": tiny.TEXT.encode() for number in range(4)}


@cache
def training_run():
    """A run on texts, killed after its first checkpoint."""
    return interrupted(texts(), lambda folder, **options: training.train(new_model(), folder / "texts", **options))


@cache
def fine_tuning_run():
    """A run on conversations, killed after its first checkpoint."""
    return interrupted(
        conversations(), lambda folder, **options: training.fine_tune(new_model(), folder / "chats.jsonl", **options)
    )


def interrupted(files, train):
    def write(folder):
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        try:
            train(folder, output=folder / "run", config=CONFIG, ranks=InterruptedRanks())
        except Interrupt:
            return
        raise AssertionError("the run was not interrupted")

    return made(write)


@cache
def targets():
    """A teacher's cached targets."""

    def write(folder):
        tokens = np.array(tiny.tokenizer().encode(tiny.TEXT * 2))
        training.cache_teacher(two_layers("gemma2"), tokens, folder / "targets", top_k=4, seq_len=16, val_fraction=0.3)

    return made(write)


def conversations():
    lines = [{"messages": CONVERSATION * count} for count in (1, 2, 1, 3)]
    return {"chats.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}


def questions():
    lines = [QUESTION, QUESTION | {"question": "Who counted?", "answer": 2}, QUESTION | {"choices": ["x", "y"]}]
    return {"questions.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}


def log():
    lines = [
        {"step": step, "loss": 5 / step, "grad_norm": 1.0, "learning_rate": 0.01, "tokens_per_second": 9.0}
        | ({"val_loss": 4 / step} if step % 2 == 0 else {})
        for step in range(1, 7)
    ]
    return {"run/log.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}
