"""The commands that compress a model: what they write, and what they refuse."""

import subprocess
import sys

import numpy as np
import pytest

import gemma_np
from gemma_np.checkpoints.huggingface import load_folder
from gemma_np.cli import main
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.weights.formats import BFloat16, Blocks, Float8, Int4, Int8, dequantize
from tests.support import tiny

NO_CALIBRATION = "--calibration-text: missing, expected a text file or a folder of .txt files"
SAMPLES = ["--calibration-samples", "2", "--calibration-length", "20"]
SIZES = {"hidden_size": 32, "head_dim": 32, "intermediate_size": 64, "query_pre_attn_scalar": 32}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compression") / "tiny"
    tiny.gemma(**SIZES).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for number in range(6):
        (folder / f"{number}.txt").write_text(tiny.TEXT * (number + 1), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("format", "stored_as"), [("bfloat16", BFloat16), ("int8", Int8), ("int4", Int4), ("float8", Float8)]
)
def test_quantize_stores_every_matrix_in_the_format(format, stored_as, checkpoint, tmp_path):
    group_size = ["--group-size", "32"] if format == "int4" else []
    assert main(["quantize", "--model", checkpoint, "--format", format, *group_size, "-o", str(tmp_path / "out")]) == 0
    model = gemma_np.load(tmp_path / "out", "stored")
    scheme = Scheme(format, 32 if group_size else None)
    for name, weight in tiny.gemma(**SIZES).weights.items():
        if weight.ndim == 2:
            expected = quantize(weight, Scheme("bfloat16") if "embed" in name else scheme, mse=True)
            assert type(model.weights[name]) is (BFloat16 if "embed" in name else stored_as)
            assert (dequantize(model.weights[name]) == dequantize(expected)).all()
    assert main(["generate", "--model", str(tmp_path / "out"), "--max-new-tokens", "3", "The"]) == 0


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_quantize_with_calibration_text_and_an_embedding_format(method, checkpoint, texts, tmp_path):
    out = str(tmp_path / "out")
    formats = ["--format", "int4", "--group-size", "32", "--embedding-format", "int8"]
    arguments = ["quantize", "--model", checkpoint, *formats, "--method", method, "-o", out]
    assert main([*arguments, "--calibration-text", texts, *SAMPLES]) == 0
    weights = gemma_np.load(out).weights
    assert type(weights["model.embed_tokens.weight"]) is Int8
    assert type(weights["model.layers.3.mlp.down_proj.weight"]) is Int4


def test_prune_writes_an_ordinary_checkpoint(checkpoint, texts, tmp_path):
    options = ["--calibration-text", texts, *SAMPLES, "-o", str(tmp_path / "out")]
    assert main(["prune", "--model", checkpoint, "layers=2,intermediate-size=40,kv-heads=1", *options]) == 0
    config, _, _ = load_folder(tmp_path / "out")
    assert (config.num_hidden_layers, config.intermediate_size, config.num_attention_heads) == (2, 40, 2)


def test_compress_from_end_to_end(tmp_path, capsys):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(3):
        text = gemma_np.load().generate([2, 300 + number], max_new_tokens=200, temperature=1, seed=number)
        (texts / f"{number}.txt").write_text(text * 60, encoding="utf-8")
    steps = ["--prune", "layers=2,intermediate-size=256", "--distill", "2", "--quantize", "int4", "--method", "gptq"]
    command = ["compress", str(texts), *steps, "--batch-size", "1", "--seq-len", "64", "--val-fraction", "0.4"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:5]] == ["original", "pruned", "healed", "quantized"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 2
    assert "exists, expected --resume or another folder" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "out"), "--resume"]) == 0
    assert capsys.readouterr().out == out


def test_export_gguf(checkpoint, tmp_path):
    assert main(["export-gguf", "--model", checkpoint, "--format", "q4_0", "-o", str(tmp_path / "tiny.gguf")]) == 0
    assert gemma_np.load(tmp_path / "tiny.gguf").weights["model.layers.0.mlp.up_proj.weight"].format == "Q4_0"


def test_quantize_to_a_format_of_llama_quantize_writes_the_same_file(checkpoint, tmp_path):
    written = []
    for command in ("quantize", "export-gguf"):
        (tmp_path / command).mkdir()
        path = tmp_path / command / "model.gguf"  # the name is in the file
        assert main([command, "--model", checkpoint, "--format", "q5_1", "-o", str(path)]) == 0
        written.append(path.read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "{}/folder"], "folder: expected a name that ends in .gguf"),
        (["-o", "{}/none/a.gguf"], "none does not exist, expected a file in an existing folder"),
        (["-o", "{}/a.gguf", "--method", "clip"], "--method: given without --format bfloat16/int8/w8a8/int4/float8"),
        (["-o", "{}/a.gguf", "--group-size", "32"], "--group-size: given without --format bfloat16"),
    ],
)
def test_quantize_to_a_gguf_file_refuses(options, message, checkpoint, tmp_path, capsys):
    options = [option.format(tmp_path) for option in options]
    assert main(["quantize", "--model", checkpoint, "--format", "q4_k_m", *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_export_gguf_with_calibration_text(texts, tmp_path):
    command = ["export-gguf", "--model", "shakespeare-1m", "--format", "q4_k_m", "-o"]
    assert main([*command, str(tmp_path / "plain.gguf")]) == 0
    calibration = ["--calibration-text", texts, "--calibration-samples", "2", "--calibration-length", "64"]
    assert main([*command, str(tmp_path / "weighted.gguf"), *calibration]) == 0
    plain, weighted = (gemma_np.load(tmp_path / name) for name in ("plain.gguf", "weighted.gguf"))
    for name, weight in plain.weights.items():
        if isinstance(weight, Blocks):
            assert weighted.weights[name].format == weight.format
            assert (weighted.weights[name].integers == weight.integers).all() == ("embed" in name), name


def test_a_sparse_27b_is_described_and_opened_at_once(tmp_path, capsys):
    assert main(["init-checkpoint", "gemma-2-27b", "--sparse-file", "-o", str(tmp_path / "hollow")]) == 0
    assert main(["info", "--model", str(tmp_path / "hollow")]) == 0
    assert "27,227,128,320" in capsys.readouterr().out
    weights = gemma_np.load(tmp_path / "hollow", "stored").weights
    assert weights["model.embed_tokens.weight"].shape == (256_000, 4608)


def test_quantization_aware_training(tmp_path, texts):
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(tiny.vocabulary())
    shape = ["--hidden-size", "32", "--layers", "2", "--head-dim", "8", "--intermediate-size", "32"]
    options = ["--steps", "2", "--batch-size", "2", "--seq-len", "20", "--quantization-aware", "int4"]
    options += ["--group-size", "32"]
    out = tmp_path / "run"
    assert main(["train", texts, "--tokenizer", str(tokenizer), *shape, *options, "-o", str(out)]) == 0
    weight = gemma_np.load(out).weights["model.layers.1.mlp.up_proj.weight"]
    assert len(np.unique(weight[0])) <= 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["quantize", "--format", "int4", "--group-size", "48"],
            "model.layers.0.self_attn.q_proj.weight: 32 channels, expected a multiple of",
        ),
        (["quantize", "--format", "int4", "--method", "gptq"], NO_CALIBRATION),
        (["prune", "layers=9", "--calibration-text", "TEXTS", *SAMPLES], "layers: 9 to keep, expected 1 to 4"),
        (["prune", "drop-layers=7"], "layer 7: does not exist, expected 0 to 3"),
        (["prune", "layers=2"], NO_CALIBRATION),
        (["prune", "kv-heads=2", "--calibration-text", "TEXTS", "--calibration-samples", "900"], "calibration text: "),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, checkpoint, texts, tmp_path, capsys):
    arguments = [texts if argument == "TEXTS" else argument for argument in arguments]
    assert main([*arguments, "--model", checkpoint, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_model_is_quantized_again_with_a_warning(checkpoint, tmp_path, capsys):
    main(["quantize", "--model", checkpoint, "--format", "int8", "-o", str(tmp_path / "one")])
    assert main(["quantize", "--model", str(tmp_path / "one"), "--format", "float8", "-o", str(tmp_path / "two")]) == 0
    assert "are quantized already (int8) and are rounded a second time" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "two"), "-o", str(tmp_path / "floats")]) == 0
    assert gemma_np.load(tmp_path / "floats").weights["model.embed_tokens.weight"].dtype == np.float32


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file size")
def test_a_full_disk_leaves_nothing(checkpoint, tmp_path):
    """A limit on the size of files stands for a full disk."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); "
    code = limit + f"from gemma_np.cli import main; raise SystemExit(main({['quantize', '--model', checkpoint]!r} + "
    code += f"{['--format', 'int8', '-o', str(tmp_path / 'out')]!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "could not be written (File too large); nothing is left of it" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["quantize", "prune", "compress", "export-gguf", "init-checkpoint"])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"gemma-np {command}" in capsys.readouterr().out.split("examples:")[1]
