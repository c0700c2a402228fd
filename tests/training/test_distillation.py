"""Learning from a teacher, and averaging models."""

import json
from functools import partial

import numpy as np
import pytest

import gemma_np
from gemma_np import GemmaError
from gemma_np.cli import main
from gemma_np.training.distillation import from_teacher
from gemma_np.training.losses import distillation
from gemma_np.training.merging import average
from gemma_np.training.task import Batch
from gemma_np.training.trainer import loss_and_gradients
from tests import tiny
from tests.strategies import random_ids, random_weights

CONFIG = tiny.config()
TEACHER = gemma_np.Gemma(CONFIG, random_weights(CONFIG, 1, np.float64), None)
IDS = random_ids(CONFIG, 0, 2, 9)


def test_the_loss_is_that_of_the_teachers_own_logits():
    logits = np.random.default_rng(0).standard_normal((2, 8, CONFIG.vocab_size))
    teacher_logits = TEACHER.logits(IDS[:, :-1])
    found = from_teacher(TEACHER, partial(distillation, temperature=2.0))(logits, Batch(IDS))
    for a, b in zip(found, distillation(logits, teacher_logits, 2.0), strict=True):
        assert (a == b).all()


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    _, gradients, _ = loss_and_gradients(TEACHER.weights, CONFIG, Batch(IDS), from_teacher(TEACHER))
    assert max(np.abs(gradient).max() for gradient in gradients.values()) < 1e-12


@pytest.fixture
def places(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text(tiny.TEXT, encoding="utf-8")
    tiny.gemma().save(tmp_path / "teacher")
    return tmp_path


SMALL = "--hidden-size 8 --layers 2 --heads 2 --kv-heads 1 --head-dim 4 --ffn 8 --window 4 --context 16 --length 16"
SHORT = "--steps 40 --batch 2 --rate 0.03 --warmup 2"


def test_from_the_command_line_a_student_comes_closer_to_its_teacher(places):
    teacher, out = places / "teacher", places / "student"
    arguments = ["distill", str(places / "texts"), "--teacher", str(teacher), "-o", str(out)]
    assert main([*arguments, *SMALL.split(), *SHORT.split()]) == 0
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    assert gemma_np.load(out).tokenizer.model == tiny.vocabulary()


def test_another_vocabulary_is_refused(places, capsys):
    tiny.gemma().save(places / "other")
    from gemma_np.training.vocabulary import train_vocabulary

    tiny.gemma(vocab_size=540).save(places / "apart")
    (places / "apart" / "tokenizer.model").write_bytes(train_vocabulary(tiny.TEXT.splitlines(), 540))
    arguments = ["distill", str(places / "texts"), "--teacher", str(places / "apart"), "--model", str(places / "other")]
    assert main([*arguments, "-o", str(places / "out"), "--length", "16"]) == 2
    assert "expected the same vocabulary" in capsys.readouterr().err


def test_averaging():
    models = [random_weights(CONFIG, seed) for seed in range(3)]
    merged = average(models)
    for name, weight in merged.items():
        assert weight.dtype == np.float32
        np.testing.assert_allclose(weight, (models[0][name] + models[1][name] + models[2][name]) / 3, atol=1e-6)
    assert all((average([models[0]] * 3)[name] == models[0][name]).all() for name in merged)


def test_models_of_two_shapes_are_not_averaged():
    other = dict(random_weights(CONFIG, 0)) | {"model.norm.weight": np.zeros(5, np.float32)}
    with pytest.raises(GemmaError, match=r"model 2: model\.norm\.weight: shape \(5,\), expected \(12,\)"):
        average([random_weights(CONFIG, 0), other])


def test_merge_from_the_command_line(places, capsys):
    tiny.gemma("gemma3_text").save(places / "another")
    teacher = str(places / "teacher")
    assert main(["merge", teacher, teacher, "-o", str(places / "merged")]) == 0
    assert (gemma_np.load(places / "merged").logits([2, 5]) == tiny.gemma().logits([2, 5])).all()
    assert main(["merge", teacher, str(places / "another"), "-o", str(places / "x")]) == 2
    assert "another config than" in capsys.readouterr().err
