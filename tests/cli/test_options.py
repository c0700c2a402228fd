"""Every numeric option of every command has a range in the table, in its help and in its check."""

import argparse
import math
import re
import subprocess
import sys

import pytest

from gemma_np.cli import COMMANDS, parser
from gemma_np.cli.options import OPTIONS, Range
from gemma_np.training.training_state import TrainingConfig
from tests.cli.test_written_models import run
from tests.support import tiny


def commands(chosen=None):
    (action,) = [action for action in parser(chosen)._actions if isinstance(action, argparse._SubParsersAction)]
    return action.choices


NUMBERS = [
    (command, action)
    for command, sub in commands().items()
    for action in sub._actions
    if isinstance(getattr(action.type, "__self__", None), Range)
]
IDS = [f"{command} {action.option_strings[0]}" for command, action in NUMBERS]


def test_the_table_of_commands_has_every_command_and_what_its_docstring_says():
    assert {name: " ".join(sub.description.split()) for name, sub in commands().items()} == {
        name: meaning for group in COMMANDS.values() for name, meaning in group.items()
    }
    assert parser("--help").format_help() == parser().format_help()


@pytest.mark.parametrize("group", COMMANDS)
def test_a_command_has_the_same_arguments_whether_chosen_or_not(group):
    for name in COMMANDS[group]:
        assert commands(name)[name].format_help() == commands()[name].format_help()


@pytest.mark.parametrize(("chosen", "imported"), [("--help", []), ("models", ["info"]), ("diagnose", ["oracle"])])
def test_only_the_group_of_the_chosen_command_is_imported(chosen, imported):
    code = (
        "import sys; from gemma_np.cli import COMMANDS, parser; parser(sys.argv[1]); "
        "print(*[group for group in COMMANDS if f'gemma_np.cli.{group}' in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code, chosen], text=True).split() == imported


def test_every_number_has_a_row_and_every_row_an_option():
    for sub in commands().values():
        for action in sub._actions:
            assert action.type is None or isinstance(action.type.__self__, Range), action.option_strings
            assert action.type or not isinstance(action.default, int | float) or action.nargs == 0
    assert {action.type.__self__ for _, action in NUMBERS} == set(OPTIONS.values())


@pytest.mark.parametrize(("command", "action"), NUMBERS, ids=IDS)
def test_the_help_says_the_range_and_the_default_is_in_it(command, action):
    assert str(action.type.__self__) in action.help
    assert action.default is None or action.type(str(action.default)) == action.default


def edges(allowed):
    """Return texts of numbers at the ends of a range, and of numbers just outside."""
    if allowed.whole:
        return [str(allowed.low), str(allowed.high)], [str(allowed.low - 1), str(allowed.high + 1), "1.5", "1e3"]
    inner = [math.nextafter(allowed.low, math.inf), math.nextafter(allowed.high, -math.inf)]
    inside = [inner[0] if allowed.above else allowed.low, inner[1] if allowed.below else allowed.high]
    outside = [math.nextafter(allowed.low, -math.inf), math.nextafter(allowed.high, math.inf)]
    outside = [allowed.low if allowed.above else outside[0], allowed.high if allowed.below else outside[1]]
    return list(map(repr, inside)), list(map(repr, outside))


@pytest.mark.parametrize(("command", "action"), NUMBERS, ids=IDS)
def test_the_ends_of_a_range(command, action):
    allowed, flag = action.type.__self__, action.option_strings[0]
    inside, outside = edges(allowed)
    for text in inside:
        assert action.type(text) == (int(text) if allowed.whole else float(text))
    for text in (*outside, "1e23", "-1e23", "nan", "inf", "-inf", "", "x", "9" * 5000, "--"):
        status, error = run([command, f"{flag}={text}"])
        assert status == 2
        assert re.match(rf"gemma-np( {command})?: argument {flag}: .*, expected a ", error)
        assert error.count("\n") == 1
        assert len(error) <= 201


def test_a_number_that_is_too_large_is_told_the_largest():
    for number, limits in (("2147483648", "at most 2147483647"), ("0", "1 or more")):
        status, error = run(["generate", f"--top-k={number}", "a"])
        assert status == 2
        assert f'argument --top-k: "{number}", expected a whole number, {limits} (' in error


@pytest.mark.parametrize(
    ("arguments", "option", "beside"),
    [
        (["train", "{}/text.txt", "--model", "{}/model", "--group-size", "2"], "group-size", "quantization-aware"),
        (["compress", "{}/text.txt", "--model", "{}/model", "--group-size", "2"], "group-size", "quantize"),
        (["compress", "{}/text.txt", "--model", "{}/model", "--zero-points"], "zero-points", "quantize"),
        (["compress", "{}/text.txt", "--embedding-format", "int8"], "embedding-format", "quantize"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(arguments, option, beside, files, tmp_path):
    status, error = run([*(argument.format(files) for argument in arguments), "-o", str(tmp_path / "out")])
    assert status == 2
    assert error == f"gemma-np: --{option}: given without --{beside}, expected both or neither\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name in vars(TrainingConfig()) if name != "seed"])
def test_the_library_takes_what_the_options_of_training_take(name):
    for text in edges(OPTIONS[f"--{name.replace('_', '-')}"])[0]:
        TrainingConfig(**{name: type(getattr(TrainingConfig(), name))(text)})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    tiny.gemma().save(folder / "model")
    (folder / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    (folder / "q.jsonl").write_text('{"question": "Q", "choices": ["a", "b"], "answer": 0}\n' * 3)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "The"],
        ["generate", "--temperature", "1", "The"],
        ["perplexity", "{}/text.txt"],
        ["evaluate", "{}/q.jsonl"],
        ["info", "--training"],
        ["trace", "--prompt", "The sea", "-o", "{}/trace.safetensors"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_the_ends_of_each_range_work_or_are_refused_in_one_line(arguments, files, tmp_path):
    command, *others = (argument.format(files if "trace." not in argument else tmp_path) for argument in arguments)
    for _, action in (pair for pair in NUMBERS if pair[0] == command):
        for text in edges(action.type.__self__)[0]:
            if action.option_strings[0] == "--decode" and text != "0":
                continue  # each step costs time
            status, error = run([command, "--model", str(files / "model"), *others, action.option_strings[0], text])
            assert status in (0, 2), (action.option_strings, text)
            assert status == 0 or error.count("\n") == 1
            for path in tmp_path.iterdir():
                path.unlink()
