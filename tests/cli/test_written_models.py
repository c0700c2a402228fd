"""Whatever model a command writes, `load` reads; what it cannot write, it refuses in one line, and nothing is left."""

import contextlib
import io
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gemma_np
from gemma_np import Gemma
from gemma_np.cli import main
from gemma_np.compression.quantization import QUANTIZE_FORMATS
from gemma_np.training.merging import DTYPES
from gemma_np.training.merging import merge as merged
from gemma_np.weights.formats import check_finite
from tests.checkpoints.test_gguf import model_of
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES, configs, random_weights, seeds

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "--method": st.sampled_from(["round", "clip"]),
        "--group-size": st.sampled_from(["1", "2", "5", "64"]),
        "--embedding-format": st.sampled_from(["bfloat16", "int8", "float8"]),
        "--zero-points": st.just(None),
    },
)
QUANTIZE = st.tuples(st.sampled_from(QUANTIZE_FORMATS), OPTIONS).map(
    lambda drawn: [
        *("quantize", "--format", drawn[0]),
        *(word for option in drawn[1].items() for word in option if word is not None),
    ]
)
PLANS = [
    "magnitude=0.5",
    "magnitude=2:4",
    "magnitude=0",
    "magnitude=1",
    "drop-layers=1+2",
    "drop-layers=0,magnitude=0.9",
]
COMMANDS = (
    QUANTIZE
    | st.sampled_from(DTYPES).map(lambda dtype: ["merge", "--dtype", dtype])
    | st.sampled_from(PLANS).map(lambda plan: ["prune", plan])
)
EXTREMES = st.sampled_from([None, 0.0, 1e-40, 7e4, 3e38, np.inf, np.nan])


def run(arguments):
    """Return the status of a command and what it wrote to standard error."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            return main(arguments), error.getvalue()
        except SystemExit as exit:
            return exit.code, error.getvalue()


def read(path):
    """Return the model that a command has written, whose weights must be finite."""
    model = gemma_np.load(path, "stored")
    for name, weight in model.weights.items():
        check_finite(name, weight)
    with np.errstate(all="ignore"):
        assert model.logits([3, 1, 4]).shape == (3, model.config.vocab_size)
    return model


def check(arguments, output):
    """Run a command: `load` reads what it writes, or nothing is left of it. Return the model, or None."""
    before = sorted(output.parent.iterdir())
    status, error = run([*arguments, "-o", str(output)])
    errors = [line for line in error.splitlines() if "warning" not in line]
    if status == 0:
        return read(output)
    assert status == 2
    assert len(errors) == 1
    assert len(errors[0]) <= 200
    assert sorted(output.parent.iterdir()) == before
    return None


@given(configs(), seeds, st.sampled_from(DTYPES), EXTREMES, COMMANDS, COMMANDS)
def test_what_one_command_writes_another_reads(config, seed, dtype, extreme, first, second):
    source = merged([Gemma(config, random_weights(config, seed), None)], dtype)
    if extreme is not None:
        with np.errstate(over="ignore"):
            source = tiny.with_number(source, "model.layers.2.mlp.up_proj.weight", extreme)
    with tempfile.TemporaryDirectory() as folder:
        start, one, two = (Path(folder) / name for name in ("start", "one", "two"))
        with patch("gemma_np.checkpoints.saving.check_finite"):  # others' checkpoints may have NaN and infinity
            source.save(start)
        if check(reading(start, *first), one) is not None:
            check(reading(one, *second), two)


def reading(model, command, *options):
    """Return the arguments of a command that reads a model."""
    return [command, *(["--model"] if command != "merge" else []), str(model), *options]


TEXTS = [tiny.TEXT[start:] * 4 for start in range(12)]
CALIBRATION = ["--calibration-text", "{}/texts", "--calibration-samples", "2", "--calibration-length", "9"]
SHORT_RUN = ["--steps", "1", "--batch-size", "2", "--seq-len", "8"]
COMMANDS_WITH_TEXT = [
    ["train", "{}/texts", "--model", "{}/start", *SHORT_RUN],
    ["distill", "{}/texts", "--model", "{}/start", "--teacher", "{}/start", *SHORT_RUN],
    ["compress", "{}/texts", "--model", "{}/start", "--quantize", "w8a8", "--val-fraction", "0.3"],
    ["prune", "--model", "{}/start", "intermediate-size=4,kv-heads=1", *CALIBRATION],
    ["prune", "--model", "{}/start", "wanda=0.5", *CALIBRATION],
    ["quantize", "--model", "{}/start", "--format", "int8", "--method", "gptq", *CALIBRATION],
    ["quantize", "--model", "{}/start", "--format", "w8a8", "--method", "awq", *CALIBRATION],
    ["export-gguf", "--model", "{}/start"],
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", COMMANDS_WITH_TEXT, ids=lambda command: " ".join(command[::3][:2]))
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@given(st.sampled_from(DTYPES), EXTREMES, st.data())
@settings(max_examples=6)
def test_what_a_command_writes_from_a_text_is_read(command, model_type, dtype, extreme, data):
    """A run that is refused keeps its tokens and its log, to be resumed; it never keeps a model."""
    source = merged([(model_of if command[0] == "export-gguf" else tiny.gemma)(model_type)], dtype)
    if extreme is not None:
        name = data.draw(st.sampled_from(sorted(source.weights)))
        with np.errstate(over="ignore"):
            source = tiny.with_number(source, name, extreme)
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        with patch("gemma_np.checkpoints.saving.check_finite"):
            source.save(Path(folder, "start"))
        Path(folder, "texts").mkdir()
        for number, text in enumerate(TEXTS):
            Path(folder, "texts", f"{number}.txt").write_text(text, encoding="utf-8")
        arguments = [argument.format(folder) for argument in command]
        out = Path(folder, "out.gguf" if command[0] == "export-gguf" else "out")
        if command[0] in ("train", "distill", "compress"):
            status, error = run([*arguments, "-o", str(out)])
            written = [path.parent for path in out.rglob("config.json")]
            for path in written:
                read(path)
            assert status in (0, 2), error
            assert bool(written) == (status == 0)
        else:
            model = check(arguments, out)
            assert model is not None or extreme is not None


@pytest.mark.parametrize("format", ["q8_0", "q4_k_m"])
def test_a_gguf_file_is_read(format, tmp_path):
    sizes = {"hidden_size": 32, "head_dim": 32, "intermediate_size": 64, "query_pre_attn_scalar": 32}
    tiny.gemma(**sizes).save(tmp_path / "model")
    assert check(["export-gguf", "--model", str(tmp_path / "model"), "--format", format], tmp_path / "m.gguf")


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_a_calibrated_quantization_is_read(format, method, tmp_path):
    tiny.gemma(intermediate_size=8).save(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny.TEXT * 3, encoding="utf-8")
    calibration = ["--calibration-text", str(tmp_path / "text.txt"), "--calibration-samples", "3"]
    options = ["--format", format, "--method", method, "--group-size", "4", "--calibration-length", "9"]
    assert check(["quantize", "--model", str(tmp_path / "model"), *options, *calibration], tmp_path / "small")


def test_a_sparse_checkpoint_is_read(tmp_path):
    assert main(["init-checkpoint", "gemma-3-270m", "--sparse-file", "-o", str(tmp_path / "sparse")]) == 0
    assert gemma_np.load(tmp_path / "sparse", "stored").config == gemma_np.RELEASED["gemma-3-270m"]
