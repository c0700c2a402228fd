"""Command-line arguments that several commands share."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gemma_np.cli.options import add_number
from gemma_np.compression.calibration import calibration_ids
from gemma_np.compression.quantization import Scheme
from gemma_np.compression.quantize_model import DEFAULT_METHOD, QUANTIZATION_METHODS
from gemma_np.errors import GemmaError
from gemma_np.gemma import DEFAULT, DTYPES, Gemma
from gemma_np.input_files import read_text
from gemma_np.training.data import text_files
from gemma_np.weights.formats import FORMATS

MODEL_HELP = "a checkpoint folder, a .gguf file, a hub id such as google/gemma-2-2b-it, or the name of a bundled model"

DRAFT_HELP = (
    "a model of the same vocabulary, as for --model; int4, the model itself in 4 bits; half, the first half of its "
    "layers; or lookup, what followed the last tokens when they occurred before"
)

TEXT_HELP = "a text file, or a folder of .txt files; one file is one document"


_LONGEST_RANGE = 2**20  # of token ids; more than any vocabulary has


Command = Callable[..., argparse.ArgumentParser]
"""command(run, *examples, shares_work=False) registers `run`, a function of the parsed arguments, as a command with its
name and docstring, and returns the parser of the command. One that does not share its work refuses several ranks; one
that does finds them in `ranks` of its arguments."""


def add_model(parser: argparse.ArgumentParser, default: str = DEFAULT) -> None:
    """Add --model."""
    parser.add_argument("--model", metavar="M", default=default, help=f"{MODEL_HELP} (default: {default})")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add --dtype."""
    meaning = (
        "auto keeps the matrices of a quantized checkpoint and converts others to float32; stored also keeps 16-bit "
        "matrices, at half the memory; float32 and float64 dequantize"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help=f"dtype of the weights (auto): {meaning}")


SCHEME_OPTIONS = ("group_size", "zero_points", "embedding_format", "method")
"""The options of `add_scheme` besides the format."""


def add_scheme(parser: argparse.ArgumentParser, flag: str, formats: Sequence[str], *, required: bool = False) -> None:
    """Add the arguments of quantization; `flag` is the option that sets one of the formats."""
    parser.add_argument(flag, dest="format", choices=formats, required=required, help="format of the matrices")
    add_group_size(parser)
    parser.add_argument("--zero-points", action="store_true", help="int4: use asymmetric grids with zero points")
    methods = "; ".join(f"{name}: {meaning}" for name, meaning in QUANTIZATION_METHODS.items())
    choices = list(QUANTIZATION_METHODS)
    parser.add_argument("--method", choices=choices, help=f"rounding method ({DEFAULT_METHOD}); {methods}")
    meaning = "format of the embedding (bfloat16); in another one neither transformers nor vLLM loads the model"
    parser.add_argument("--embedding-format", choices=("bfloat16", "int8", "float8"), help=meaning)


def add_group_size(parser: argparse._ActionsContainer) -> None:
    """Add --group-size."""
    size = FORMATS["int4"].group_size
    add_number(parser, "--group-size", f"channels that share a scale; default: {size} for int4, else a whole row")


def read_schemes(options: argparse.Namespace) -> tuple[Scheme, Scheme]:
    """Return the scheme of the matrices and that of the embedding."""
    scheme = Scheme(options.format, read_group_size(options, options.format), options.zero_points)
    return scheme, Scheme(options.embedding_format or "bfloat16")


def read_group_size(options: argparse.Namespace, format: str) -> int | None:
    """Return the group size that the arguments name, or the default of the format."""
    return options.group_size or FORMATS[format].group_size


def refuse_without(flag: str, options: argparse.Namespace, *names: str) -> None:
    """Raise GemmaError when an option is given that only has a meaning beside `flag`."""
    for name in names:
        if getattr(options, name):
            raise GemmaError(f"--{name.replace('_', '-')}: given without {flag}, expected both or neither")


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of calibration."""
    parser.add_argument("--calibration-text", metavar="TEXT", help=f"calibration text: {TEXT_HELP}")
    add_number(parser, "--calibration-samples", "number of samples", 16)
    add_number(parser, "--calibration-length", "tokens per sample", 512)


def read_calibration(options: argparse.Namespace, model: Gemma) -> np.ndarray:
    """Return the calibration ids that the arguments name, [N, T]. Raises GemmaError when there is no text."""
    if options.calibration_text is None:
        raise GemmaError("--calibration-text: missing, expected a text file or a folder of .txt files")
    text = "\n".join(read_text(file) for file in text_files(Path(options.calibration_text)))
    return calibration_ids(model, text, options.calibration_samples, options.calibration_length)


def read_ids(text: str) -> list[int]:
    """Return the token ids of a comma-separated list, in which 3-6 stands for 3,4,5,6. Raises GemmaError when it is not
    one."""
    try:
        return [id for part in text.split(",") for id in _ids(part)]
    except ValueError:
        raise GemmaError(f"--ids: {text!r}, expected whole numbers separated by commas") from None


def _ids(part: str) -> Sequence[int]:
    first, dash, last = part.partition("-")
    if not first or not dash:
        return [int(part)]
    ids = range(int(first), int(last) + 1)
    if not ids or ids[-1] - ids[0] > _LONGEST_RANGE:
        raise ValueError
    return ids
