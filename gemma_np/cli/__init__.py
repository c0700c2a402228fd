"""The command line `gemma-np`. Each file of this package has the commands of one group."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from importlib import import_module
from shutil import get_terminal_size
from textwrap import fill
from typing import Any, NoReturn

import numpy as np

from gemma_np.cli.outputs import check_outputs
from gemma_np.cli.terminal import (
    discard_output,
    exit_on_signals,
    own_warnings_only,
    prepare_streams,
    print_message,
    report_bug,
)
from gemma_np.errors import GemmaError
from gemma_np.mpi import mpi_ranks
from gemma_np.progress import quiet

COMMANDS = {
    "generation": {
        "generate": "Continue a prompt.",
        "chat": "Chat with an instruction-tuned model: each line of standard input is a turn.",
    },
    "model": {
        "perplexity": "Measure the perplexity of a model on a text.",
        "inspect": "Show what a model does with a text, on one HTML page: attention, logit lens, next tokens.",
    },
    "info": {
        "info": "Describe a model: its config, its parameters, and the memory it needs.",
        "models": "List the bundled and the released models.",
    },
    "evaluation": {
        "evaluate": "Evaluate one or two models on multiple-choice questions.",
        "lm-eval": "Run lm-evaluation-harness; its arguments follow, with --model gemma_np.",
    },
    "training": {
        "tokenizer": "Train a tokenizer with the settings of Gemma's own.",
        "train": "Train a Gemma on texts, or fine-tune it on conversations.",
        "distill": "Train a Gemma to match a teacher's distribution: live teacher, precomputed targets, or on-policy.",
        "cache-teacher": "Precompute a teacher's top-k probabilities on texts, for any number of students.",
        "merge": "Average the weights of several checkpoints, or convert one to another dtype.",
        "plot-log": "Plot the losses of one or more runs.",
    },
    "compression": {
        "quantize": "Store a model's weights in 2 to 16 bits: a folder, or a .gguf file in formats of llama-quantize.",
        "prune": "Remove the least important parts of a model.",
        "compress": "Prune a model, heal it by distillation from the original, quantize it; measure each step.",
        "export-gguf": "Write a model to a .gguf file, for llama.cpp and other GGUF readers.",
        "init-checkpoint": "Write random weights in a released model's shapes, to test memory and speed.",
    },
    "oracle": {
        "trace": "Write every intermediate of a run to a safetensors file.",
        "records": "List the records of a trace: name, shape and meaning; or print a name map.",
        "compare": "Compare a dump with a trace, record by record; exit status 1 when they differ.",
        "diagnose": "Find the known mistake, or pair of mistakes, behind a dump; exit status 1 if something is wrong.",
        "judge": "Judge an engine by its greedy answers: identical, tie-break or defect; exit status 1 for a defect.",
        "conformance": "Write a conformance kit, or run a program over one; exit status 1 when a case fails.",
    },
}
"""What each command does, by the file of this package that has it."""

BUG = 70
"""The exit status of a bug (EX_SOFTWARE of sysexits.h)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `gemma-np` and return its exit status.

    0: success; 1: a dump differs; 2: bad input, with one line on standard error; 70: a bug, with the file that has its
    traceback; 130: Ctrl-C; 143: SIGTERM.
    """
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    prepare_streams()
    with exit_on_signals():
        try:
            status = _run(_parsed(list(sys.argv[1:] if arguments is None else arguments) or ["--help"]))
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
        except KeyboardInterrupt as stopped:
            sys.unraisablehook = lambda _: None  # a progress bar that was interrupted at its start cannot be closed
            print(file=sys.stderr)
            if stopped.args:  # how to go on
                print_message(f"gemma-np: {stopped}")
            return 130
        except Exception as error:
            report_bug(error)
            return BUG
        try:
            sys.stdout.flush()
        except OSError:
            discard_output()
        return 2


def _complete() -> None:
    """Answer the shell, which asks for completions of the line that it has in the environment."""
    import argcomplete

    words = os.environ["COMP_LINE"].split()
    argcomplete.autocomplete(parser(words[1] if len(words) > 1 else ""))


def _run(options: argparse.Namespace) -> int:
    # Loading already warns about NaN in the weights, with the name of the tensor.
    with own_warnings_only(), np.errstate(all="ignore"), mpi_ranks() as ranks:
        options.ranks = ranks
        if ranks.size > 1 and not options.shares_work:
            found = f"{ranks.size} ranks, expected one process (without mpiexec)"
            raise GemmaError(f"{options.command}: {found}: it does not share its work")
        with quiet() if options.quiet else nullcontext():
            check_outputs(options)
            status: int | None = options.run(options)
    return status or 0


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """Return the parsed arguments. Exits with one line if they name an unknown command or option, or miss a value."""
    commands = [name for group in COMMANDS.values() for name in group]
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        _Parser("gemma-np").error(f"{arguments[0]}: no such command{_similar(arguments[0], commands)}")
    for argument in arguments:  # argparse fails at it before Python 3.13
        if argument.startswith("--") and argument.endswith("=--"):
            _Parser("gemma-np").error(f"argument {argument[:-3]}: '--', expected a value")
    options, unknown = parser(arguments[0]).parse_known_args(arguments)
    if unknown:
        known = re.findall(r"--[\w-]+", options.parser.format_usage())
        hint = _similar(unknown[0], known) if unknown[0].startswith("-") else "; a text with spaces needs quotes"
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


def _similar(word: str, known: Sequence[str]) -> str:
    """Return the end of a message that proposes what was meant, if there is something like it."""
    close = get_close_matches(word.partition("=")[0], known, 1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print_message(f"{self.prog}: {message} (see {self.prog} --help)")
        sys.exit(2)


class _Version(argparse.Action):
    def __call__(self, *_: Any) -> NoReturn:
        from importlib.metadata import version  # which takes half as long as NumPy

        print(f"gemma-np {version('gemma-np')}")
        sys.exit(0)


def parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands, or one that knows the arguments of the chosen one (and of its group) only.

    It imports no other group, which would take longer than many a command.
    """
    top = _Parser(
        "gemma-np",
        description="Google's Gemma 2 in pure NumPy.",
        epilog='example: gemma-np generate "To be, or not to be"',
    )
    top.set_defaults(parser=top)
    top.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        run: Callable[[argparse.Namespace], int | None], *examples: str, shares_work: bool = False
    ) -> argparse.ArgumentParser:
        name = run.__name__.replace("_", "-")
        sub = commands.add_parser(
            name,
            help=run.__doc__,
            description=fill(run.__doc__ or "", max(20, get_terminal_size().columns - 2)),
            epilog="\n  ".join(["examples:", *examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(parser=sub, run=run, command=name, shares_work=shares_work)
        sub.add_argument("--quiet", action="store_true", help="show results, warnings and errors only")
        return sub

    for group, names in COMMANDS.items():
        if chosen is None or chosen in names:
            import_module(f"gemma_np.cli.{group}").add_commands(command)
        else:
            for name, meaning in names.items():
                commands.add_parser(name, help=meaning)
    return top
