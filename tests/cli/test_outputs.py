"""A command never writes onto its input, and over an existing file only when told to; it says so before it begins."""

import os

import pytest

from gemma_np.cli import main
from tests.support import tiny


@pytest.fixture
def files(tmp_path):
    tiny.gemma().save(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for name in "abc":
        (tmp_path / "texts" / f"{name}.txt").write_text(tiny.TEXT, encoding="utf-8")
    (tmp_path / "dump.safetensors").write_bytes(b"a dump")
    (tmp_path / "run").mkdir()
    return tmp_path


def state(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("inspect x --model model -o model/config.json", "model/config.json: lies in the input"),
        ("inspect x --model shakespeare-1m -o ASSETS/page.html", "page.html: lies in the input"),
        ("merge model -o model", "model: is the input"),
        ("merge model -o model/inside", "inside: lies in the input"),
        ("merge model -o texts/../model/deep/er", "er: lies in the input"),
        ("merge model -o link/inside", "inside: lies in the input"),
        ("quantize --model model --format int8 -o model", "model: is the input"),
        ("prune magnitude=0.5 --model model -o model/x", "model/x: lies in the input"),
        ("export-gguf --model model -o model/model.safetensors --force", "lies in the input"),
        ("tokenizer texts -o texts/tokenizer.model", "texts/tokenizer.model: lies in the input"),
        ("tokenizer texts/a.txt -o texts/a.txt --force", "texts/a.txt: is the input"),
        ("tokenizer texts/a.txt -o hard --force", "hard: is the input"),
        ("train texts --model model -o model", "model: is the input"),
        ("train texts --model model -o texts/run", "texts/run: lies in the input"),
        ("train texts --tokenizer hard -o run --resume", None),
        ("distill texts --teacher model -o model", "model: is the input"),
        ("distill --targets texts -o texts/student", "lies in the input"),
        ("cache-teacher texts --teacher model -o texts", "texts: is the input"),
        ("compress texts --model model -o texts/small", "lies in the input"),
        ("plot-log run model -o run/log.png", "run/log.png: lies in the input"),
        ("trace --model model --prompt x -o model/x", "lies in the input"),
        ("compare dump.safetensors texts/a.txt --plot dump.safetensors --force", "dump.safetensors: is the input"),
        ("evaluate texts/a.txt --plot texts/a.txt --force", "texts/a.txt: is the input"),
        ("evaluate texts/a.txt --compare model model --plot model/x.png", "lies in the input"),
        ("inspect x --model model -o dump.safetensors", "dump.safetensors: exists, expected another file, or --force"),
        ("trace --model model --prompt x -o dump.safetensors", "exists, expected another file, or --force"),
        ("export-gguf --model model -o dump.safetensors", "exists, expected another file, or --force"),
        ("tokenizer texts -o dump.safetensors", "exists, expected another file, or --force"),
        ("plot-log run -o dump.safetensors", "exists, expected another file, or --force"),
        ("evaluate texts/a.txt --model model --plot dump.safetensors", "exists, expected another file, or --force"),
        # the model does not exist: the output is checked first
        ("trace --model none --prompt x -o nowhere/x", "nowhere/x: the folder nowhere does not exist"),
        ("export-gguf --model none -o run", "run: a folder, expected a file to write"),
        ("compare none none --plot nowhere/x.png", "nowhere/x.png: the folder nowhere does not exist"),
        ("tokenizer none -o nowhere/x", "nowhere/x: the folder nowhere does not exist"),
        ("merge model -o run", "run: exists, expected a new folder"),
        ("quantize --model model --format int8 -o run", "run: exists, expected a new folder"),
        ("prune magnitude=0.5 --model model -o dump.safetensors", "exists, expected a new folder"),
        ("init-checkpoint gemma-2-2b --sparse-file -o run", "run: exists, expected a new folder"),
    ],
)
def test_what_would_be_lost_is_refused(arguments, message, files, capsys, monkeypatch):
    from gemma_np.gemma import ASSETS

    monkeypatch.chdir(files)
    os.symlink("model", "link")
    os.link("texts/a.txt", "hard")
    before = state(files)
    assert main(arguments.replace("ASSETS", str(ASSETS / "shakespeare-1m")).split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message is None or message in error
    assert state(files) == before


def test_force_replaces_a_file(files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    trace = ["trace", "--model", "model", "--prompt", "The sea", "-o", "dump.safetensors"]
    assert main(trace) == 2
    assert main([*trace, "--force"]) == 0
    assert (files / "dump.safetensors").stat().st_size > 1000


def test_a_very_long_text_is_no_path(tmp_path):
    assert main(["inspect", "--model", "shakespeare-1m", "word " * 10, "-o", str(tmp_path / "page.html")]) == 0
    assert main(["inspect", "x" * 5000, "-o", str(tmp_path / "other.html")]) == 2


@pytest.mark.parametrize(
    "command",
    [
        ["quantize", "--format", "int8"],
        ["prune", "layers=3"],
        ["merge"],
        ["export-gguf"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_ends_with_a_line_on_what_it_wrote(tmp_path, capsys, command):
    pytest.importorskip("gguf")
    tiny.gemma().save(tmp_path / "model")
    out = tmp_path / ("out.gguf" if command[0] == "export-gguf" else "out")
    model = [str(tmp_path / "model")] if command[0] == "merge" else ["--model", str(tmp_path / "model")]
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    if command[0] == "prune":
        model += ["--calibration-text", str(tmp_path / "text.txt"), "--calibration-samples", "2"]
        model += ["--calibration-length", "16"]
    capsys.readouterr()
    assert main([command[0], *model, *command[1:], "-o", str(out)]) == 0
    written = sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir()))
    assert capsys.readouterr().err.splitlines()[-1] == f"{out}: {written / 1e3:.1f} kB"


def test_quiet_commands_print_results_only(tmp_path, capsys):
    assert main(["generate", "--max-new-tokens", "3", "To be"]) == 0
    text, speed = capsys.readouterr()
    assert "tokens/s" in speed
    assert main(["generate", "--quiet", "--max-new-tokens", "3", "To be"]) == 0
    assert capsys.readouterr() == (text, "")
    assert main(["merge", "--quiet", "shakespeare-1m", "-o", str(tmp_path / "merged")]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["merge", "--quiet", "none", "-o", str(tmp_path / "other")]) == 2
    assert "none: no such folder or file" in capsys.readouterr().err
