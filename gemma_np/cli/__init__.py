"""The command line `gemma-np`. Each file of this package has the commands of one group."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from gemma_np.cli import compression, evaluation, model, oracle, training
from gemma_np.errors import GemmaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `gemma-np` and return its exit status.

    0: success; 1: a dump differs; 2: bad input, with one line on standard error; 130: Ctrl-C.
    """
    options = parser().parse_args(arguments)
    try:
        # Loading already warns about NaN in the weights, with the name of the tensor.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.showwarning = _print_warning
            status: int | None = options.run(options)
        sys.stdout.flush()
    except GemmaError as error:
        print(f"gemma-np: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"gemma-np: out of memory: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the output is no longer read, as in `gemma-np generate ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"gemma-np: {error}", file=sys.stderr)
        return 2
    return status or 0


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"gemma-np: warning: {message}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser("gemma-np", description="Google's Gemma 2 in pure NumPy.")
    top.add_argument("--version", action="version", version=f"gemma-np {version('gemma-np')}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], int | None], *examples: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            run.__name__.replace("_", "-"),
            help=run.__doc__,
            description=run.__doc__,
            epilog="\n  ".join(["examples:", *examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    for group in (model, evaluation, training, compression, oracle):
        group.add_commands(command)
    return top
