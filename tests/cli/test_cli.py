"""The command line: what it prints and where, and that bad input gives one line."""

import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from importlib.metadata import version
from unittest.mock import patch

import pytest

import gemma_np
from gemma_np import RELEASED, GemmaError
from gemma_np.cli import main
from gemma_np.cli.conversation import HELP
from gemma_np.cli.terminal import size_of
from gemma_np.compression.export_gguf import export_gguf
from gemma_np.errors import GemmaWarning
from gemma_np.text.chat import as_turns
from gemma_np.training.conversations import read_conversations
from tests.support import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "tiny"
    tiny.gemma().save(folder)
    return str(folder)


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "gemma_np", *arguments], capture_output=True, text=True, timeout=60, **options
    )


def test_generate_prints_the_text_and_nothing_else(checkpoint, capsys):
    assert main(["generate", "--model", checkpoint, "--max-new-tokens", "9", "The ships"]) == 0
    out, err = capsys.readouterr()
    assert out == tiny.gemma().generate("The ships", max_new_tokens=9) + "\n"
    assert "tokens/s" in err


def test_generate_passes_every_option_on(checkpoint, capsys):
    options = ["--max-new-tokens", "40", "--temperature", "3", "--top-k", "200", "--top-p", "0.9", "--min-p", "0.01"]
    options += ["--repetition-penalty", "1.5", "--seed", "5", "--ignore-eos", "--stop", "ai", "--stop", "or", "--echo"]
    assert main(["generate", "--model", checkpoint, *options, "The"]) == 0
    sampling = {"temperature": 3, "top_k": 200, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.5, "seed": 5}
    expected = tiny.gemma().generate("The", 40, **sampling, ignore_eos=True, stop=["ai", "or"], echo=True)
    assert capsys.readouterr().out == expected + "\n"
    assert 5 < len(expected) < len(tiny.gemma().generate("The", 40, **sampling, ignore_eos=True, echo=True))


def test_generate_prints_log_probabilities(checkpoint, capsys):
    assert main(["generate", "--model", checkpoint, "--max-new-tokens", "5", "--logprobs", "2", "The"]) == 0
    text, tokens = tiny.gemma().generate("The", 5, logprobs=2)
    out = capsys.readouterr().out.removeprefix(f"{text}\n")
    values = [[token.logprob, *(other.logprob for other in token.top_logprobs)] for token in tokens]
    assert [re.findall(r"-?\d+\.\d{4}", line) for line in out.splitlines()] == [
        [f"{value:.4f}" for value in row] for row in values
    ]


@pytest.mark.parametrize("option", [["--stop", "x"], ["--echo"], ["--logprobs", "3"]])
def test_options_of_texts_need_a_text(checkpoint, capsys, option):
    assert main(["generate", "--model", checkpoint, "--ids", "2,5", *option]) == 2
    assert f"{option[0]}: given without PROMPT" in capsys.readouterr().err


@pytest.mark.parametrize("draft", ["half", "lookup", "CHECKPOINT"])
def test_generate_with_a_draft_prints_the_same_text_and_the_acceptance(checkpoint, capsys, draft):
    arguments = ["generate", "--model", checkpoint, "--dtype", "float64", "--max-new-tokens", "20", "--draft"]
    assert main([*arguments, draft.replace("CHECKPOINT", checkpoint), "--draft-tokens", "3", "The ships"]) == 0
    out, err = capsys.readouterr()
    assert out == gemma_np.load(checkpoint, "float64").generate("The ships", max_new_tokens=20) + "\n"
    accepted, proposed = map(int, re.search(r"tokens/s, (\d+) of (\d+) proposed tokens accepted, ", err).groups())
    assert proposed > 0
    assert accepted == proposed or draft != "CHECKPOINT"


def test_chat_with_a_draft(checkpoint):
    arguments = ["chat", "--model", checkpoint, "--max-new-tokens", "9", "--temperature", "0"]
    plain = run(*arguments, input="The lamp\nThe sea\n")
    drafted = run(*arguments, "--draft", checkpoint, input="The lamp\nThe sea\n")
    assert drafted.stdout == plain.stdout
    assert drafted.stderr.count("proposed tokens accepted, 100%") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--draft", "nowhere"], "nowhere: no such folder or file"),
        (["--draft", "shakespeare-1m"], "draft: its tokenizer.model is not that of the model"),
        (["--draft", "int4"], "12 channels, expected a multiple of group_size=64"),
        (["--draft-tokens", "3"], "--draft-tokens: given without --draft"),
        (["--top-k", "3"], "--top-k: given without --temperature"),
        (["--temperature", "0", "--min-p", "0.1"], "--min-p: given without --temperature"),
    ],
)
def test_an_option_that_cannot_be_used_is_one_line(checkpoint, capsys, arguments, message):
    assert main(["generate", "--model", checkpoint, *arguments, "The"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1


def test_chat_in_a_pipe_remembers_the_turns(checkpoint):
    arguments = ["chat", "--model", checkpoint, "--max-new-tokens", "5", "--temperature", "0"]
    process = run(*arguments, input="The lamp\n\nThe sea\n")
    model, first = tiny.gemma(), [{"role": "user", "content": "The lamp"}]
    answer = model.chat(first, max_new_tokens=5)
    second = [*first, {"role": "model", "content": answer}, {"role": "user", "content": "The sea"}]
    assert process.returncode == 0
    assert process.stdout == f"{answer}\n{model.chat(second, max_new_tokens=5)}\n"


def chat(monkeypatch, checkpoint, lines, *options):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return main(["chat", "--model", checkpoint, "--max-new-tokens", "5", *options])


def test_chat_samples_by_default_at_the_temperature_of_a_chat(checkpoint, capsys, monkeypatch):
    assert chat(monkeypatch, checkpoint, ["The lamp"], "--seed", "4") == 0
    asked = [{"role": "user", "content": "The lamp"}]
    expected = tiny.gemma().chat(asked, 5, temperature=0.7, seed=4)
    assert capsys.readouterr().out == expected + "\n"
    assert expected != tiny.gemma().chat(asked, 5)


def test_the_commands_of_chat(checkpoint, capsys, monkeypatch, tmp_path):
    file = tmp_path / "talk.jsonl"
    lines = ["The lamp", "/reset", "The sea", "/system Be calm.", f"/save {file}", f"/save {file}", "/rest", "And?"]
    assert chat(monkeypatch, checkpoint, lines, "--system", "Be brief.", "--temperature", "0") == 0
    out, err = capsys.readouterr()

    model, brief = tiny.gemma(), {"role": "system", "content": "Be brief."}
    first = model.chat([brief, {"role": "user", "content": "The lamp"}], 5)
    sea = {"role": "user", "content": "The sea"}
    second = model.chat([brief, sea], 5)
    said = [{"role": "system", "content": "Be calm."}, sea, {"role": "model", "content": second}]
    third = model.chat([*said, {"role": "user", "content": "And?"}], 5)
    assert out == f"{first}\n{second}\n{third}\n"
    assert json.loads(file.read_text(encoding="utf-8")) == {"messages": said}
    assert read_conversations(file) == [as_turns(said)]
    assert f"{file}: exists, expected a new file" in err
    assert f'"/rest": expected {HELP}; Ctrl-D ends the chat' in err


def test_ctrl_c_stops_an_answer_and_not_the_chat(checkpoint, capsys, monkeypatch):
    """In a terminal; the next answer follows what was said of the first."""
    asked, script = [], [["a ", "b ", KeyboardInterrupt], [KeyboardInterrupt], ["c"]]

    def answer(_, messages, **__):
        asked.append([message["content"] for message in messages])
        for piece in script[len(asked) - 1]:
            if piece is KeyboardInterrupt:
                raise KeyboardInterrupt
            yield piece

    lines = iter(["one", KeyboardInterrupt, "two", "three", EOFError])

    def read(_):
        if isinstance(line := next(lines), str):
            return line
        raise line

    monkeypatch.setattr(gemma_np.Gemma, "stream_chat", answer)
    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert main(["chat", "--model", checkpoint]) == 0
    assert capsys.readouterr().out == "a b \n\n\nc\n\n"
    assert asked == [["one"], ["one", "a b ", "two"], ["one", "a b ", "three"]]


def test_perplexity_of_a_file_and_of_standard_input(checkpoint, tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text(tiny.TEXT, encoding="utf-8")
    assert main(["perplexity", "--model", checkpoint, str(file)]) == 0
    printed = capsys.readouterr().out
    loss = tiny.gemma().text_loss(tiny.TEXT)
    assert printed.split() == [
        *("perplexity", f"{loss.perplexity:.4f}", "bits", "per", "token", f"{loss.bits_per_token:.4f}"),
        *("bits", "per", "byte", f"{loss.bits_per_byte:.4f}", "tokens", f"{loss.tokens}"),
    ]
    assert run("perplexity", "--model", checkpoint, "-", input=tiny.TEXT).stdout == printed


def test_generate_reads_its_prompt_from_standard_input(checkpoint):
    arguments = ("generate", "--model", checkpoint, "--max-new-tokens", "5", "--echo")
    assert run(*arguments, "-", input="The ships\n").stdout == run(*arguments, "The ships").stdout


@pytest.mark.parametrize("name", [*RELEASED, "google/gemma-2-2b-it", "google/gemma-3-1b-pt"])
def test_info_of_a_released_model_needs_no_weights(name, capsys):
    assert main(["info", "--model", name]) == 0
    out = capsys.readouterr().out
    config = RELEASED[name.removeprefix("google/").removesuffix("-it").removesuffix("-pt")]
    assert f"{sum(config.parameter_count().values()):,}" in out
    assert f"{config.hidden_size}" in out
    assert "GB" in out


def test_info_prints_the_cache_as_counted_by_hand(capsys):
    main(["info", "--model", "gemma-2-2b"])
    # keys and values, 4 heads of 256 float32 numbers: 8,192 bytes a token and layer; 26 layers, 13 of them keep no more
    # than 4,096 tokens: 8,192 * 26 * 1,000 and 8,192 * 13 * (8,000 + 4,096)
    line = next(line for line in capsys.readouterr().out.splitlines() if "of which float32 cache" in line)
    assert line.split()[-4:] == ["213.0", "MB", "1.29", "GB"]


def test_info_of_a_short_context_has_no_longer_columns(capsys):
    assert main(["info", "--model", "shakespeare-1m"]) == 0
    out = capsys.readouterr().out
    assert "+ 256 tokens" in out
    assert "8,000" not in out


def test_info_of_a_folder(checkpoint, capsys):
    assert main(["info", "--model", checkpoint]) == 0
    assert "2 local, 2 global" in capsys.readouterr().out


def test_info_of_a_gguf_file_lists_its_formats(tmp_path, capsys):
    export_gguf(gemma_np.load("shakespeare-1m"), "q8_0", tmp_path / "model.gguf")
    assert main(["info", "--model", str(tmp_path / "model.gguf")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.split("formats of this file")[1].splitlines()[1:]]
    config = gemma_np.load("shakespeare-1m").config
    norms = [shape for _, shape in config.weight_shapes() if len(shape) == 1]
    matrices = [shape for _, shape in config.weight_shapes() if len(shape) == 2]
    size = sum(math.prod(shape) for shape in matrices) * 34 // 32
    assert rows[0] == ["Q8_0", str(len(matrices)), f"{size / 1e6:.1f}", "MB", "8.50"]
    assert rows[1] == ["F32", str(len(norms)), f"{sum(map(math.prod, norms)) * 4 / 1e3:.1f}", "kB", "32.00"]
    assert rows[2][:2] == ["all", str(len(matrices) + len(norms))]


def test_models_lists_all(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in RELEASED)


def test_info_as_json_has_what_info_prints(checkpoint, capsys, tmp_path):
    export_gguf(tiny.gemma(), "f32", tmp_path / "model.gguf")
    for name, options in (("gemma-2-2b", ["--training"]), (str(tmp_path / "model.gguf"), [])):
        assert main(["info", "--model", name, *options, "--json"]) == 0
        values = json.loads(capsys.readouterr().out)
        assert main(["info", "--model", name, *options]) == 0
        printed = capsys.readouterr().out
        assert f"{sum(values['parameters'].values()):,}" in printed
        assert f"{values['config']['hidden_size']}" in printed
        for label, sizes in values["generation_bytes"].items():
            line = next(line for line in printed.splitlines() if line.startswith(f"  {label}"))
            assert line.split(label)[-1].split() == " ".join(map(size_of, sizes.values())).split()
        for part, size in values.get("training_bytes", {}).items():
            assert re.search(rf"{re.escape(part)} +{size / 1e6:,.1f} MB", printed)
        for type, found in values.get("formats", {}).items():
            assert re.search(rf"{type} +{found['tensors']} +{re.escape(size_of(found['bytes']))}", printed)
        assert ("training_bytes" in values, "formats" in values) == (bool(options), not options)


def test_models_as_json(capsys):
    assert main(["models", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert [row["name"] for row in values["released"]] == list(RELEASED)
    for row in values["bundled"]:
        assert re.search(rf"{row['name']} +{row['parameters'] / 1e6:.1f} M  {row['description']}\n", printed)
    for row in values["released"]:
        size = f"{row['parameters'] / 1e9:.2f} B +{row['layers']} +{row['context']:,} "
        assert re.search(rf"{row['name']} +{row['hub_id']} +{size}", printed)


@pytest.mark.parametrize("command", ["generate", "chat", "perplexity", "inspect", "info", "models"])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert f"gemma-np {command}" in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--model", "no-such-folder", "hello"], "no-such-folder: no such folder or file"),
        (["generate", "--model", "FOLDER", ""], "prompt: empty"),
        (["generate", "--model", "FOLDER", "--max-new-tokens", "64", "a"], "expected at most 64"),
        (["perplexity", "--model", "FOLDER", "no-such-file"], "no-such-file"),
        (["perplexity", "--model", "FOLDER", "EMPTY"], "text: empty"),
        (["perplexity", "--model", "FOLDER", "BINARY"], "expected a text file in UTF-8"),
        (["generate", "--model", "BINARY", "a"], "expected a .gguf file, a checkpoint folder or a hub id"),
        (["generate", "--model", "gemma-2-2b", "a"], "(gemma-np models lists the hub id of gemma-2-2b)"),
        (["perplexity", "--model", "FOLDER", "no-such-file"], "no-such-file: No such file or directory, expected"),
        (["trace", "--model", "FOLDER", "--prompt", "", "-o", "EMPTY", "--force"], "prompt: empty"),
        (["inspect", "--model", "FOLDER", "a", "-o", ""], "a folder, expected a file to write"),
        (["inspect", "--model", "FOLDER", "a", "-o", "FOLDER"], "is the input"),
        (
            ["inspect", "--model", "FOLDER", "a", "-o", "nowhere/page.html"],
            "the folder nowhere does not exist, expected a file in",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, checkpoint, tmp_path, capsys):
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    paths = {"FOLDER": checkpoint, "EMPTY": str(tmp_path / "empty"), "BINARY": str(tmp_path / "binary")}
    assert main([paths.get(argument, argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gemma-np: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_warning_is_one_line(tmp_path):
    with patch("gemma_np.checkpoints.saving.check_finite"):  # others' checkpoints may have NaN
        tiny.with_number(tiny.gemma(), "model.norm.weight", float("nan")).save(tmp_path / "nan")
    process = run("generate", "--model", str(tmp_path / "nan"), "--max-new-tokens", "3", "a")
    assert process.returncode == 2
    warning, error = process.stderr.splitlines()
    assert warning == "gemma-np: warning: model.norm.weight: has NaN or infinity, expected finite numbers"
    assert error.startswith("gemma-np: logits: nan after 2 tokens")


def test_main_leaves_the_warnings_of_its_caller_as_they_were(checkpoint, capsys, monkeypatch):
    """Its own warnings are one line; afterwards, and when the command fails, showwarning is the caller's again."""
    before, filters = warnings.showwarning, list(warnings.filters)

    def warn(options):
        warnings.warn("look here", GemmaWarning, stacklevel=2)
        raise GemmaError("and it failed")

    monkeypatch.setattr("gemma_np.cli.info.models", warn)
    warn.__name__ = "models"
    assert main(["models"]) == 2
    assert capsys.readouterr().err == "gemma-np: warning: look here\ngemma-np: and it failed\n"
    assert main(["generate", "--model", checkpoint, "--max-new-tokens", "1", "a"]) == 0
    assert warnings.showwarning is before
    assert warnings.filters == filters


def test_alone_it_prints_the_help_and_an_example(capsys):
    for arguments in ([], ["--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
    help_of_none, help_asked_for = capsys.readouterr().out.split("usage: ")[1:]
    assert help_of_none == help_asked_for
    example = re.search(r"^example: gemma-np (\w+) (.+)$", help_of_none, re.MULTILINE)
    assert main([example[1], *shlex.split(example[2]), "--max-new-tokens", "1"]) == 0


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"gemma-np {gemma_np.__version__}\n"
    assert run("--version").stdout == f"gemma-np {version('gemma-np')}\n"


def test_ctrl_c_ends_cleanly(tmp_path):
    folder = tmp_path / "tiny"
    tiny.gemma(max_position_embeddings=100_000).save(folder)
    command = [sys.executable, "-m", "gemma_np", "generate", "--model", str(folder), "--max-new-tokens", "90000", "a"]
    # A shell starts background processes with Ctrl-C ignored; at a terminal they receive it.
    take_ctrl_c = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=take_ctrl_c) as process:
        process.stdout.read(1)  # wait until it writes
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_a_closed_pipe_is_no_error(tmp_path):
    folder = tmp_path / "tiny"
    tiny.gemma(max_position_embeddings=100_000).save(folder)
    command = [sys.executable, "-m", "gemma_np", "generate", "--model", str(folder), "--max-new-tokens", "90000", "a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=30) == 0
    assert b"Traceback" not in err
    assert b"Exception" not in err
