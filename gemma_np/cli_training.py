"""The training part of the command line: tokenizer, train, distill, merge."""

import argparse
from dataclasses import fields
from pathlib import Path

import numpy as np

from gemma_np.config import GemmaConfig, layer_pattern
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.training import trainer
from gemma_np.training.data import open_tokens, read_text, text_files, write_tokens
from gemma_np.training.distillation import check_vocabularies, from_teacher
from gemma_np.training.merging import average
from gemma_np.training.run_state import Recipe, write_beside
from gemma_np.training.vocabulary import train_vocabulary

SHAPE = {  # option: default, meaning
    "hidden-size": (128, "D"),
    "layers": (4, "layers, local and global in turn"),
    "heads": (4, "query heads"),
    "kv-heads": (2, "key-value heads"),
    "head-dim": (32, "channels a head"),
    "ffn": (512, "channels of the feed-forward"),
    "window": (64, "keys that a local layer sees"),
    "context": (256, "the longest text that the model reads"),
}

RECIPE_HELP = {
    "steps": "steps",
    "batch": "texts a batch",
    "length": "tokens a text",
    "rate": "peak of the learning rate",
    "warmup": "steps until the peak",
    "clip": "largest global norm of the gradients",
    "weight_decay": "decay of the matrices",
    "accumulation": "batches averaged into one step",
    "seed": "of weights, data and split",
    "save_every": "steps between two checkpoints",
    "validate_every": "steps between two validations",
}


def tokenizer(options: argparse.Namespace) -> None:
    """Train a tokenizer on texts, the way Gemma's was."""
    lines = (line for file in text_files(Path(options.text)) for line in read_text(file).splitlines())
    model = train_vocabulary(lines, options.size)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    write_beside(Path(options.output), lambda path: path.write_bytes(model))


def train(options: argparse.Namespace) -> None:
    """Train a Gemma 2 on texts, from scratch or from a checkpoint."""
    _train(options, teacher=None)


def distill(options: argparse.Namespace) -> None:
    """Train a Gemma 2 towards what a teacher makes of the texts."""
    _train(options, load(options.teacher))


def merge(options: argparse.Namespace) -> None:
    """Average the weights of several checkpoints of one shape."""
    first, *rest = models = [load(name) for name in options.models]
    for name, model in zip(options.models[1:], rest, strict=True):
        if model.config != first.config:
            raise GemmaError(f"{name}: another config than {options.models[0]}, expected the same")
    Gemma(first.config, average([model.weights for model in models]), first.tokenizer).save(options.output)


def _train(options: argparse.Namespace, teacher: Gemma | None) -> None:
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    out = Path(options.output)
    if options.model:
        start = load(options.model)
        config, words = start.config, _tokenizer_of(start, options.model)
        weights = {name: np.array(weight) for name, weight in start.weights.items()}
    else:
        words = _tokenizer_of(teacher, options.teacher) if teacher else _read_tokenizer(options.tokenizer)
        config = _config(options, len(words))
        weights = trainer.initial_weights(config, np.random.default_rng(recipe.seed))
    if recipe.length > config.max_position_embeddings:
        raise GemmaError(f"length: {recipe.length}, expected at most the context of {config.max_position_embeddings}")
    data = out / "data"
    if not (data / "train.npy").exists():
        write_tokens(text_files(Path(options.text)), words, data, options.validation, recipe.seed)
    tokens = open_tokens(data / "train.npy", recipe.length)
    validation = open_tokens(data / "validation.npy", recipe.length) if options.validation else None
    loss: trainer.Loss = trainer.next_token
    if teacher:
        check_vocabularies(_tokenizer_of(teacher, options.teacher).model, words.model)
        loss = from_teacher(teacher.weights, teacher.config, options.temperature)
    trainer.train(config, weights, words.model, tokens, validation, recipe, out, loss, options.resume)


def _tokenizer_of(model: Gemma, name: str) -> Tokenizer:
    if model.tokenizer is None:
        raise GemmaError(f"{name}: no tokenizer.model, expected one to read the text with")
    return model.tokenizer


def _read_tokenizer(path: str | None) -> Tokenizer:
    if path is None:
        raise GemmaError("expected --tokenizer to train from scratch, or --model to go on from a checkpoint")
    try:
        return Tokenizer(Path(path).read_bytes())
    except OSError as error:
        raise GemmaError(f"{path}: {error.strerror}, expected a tokenizer.model file") from None


def _config(options: argparse.Namespace, vocab_size: int) -> GemmaConfig:
    return GemmaConfig(
        model_type="gemma2",
        vocab_size=vocab_size,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        head_dim=options.head_dim,
        intermediate_size=options.ffn,
        max_position_embeddings=options.context,
        query_pre_attn_scalar=options.head_dim,
        layer_types=layer_pattern(options.layers, local_per_global=1),
        sliding_window=options.window,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    )


def add_tokenizer_arguments(sub: argparse.ArgumentParser) -> None:
    """The options of `gemma-np tokenizer`."""
    sub.add_argument("text", metavar="TEXT", help="a text file, or a folder of .txt files")
    sub.add_argument("--size", metavar="V", type=int, default=2048, help="number of pieces (default 2048)")
    sub.add_argument("-o", "--output", metavar="FILE", default="tokenizer.model", help="default tokenizer.model")


def add_merge_arguments(sub: argparse.ArgumentParser) -> None:
    """The options of `gemma-np merge`."""
    sub.add_argument("models", metavar="M", nargs="+", help="checkpoints of one shape")
    sub.add_argument("-o", "--output", metavar="OUT", required=True, help="the new checkpoint folder")


def add_distill_arguments(sub: argparse.ArgumentParser) -> None:
    """The options of `gemma-np distill`: those of `train`, and the teacher."""
    sub.add_argument("--teacher", metavar="M", required=True, help="the checkpoint to learn from")
    sub.add_argument("--temperature", metavar="T", type=float, default=1.0, help="softens both distributions (1.0)")
    add_train_arguments(sub)


def add_train_arguments(sub: argparse.ArgumentParser) -> None:
    """The options of `gemma-np train`."""
    sub.add_argument("text", metavar="TEXT", help="a text file, or a folder of .txt files; one file is one document")
    sub.add_argument("-o", "--output", metavar="OUT", required=True, help="the folder of the run, a checkpoint")
    sub.add_argument("--resume", action="store_true", help="go on from what OUT holds")
    sub.add_argument("--tokenizer", metavar="FILE", help="train from scratch, with this tokenizer.model")
    sub.add_argument("--model", metavar="M", help="go on from this checkpoint, .gguf file or hub id")
    sub.add_argument("--validation", metavar="P", type=float, default=0.05, help="share of documents held out (0.05)")
    shape = sub.add_argument_group("shape of a model from scratch")
    for name, (default, meaning) in SHAPE.items():
        shape.add_argument(f"--{name}", metavar="N", type=int, default=default, help=f"{meaning} ({default})")
    recipe = sub.add_argument_group("recipe")
    for field in fields(Recipe):
        recipe.add_argument(
            f"--{field.name.replace('_', '-')}",
            metavar="N",
            type=type(field.default),
            default=field.default,
            help=f"{RECIPE_HELP[field.name]} ({field.default})",
        )
