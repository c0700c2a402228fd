"""Prune, heal, quantize: each step a checkpoint, each step once."""

import json
import re
import shutil

import numpy as np
import pytest

import gemma_np
from gemma_np import Gemma, GemmaError
from gemma_np.compression import pipeline
from gemma_np.compression.benchmark import decoding_speed, greedy_agreement, measure, table
from gemma_np.compression.pipeline import CompressionConfig, compress
from gemma_np.compression.pruning_plan import read_plan
from gemma_np.compression.quantization import Scheme
from gemma_np.training.data import Split
from gemma_np.training.training_state import TrainingConfig
from gemma_np.weights.formats import Int8
from tests.support import tiny
from tests.support.damage import flip_last_bit
from tests.support.strategies import random_ids, random_weights
from tests.support.tolerances import assert_close

MODEL = tiny.gemma()
TOKENS = random_ids(MODEL.config, 0, 900).astype(np.uint16)
TRAINING = TrainingConfig(steps=4, batch_size=2, seq_len=9, warmup_steps=1, save_every=2)
CONFIG = CompressionConfig(
    prune=read_plan("intermediate-size=4"),
    heal=TRAINING,
    quantize=Scheme("int8"),
    calibration=(4, 9),
    evaluation=(3, 9),
)
MEASURE_ONLY = CompressionConfig(calibration=(4, 9), evaluation=(3, 9))


def run(out, config=CONFIG, model=MODEL):
    return list(compress(model, config, Split(TOKENS, TOKENS[:100]), out))


def test_each_step_leaves_a_checkpoint_and_a_row(tmp_path):
    rows = run(tmp_path / "out")
    assert [row.step for row in rows] == ["original", "pruned", "healed", "quantized"]
    for row in rows[1:]:
        model = gemma_np.load(tmp_path / "out" / row.step)
        assert sum(model.config.parameter_count().values()) == row.parameters
    assert isinstance(model.weights["model.layers.0.mlp.up_proj.weight"], Int8)
    assert rows[0].parameters > rows[1].parameters == rows[3].parameters
    assert rows[1].bytes > 1.3 * rows[3].bytes  # the embedding keeps 16 bits
    assert (rows[0].kl, rows[0].agreement) == (0, 1)
    assert list(json.loads((tmp_path / "out" / "report.json").read_text())) == [row.step for row in rows]


@pytest.mark.parametrize("context", [2, 3, 16, 17, 99])
def test_any_context_will_do(context, tmp_path):
    model = tiny.gemma(max_position_embeddings=context)
    config = CompressionConfig(prune=read_plan("intermediate-size=4"), quantize=Scheme("int8"), calibration=(4, 256))
    assert [row.step for row in run(tmp_path, config, model)] == ["original", "pruned", "quantized"]


def test_a_context_that_is_too_short(tmp_path):
    with pytest.raises(GemmaError, match="max_position_embeddings: 1, expected at least 2"):
        run(tmp_path / "out", MEASURE_ONLY, tiny.gemma(max_position_embeddings=1))
    with pytest.raises(GemmaError, match="seq_len: 9, expected at most the model's context of 8"):
        run(tmp_path / "out", CONFIG, tiny.gemma(max_position_embeddings=8))
    assert not (tmp_path / "out").exists()


def test_healing_brings_the_student_nearer_to_the_original(tmp_path):
    rows = run(
        tmp_path / "out",
        CompressionConfig(
            prune=read_plan("intermediate-size=4"),
            heal=TrainingConfig(steps=60, batch_size=4, seq_len=9, warmup_steps=1),
            calibration=(4, 9),
            evaluation=(8, 9),
        ),
    )
    assert rows[2].kl < rows[1].kl


@pytest.mark.parametrize("broken", ["prune", "run_task", "save_folder"])
def test_what_was_interrupted_goes_on(broken, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, broken, stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out")
    again = run(tmp_path / "out")
    for row, expected in zip(again, whole, strict=True):
        assert (row.step, row.perplexity, row.kl) == (expected.step, expected.perplexity, expected.kl)


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    rows = run(tmp_path / "out")
    monkeypatch.setattr(pipeline, "prune", lambda *_: pytest.fail("pruned again"))
    monkeypatch.setattr(pipeline, "measure", lambda *_: pytest.fail("measured again"))
    assert run(tmp_path / "out") == rows


@pytest.mark.parametrize("step", ["pruned", "quantized"])
def test_a_damaged_checkpoint_is_refused_until_it_is_removed(step, tmp_path):
    run(tmp_path)
    path = tmp_path / step / "model.safetensors"
    whole = flip_last_bit(path)
    with pytest.raises(
        GemmaError, match=rf"{step}: damaged \(wrong checksum\); to make it again, remove it and resume"
    ):
        run(tmp_path)
    shutil.rmtree(tmp_path / step)
    run(tmp_path)
    assert path.read_bytes() == whole


def test_a_damaged_checkpoint_of_the_healing_is_written_again(tmp_path):
    run(tmp_path)
    path = tmp_path / "healed" / "model.safetensors"
    whole = flip_last_bit(path)
    shutil.rmtree(tmp_path / "quantized")
    run(tmp_path)
    assert path.read_bytes() == whole


def test_a_row_with_a_damaged_name_is_measured_again(tmp_path):
    run(tmp_path)
    report = tmp_path / "report.json"
    report.write_text(report.read_text().replace('"pruned": {', '"qruned": {'))
    run(tmp_path)
    assert json.loads(report.read_text()).keys() == {"original", "pruned", "healed", "quantized"}


def test_a_checkpoint_without_a_checksum_is_made_again(tmp_path):
    """A process was killed between the two, and nobody knows what has happened to the checkpoint since."""
    run(tmp_path)
    path = tmp_path / "pruned" / "model.safetensors"
    whole = flip_last_bit(path)
    checksums = json.loads((tmp_path / "checksums.json").read_text())
    (tmp_path / "checksums.json").write_text(json.dumps({"quantized": checksums["quantized"]}))
    run(tmp_path)
    assert path.read_bytes() == whole
    assert json.loads((tmp_path / "checksums.json").read_text()) == checksums


@pytest.mark.parametrize("step", ["pruned", "healed", "quantized"])
def test_a_folder_that_no_compression_has_made_is_kept(step, tmp_path):
    (tmp_path / step).mkdir()
    (tmp_path / step / "kept").touch()
    with pytest.raises(GemmaError, match=rf"{step}: exists, expected a new folder or that of a compression"):
        run(tmp_path)
    assert (tmp_path / step / "kept").exists()


def test_another_config_needs_another_folder(tmp_path):
    run(
        tmp_path / "out",
        CompressionConfig(prune=read_plan("intermediate-size=4"), calibration=(4, 9), evaluation=(2, 9)),
    )
    with pytest.raises(GemmaError, match="started with another config or model, expected another folder"):
        run(
            tmp_path / "out",
            CompressionConfig(prune=read_plan("intermediate-size=5"), calibration=(4, 9), evaluation=(2, 9)),
        )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("report.json", '{"original": {}}', r"report\.json: original\.step: missing, expected text"),
        ("report.json", None, r"report\.json: original: damaged \(wrong checksum\)"),
        ("report.json", "{", r"report\.json: not JSON"),
        ("compression.json", "[]", r"compression\.json: \[\], expected a JSON object"),
    ],
)
def test_damaged_records_of_a_pipeline_are_refused(name, content, message, tmp_path):
    run(tmp_path, MEASURE_ONLY)
    if content is None:
        content = re.sub(r'"kl": [^,]*', '"kl": 0.5', (tmp_path / name).read_text())
    (tmp_path / name).write_text(content)
    with pytest.raises(GemmaError, match=message):
        run(tmp_path, MEASURE_ONLY)


def test_a_loss_that_is_not_finite_is_refused(tmp_path):
    weights = dict(MODEL.weights) | {"model.norm.weight": MODEL.weights["model.norm.weight"] * np.float32(np.nan)}
    with pytest.raises(GemmaError, match="original: a loss of nan, expected a finite number"):
        run(tmp_path, MEASURE_ONLY, Gemma(MODEL.config, weights, MODEL.tokenizer))


def test_what_cannot_be_quantized_is_not_healed_first(tmp_path):
    with pytest.raises(GemmaError, match="expected a multiple of group_size=8"):
        run(
            tmp_path / "out",
            CompressionConfig(
                prune=read_plan("intermediate-size=4"),
                heal=TRAINING,
                quantize=Scheme("int4", 8),
                calibration=(4, 9),
                evaluation=(2, 9),
            ),
        )
    assert not (tmp_path / "out" / "healed").exists()


def test_zeros_survive_healing(tmp_path):
    run(
        tmp_path / "out",
        CompressionConfig(prune=read_plan("magnitude=0.5"), heal=TRAINING, calibration=(4, 9), evaluation=(2, 9)),
    )
    pruned, healed = (gemma_np.load(tmp_path / "out" / step).weights for step in ("pruned", "healed"))
    name = "model.layers.1.mlp.up_proj.weight"
    assert ((pruned[name] == 0) == (healed[name] == 0)).all()
    assert (pruned[name] != healed[name]).any()


def test_measurements_from_their_definitions():
    other, text = tiny.gemma(rms_norm_eps=0.1), random_ids(MODEL.config, 1, 1, 10)
    row = measure("other", other, MODEL, text)
    ours, theirs = (gemma.logits(text[0, :-1]).astype(np.float64) for gemma in (other, MODEL))
    ours, theirs = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (ours, theirs))
    assert_close(np.float32(row.perplexity), np.exp(-np.log(ours[np.arange(9), text[0, 1:]]).mean()), "precision")
    assert_close(np.float32(row.kl), (theirs * np.log(theirs / ours)).sum(-1).mean(), "precision")
    assert "other" in table([row])
    assert decoding_speed(other, text[0]) > 0


def test_a_model_agrees_with_itself_and_not_with_a_stranger():
    texts = random_ids(MODEL.config, 1, 4, 10)
    assert greedy_agreement(MODEL, MODEL, texts) == 1
    stranger = Gemma(MODEL.config, random_weights(MODEL.config, 1), None)
    assert greedy_agreement(stranger, MODEL, texts) < 1
