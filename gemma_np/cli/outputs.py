"""What a command writes: never onto its input, over an existing file only with --force; at the end, a line about it."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from gemma_np.checkpoints.atomic_write import check_file_to_write
from gemma_np.cli.terminal import print_status, size_of
from gemma_np.errors import GemmaError
from gemma_np.gemma import BUNDLED
from gemma_np.plotting import plot_format

_INPUTS = (
    *("model", "models", "compare", "teacher", "targets", "tokenizer", "runs"),
    *("text", "file", "calibration_text", "reference", "dump", "name_map"),
)
_OUTPUTS = ("output", "plot")


def add_output_file(parser: argparse.ArgumentParser, meaning: str, default: str | None = None) -> None:
    """Add -o for a file, and --force."""
    text = meaning if default is None else f"{meaning} ({default})"
    parser.add_argument("-o", "--output", metavar="FILE", default=default, required=default is None, help=text)
    add_force(parser)


def add_new_folder(parser: argparse.ArgumentParser, meaning: str = "the new checkpoint folder") -> None:
    """Add -o for a new checkpoint folder."""
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help=meaning)
    parser.set_defaults(must_be_new=True)


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add --force."""
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def check_outputs(options: argparse.Namespace) -> None:
    """Check the outputs of a command before it begins.

    Folders are never replaced: that takes two steps, and a process that is killed between them would leave neither.

    Raises GemmaError when an output is an input or lies in one, when it exists already (a file: without --force),
    when the folder of a file does not exist, and when a plot cannot be drawn.
    """
    for name in _OUTPUTS:
        output = getattr(options, name, None)
        if output is None:
            continue
        path = Path(output)
        for given in _inputs(options):
            _check_apart(path, given)
        if os.path.lexists(path) and getattr(options, "must_be_new", False):
            raise GemmaError(f"{path}: exists, expected a new folder")
        if "force" in options:  # the output is a file
            if path.is_file() and not options.force:
                raise GemmaError(f"{path}: exists, expected another file, or --force to replace it")
            check_file_to_write(path)
    if getattr(options, "plot", None):
        plot_format(options.plot)


def report_written(output: str | Path, note: str = "") -> None:
    """Print one line on the file or folder that a command has written, with its size."""
    path = Path(output)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    print_status(f"{path}: {size_of(sum(file.stat().st_size for file in files))}{note}")


def _inputs(options: argparse.Namespace) -> Iterator[Path]:
    """Yield the files and folders that a command reads."""
    for name in _INPUTS:
        values = getattr(options, name, None) or []
        for value in [values] if isinstance(values, str) else values:
            path = BUNDLED.get(value, Path(value))
            if os.path.exists(path):  # an input may also be a hub id or a text, of any length
                yield path


def _check_apart(output: Path, given: Path) -> None:
    """Check that an output is not an input, by any name, and does not lie in one."""
    if output.exists() and output.samefile(given):
        raise GemmaError(f"{output}: is the input {given}, expected another place to write to")
    if any(parent.exists() and parent.samefile(given) for parent in Path(os.path.realpath(output)).parents):
        raise GemmaError(f"{output}: lies in the input {given}, expected a place outside of it")
