"""Standard streams that are closed or take only ASCII, text that would control a terminal, signals, and bugs."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import pytest

from gemma_np import Gemma, GemmaError, cli
from gemma_np.cli import main
from gemma_np.cli.terminal import print_message, printable, report_bug
from gemma_np.errors import GemmaWarning

GENERATE = [sys.executable, "-m", "gemma_np", "generate", "--max-new-tokens", "3"]


def shell(redirections, *arguments, encoding=None, content=b""):
    """Run gemma-np in a shell with redirections such as `>&-`; return status, output and errors as bytes."""
    command = ["sh", "-c", f'"$@" {redirections}', "sh", sys.executable, "-m", "gemma_np", *arguments]
    environment = os.environ | ({"PYTHONIOENCODING": encoding} if encoding else {})
    process = subprocess.run(command, input=content, capture_output=True, timeout=60, env=environment)
    return process.returncode, process.stdout, process.stderr


@pytest.mark.skipif(os.name != "posix", reason="a shell's redirections")
@pytest.mark.parametrize("redirections", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(redirections):
    status, out, err = shell(redirections, "generate", "--max-new-tokens", "3", "To be")
    assert status == 0
    assert (out == b"") == (">&-" in redirections.replace("2>&-", ""))
    assert (err == b"") == ("2>&-" in redirections)


@pytest.mark.skipif(os.name != "posix", reason="a shell's redirections")
def test_chat_with_a_closed_input_ends():
    assert shell("<&-", "chat", "--max-new-tokens", "3")[:2] == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_an_output_that_is_full():
    status, _, err = shell("> /dev/full", "generate", "--max-new-tokens", "3", "To be")
    assert (status, err) == (2, b"gemma-np: standard output: No space left on device\n")


def test_an_output_that_takes_only_ascii(tmp_path):
    question = '{"question": "Q", "choices": ["a", "b"], "answer": 0}\n'
    (tmp_path / "q.jsonl").write_text(3 * question)
    status, out, _ = shell("", "evaluate", str(tmp_path / "q.jsonl"), encoding="ascii")
    assert status == 0
    assert rb"\xb1" in out  # plus or minus


def test_an_input_is_utf8_whatever_the_encoding_of_the_terminal():
    text = "Caf\u00e9 \u2028 \U0001f600".encode()
    expected = shell("", "perplexity", "-", content=text)
    assert expected[0] == 0
    assert shell("", "perplexity", "-", encoding="ascii", content=text) == expected


@pytest.mark.parametrize("arguments", [["perplexity", "-"], ["chat"]])
def test_an_input_that_is_not_utf8(arguments):
    status, out, err = shell("", *arguments, content=b"ab\xff\n")
    assert (status, out) == (2, b"")
    assert err.endswith(b'gemma-np: text: "\\udcff" at character 2, expected text that UTF-8 can encode\n')


def test_an_argument_that_is_not_utf8(capsys):
    assert main(["generate", os.fsdecode(b"ab\xff")]) == 2
    assert 'text: "\\udcff" at character 2, expected text that UTF-8' in capsys.readouterr().err


def test_messages_cannot_control_the_terminal(capsys, tmp_path):
    assert main(["generate", "--model", str(tmp_path / "\x1b[31m\nred\r\u202e"), "x"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert r"\x1b[31m\nred\r\u202e: no such folder or file" in err


def test_text_on_a_terminal_cannot_control_it(monkeypatch, capsys):
    monkeypatch.setattr(Gemma, "stream", lambda *_, **__: iter(["a\n", "\x1b]0;title\x07", "\tb\r\x9b"]))
    assert main(["generate", "x"]) == 0
    assert capsys.readouterr().out == "a\n\x1b]0;title\x07\tb\r\x9b\n"  # a pipe gets what the model wrote
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["generate", "x"]) == 0
    assert capsys.readouterr().out == "a\n\\x1b]0;title\\x07\tb\\r\\x9b\n"


@pytest.mark.parametrize(
    ("text", "expected"), [("a\tb\nc", "a\tb\nc"), ("\x00\x7f", r"\x00\x7f"), ("\u202e", r"\u202e")]
)
def test_printable(text, expected):
    assert printable(text) == expected


def test_a_long_message_keeps_both_ends(capsys):
    print_message("gemma-np: " + "x " * 500 + ", expected y")
    line = capsys.readouterr().err
    assert len(line) == 201
    assert line.startswith("gemma-np: x x")
    assert line.endswith("x x , expected y\n")
    print_message(f"gemma-np: {'/folder' * 30}/theirs.safetensors: norm: missing")
    assert re.fullmatch(r"gemma-np: \.\.\.[/folder]{30}/theirs\.safetensors: norm: missing\n", capsys.readouterr().err)
    print_message("y" * 200)
    assert capsys.readouterr().err == "y" * 200 + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--seed=--", "x"], "gemma-np: argument --seed: '--', expected a value (see gemma-np --help)"),
        (
            ["generate", "--nonsense", "x"],
            "gemma-np generate: unrecognized arguments: --nonsense (see gemma-np generate ",
        ),
        (
            ["generate", "x", "--max_new_tokens=3"],
            "gemma-np generate: unrecognized arguments: --max_new_tokens=3; did you mean --max-new-tokens?",
        ),
        (
            ["generate", "To", "be"],
            "gemma-np generate: unrecognized arguments: be; a text with spaces needs quotes (see",
        ),
        (["--nonsense", "generate", "x"], "gemma-np: unrecognized arguments: --nonsense x (see gemma-np --help)"),
        (["nonsense"], "gemma-np: nonsense: no such command (see gemma-np --help)"),
        (["genrate"], "gemma-np: genrate: no such command; did you mean generate? (see gemma-np --help)"),
        (["info", "--batch-size", "x"], "gemma-np info: argument --batch-size: "),
    ],
)
def test_wrong_arguments_give_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    err = capsys.readouterr().err
    assert exit.value.code == 2
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert len(err) <= 201


def test_a_bug_gives_one_line_and_a_file_with_the_traceback(monkeypatch, capsys):
    def fail(*_):
        raise KeyError("a detail")

    monkeypatch.setattr(cli, "report_bug", report_bug)
    monkeypatch.setattr("gemma_np.cli.info.resolve_config", fail)
    assert main(["info"]) == 70
    line = capsys.readouterr().err
    assert line.startswith("gemma-np: a bug (KeyError); please report it with the traceback in ")
    assert line.count("\n") == 1
    path = line.split(" in ")[-1].strip()
    with open(path) as file:
        content = file.read()
    os.unlink(path)
    assert content.startswith("Traceback")
    assert "KeyError: 'a detail'" in content


def test_bad_input_is_no_bug(monkeypatch, capsys):
    for error in (GemmaError("x: 1, expected 2"), MemoryError("too much"), OSError(13, "Permission denied", "x")):
        monkeypatch.setattr("gemma_np.cli.info.resolve_config", lambda *_, error=error: (_ for _ in ()).throw(error))
        assert main(["info"]) == 2
    lines = capsys.readouterr().err.splitlines()
    expected = ["x: 1, expected 2", "out of memory: too much", "x: Permission denied"]
    assert lines == [f"gemma-np: {line}" for line in expected]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signals")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_signals_end_a_command_in_order(number, tmp_path):
    """`finally` blocks run: the unfinished page is removed."""
    script = (
        "import sys, time, gemma_np.cli.info as info\n"
        "from gemma_np.checkpoints.atomic_write import atomic_write\n"
        "from pathlib import Path\n"
        "def write(path):\n"
        "    path.write_text('half')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "info.resolve_config = lambda name: atomic_write(Path(sys.argv[1]), write)\n"
        "from gemma_np.cli import main\n"
        "sys.exit(main(['info']))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "page.html")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.05)
        process.send_signal(getattr(signal, number))
        assert process.wait(10) == 128 + getattr(signal, number)
    assert list(tmp_path.iterdir()) == []


def test_handlers_of_signals_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    assert main(["models"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_warnings_of_other_libraries_do_not_reach_the_user(monkeypatch, capsys):
    def warn(*_):
        logging.getLogger("other").warning("a log line")
        warnings.warn("theirs", FutureWarning, stacklevel=2)
        warnings.warn("theirs", UserWarning, stacklevel=2)
        warnings.warn("ours", GemmaWarning, stacklevel=2)
        raise GemmaError("the end")

    monkeypatch.setattr("gemma_np.cli.info.resolve_config", warn)
    assert main(["info", "--quiet"]) == 2
    assert capsys.readouterr().err == "gemma-np: warning: ours\ngemma-np: the end\n"
    assert logging.getLogger("other").isEnabledFor(logging.WARNING)
