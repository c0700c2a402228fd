"""The command line `gemma-np`. Each file of this package has the commands of one group."""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

import numpy as np

from gemma_np.cli import compression, evaluation, info, model, oracle, training
from gemma_np.cli.outputs import check_outputs
from gemma_np.cli.terminal import discard_output, exit_on_signals, prepare_streams, print_message, report_bug
from gemma_np.errors import GemmaError

BUG = 70
"""The exit status of a bug (EX_SOFTWARE of sysexits.h)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `gemma-np` and return its exit status.

    0: success; 1: a dump differs; 2: bad input, with one line on standard error; 70: a bug, with the file that has its
    traceback; 130: Ctrl-C; 143: SIGTERM.
    """
    prepare_streams()
    with exit_on_signals():
        try:
            status = _run(parser().parse_args(_checked(sys.argv[1:] if arguments is None else arguments)))
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # the output is no longer read, as in `gemma-np generate ... | head`
            discard_output()
            return 0
        except GemmaError as error:
            print_message(f"gemma-np: {error}")
        except MemoryError as error:
            print_message(f"gemma-np: out of memory: {error}")
        except OSError as error:
            print_message(f"gemma-np: {error.filename or 'standard output'}: {error.strerror or error}")
        except KeyboardInterrupt:
            sys.unraisablehook = lambda _: None  # a progress bar that was interrupted at its start cannot be closed
            print(file=sys.stderr)
            return 130
        except Exception as error:
            report_bug(error)
            return BUG
        try:
            sys.stdout.flush()
        except OSError:
            discard_output()
        return 2


def _run(options: argparse.Namespace) -> int:
    # Loading already warns about NaN in the weights, with the name of the tensor.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.showwarning = _print_warning
        check_outputs(options)
        status: int | None = options.run(options)
    return status or 0


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print_message(f"gemma-np: warning: {message}")


def _checked(arguments: Sequence[str]) -> Sequence[str]:
    """Return the arguments. Exits if one is `--option=--`, at which argparse fails before Python 3.13."""
    for argument in arguments:
        if argument.startswith("--") and argument.endswith("=--"):
            _Parser("gemma-np").error(f"argument {argument[:-3]}: '--', expected a value")
    return arguments


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print_message(f"{self.prog}: {message} (see {self.prog} --help)")
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = _Parser("gemma-np", description="Google's Gemma 2 in pure NumPy.")
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

    for group in (model, info, evaluation, training, compression, oracle):
        group.add_commands(command)
    return top
