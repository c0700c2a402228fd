"""The commands that read a text with a model: perplexity, inspect.

Each raises GemmaError for bad input, as one line that `gemma-np` prints.
"""

import argparse
import sys
from pathlib import Path

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.cli.arguments import Command, add_dtype, add_model
from gemma_np.cli.options import add_number
from gemma_np.cli.outputs import add_output_file
from gemma_np.cli.terminal import print_status
from gemma_np.gemma import load
from gemma_np.input_files import read_text
from gemma_np.inspection.inspect_text import inspect_text
from gemma_np.inspection.page import page
from gemma_np.mpi import Ranks
from gemma_np.progress import progress_bar


def add_commands(command: Command) -> None:
    """Register the commands of this group."""
    sub = command(
        perplexity,
        "gemma-np perplexity --model ./gemma-2-2b book.txt",
        "gemma-np perplexity --model ./gemma-2-2b --context 4096 --stride 512 book.txt",
        "mpiexec -n 4 gemma-np perplexity --model ./gemma-2-2b book.txt",
        shares_work=True,
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


def perplexity(options: argparse.Namespace) -> None:
    """Measure the perplexity of a model on a text."""
    ranks: Ranks = options.ranks
    if options.file == "-":  # mpiexec gives the standard input to rank 0
        text = ranks.all_gather("" if ranks.rank else sys.stdin.read())[0]
    else:
        text = read_text(Path(options.file))
    loss = load(options.model, options.dtype).text_loss(text, options.context, options.stride, ranks)
    if ranks.rank:
        return
    print(f"perplexity      {loss.perplexity:.4f}")
    print(f"bits per token  {loss.bits_per_token:.4f}")
    print(f"bits per byte   {loss.bits_per_byte:.4f}")
    print(f"tokens          {loss.tokens}")


def inspect(options: argparse.Namespace) -> None:
    """Show what a model does with a text, on one HTML page: attention, logit lens, next tokens."""
    model = load(options.model, options.dtype)
    inspection = inspect_text(
        model, options.passage, lambda layers: progress_bar(layers, desc="logit lens", unit="layers")
    )
    html = page(inspection, model.config, Path(options.model).name)
    path = Path(options.output)
    atomic_write(path, lambda partial: partial.write_text(html, encoding="utf-8"))
    print_status(f"{path}: {len(inspection.ids)} tokens; open it in a browser")
