"""Distillation from a live teacher, on-policy too, and merging models."""

import dataclasses
import json
from functools import partial

import ml_dtypes
import numpy as np
import pytest

import gemma_np
from gemma_np import GemmaError, training
from gemma_np.cli import main
from gemma_np.model.log_probs import log_softmax
from gemma_np.training.distillation import (
    DIVERGENCES,
    check_same_vocabulary,
    choose_divergence,
    from_teacher,
    on_policy,
    sample_continuations,
)
from gemma_np.training.losses import soft_cross_entropy
from gemma_np.training.merging import average
from gemma_np.training.optimizer import AdamW
from gemma_np.training.task import Batch
from gemma_np.training.tokenizer_training import train_tokenizer
from gemma_np.training.trainer import loss_and_gradients
from gemma_np.training.training_state import State, TrainingConfig
from tests.support import tiny
from tests.support.strategies import random_ids, random_weights

CONFIG = tiny.config()
TEACHER = gemma_np.Gemma(CONFIG, random_weights(CONFIG, 1, np.float64), None)
IDS = random_ids(CONFIG, 0, 2, 9)


def test_another_size_of_vocabulary_is_refused():
    config = dataclasses.replace(CONFIG, vocab_size=CONFIG.vocab_size + 1)
    student = gemma_np.Gemma(config, random_weights(config, 0), None)
    message = f"teacher: vocab_size={CONFIG.vocab_size}, expected {config.vocab_size} as in the student"
    with pytest.raises(GemmaError, match=message):
        check_same_vocabulary(TEACHER, student)


def test_the_loss_is_the_cross_entropy_against_the_teachers_logits():
    logits = np.random.default_rng(0).standard_normal((2, 8, CONFIG.vocab_size))
    teacher_logits = TEACHER.logits(IDS[:, :-1])
    found = from_teacher(TEACHER, partial(soft_cross_entropy, temperature=2.0))(logits, Batch(IDS))
    for a, b in zip(found, soft_cross_entropy(logits, teacher_logits, 2.0), strict=True):
        assert (a == b).all()


def test_a_student_equal_to_its_teacher_has_no_gradient():
    _, gradients, _ = loss_and_gradients(TEACHER.weights, CONFIG, Batch(IDS), from_teacher(TEACHER))
    assert max(np.abs(gradient).max() for gradient in gradients.values()) < 1e-12


def test_continuations_are_sampled_from_the_students_distribution():
    """Over many texts, the frequency of each first token is its probability."""
    student, prompt, texts = tiny.gemma(vocab_size=5), [2, 4, 1], 20_000
    weights = {name: weight.astype(np.float64) for name, weight in student.weights.items()}
    ids = sample_continuations(np.array([prompt] * texts), 6, weights, student.config, np.random.default_rng(0))
    assert ids.shape == (texts, 6)
    assert (ids[:, :3] == prompt).all()
    expected = np.exp(log_softmax(student.logits(prompt)[-1]))
    found = np.bincount(ids[:, 3], minlength=5) / texts
    assert expected.max() - expected.min() > 0.1
    np.testing.assert_allclose(found, expected, atol=0.015)  # over four standard deviations
    # The second depends on the first.
    for first in range(5):
        expected = np.exp(log_softmax(student.logits([*prompt, first])[-1]))
        after = ids[ids[:, 3] == first, 4]
        np.testing.assert_allclose(np.bincount(after, minlength=5) / len(after), expected, atol=2 / len(after) ** 0.5)


@pytest.mark.parametrize("draft", ["model", "lookup"])
def test_continuations_with_a_draft_have_the_same_distribution(draft):
    student, prompt, texts = tiny.gemma(vocab_size=5), [2, 4, 1], 1000
    other = tiny.gemma(vocab_size=5, seed=1) if draft == "model" else draft
    ids = sample_continuations(
        np.array([prompt] * texts), 5, student.weights, student.config, np.random.default_rng(0), draft=other
    )
    assert ids.shape == (texts, 5)
    assert (ids[:, :3] == prompt).all()
    expected = np.exp(log_softmax(student.logits(prompt)[-1]))
    np.testing.assert_allclose(np.bincount(ids[:, 3], minlength=5) / texts, expected, atol=2 / texts**0.5)


def test_the_draft_of_on_policy_sampling_is_made_of_the_current_student():
    made, training_config = [], TrainingConfig(steps=1, batch_size=2, seq_len=8)

    def make_draft(weights):
        made.append(weights)
        return gemma_np.Gemma(CONFIG, weights, None)

    next_batch = on_policy(np.arange(5, 60, dtype=np.uint16), CONFIG, training_config, 3, make_draft)
    states = [State(random_weights(CONFIG, seed), AdamW(), np.random.default_rng(0)) for seed in (0, 1)]
    assert [next_batch(state).ids.shape for state in states] == [(2, 9)] * 2
    assert made[0] is states[0].weights
    assert made[1] is states[1].weights


def test_the_on_policy_loss_counts_only_sampled_tokens():
    training_config = TrainingConfig(steps=1, batch_size=3, seq_len=8)
    tokens = np.arange(5, 60, dtype=np.uint16)
    state = State(random_weights(CONFIG, 0), AdamW(), np.random.default_rng(0))
    batch = on_policy(tokens, CONFIG, training_config, prompt_tokens=3)(state)
    assert batch.ids.shape == (3, 9)
    assert batch.loss_mask.tolist() == [[False] * 2 + [True] * 6] * 3
    assert (np.diff(batch.ids[:, :3]) == 1).all()  # the prompt is from the file
    assert (np.diff(batch.ids[:, 3:]) != 1).any()
    with pytest.raises(GemmaError, match="prompt_tokens: 9, expected 1 to seq_len=8"):
        on_policy(tokens, CONFIG, training_config, prompt_tokens=9)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text(tiny.TEXT, encoding="utf-8")
    tiny.gemma().save(tmp_path / "teacher")
    return tmp_path


SMALL = "--hidden-size 8 --layers 2 --heads 2 --kv-heads 1 --head-dim 4 --intermediate-size 8 --sliding-window 4 "
SMALL += "--context 16 --seq-len 16"
SHORT = "--steps 40 --batch-size 2 --learning-rate 0.03 --warmup-steps 2"


def test_the_command_line_brings_a_student_closer_to_its_teacher(folder):
    teacher, out = folder / "teacher", folder / "student"
    arguments = ["distill", str(folder / "texts"), "--teacher", str(teacher), "-o", str(out)]
    assert main([*arguments, *SMALL.split(), *SHORT.split()]) == 0
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    assert gemma_np.load(out).tokenizer.model == tiny.vocabulary()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_command_line_distills_on_policy(folder, divergence):
    teacher, out = folder / "teacher", folder / "student"
    arguments = ["distill", str(folder / "texts"), "--teacher", str(teacher), "-o", str(out), "--on-policy"]
    assert main([*arguments, "--prompt-tokens", "4", "--divergence", divergence, *SMALL.split(), *SHORT.split()]) == 0
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize("draft", ["half", "lookup", "TEACHER"])
def test_on_policy_with_a_draft_learns_and_can_be_resumed_with_it_only(folder, draft, capsys):
    out, draft = folder / "student", draft.replace("TEACHER", str(folder / "teacher"))
    arguments = ["distill", str(folder / "texts"), "--teacher", str(folder / "teacher"), "-o", str(out), "--on-policy"]
    arguments += ["--prompt-tokens", "4", *SMALL.split(), *SHORT.split()]
    assert main([*arguments, "--draft", draft]) == 0
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert main([*arguments, "--draft", draft, "--resume"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 2
    assert "was started with draft=" in capsys.readouterr().err


def test_a_draft_is_for_on_policy_distillation_and_the_same_vocabulary(folder, capsys):
    arguments = ["distill", str(folder / "texts"), "--teacher", str(folder / "teacher"), "-o", str(folder / "out")]
    assert main([*arguments, *SMALL.split(), "--draft", "half"]) == 2
    assert "--draft: given without --on-policy" in capsys.readouterr().err
    with pytest.raises(GemmaError, match="draft: given without prompt_tokens"):
        training.distill(folder / "teacher", folder / "texts", folder / "a", teacher=folder / "teacher", draft="lookup")
    assert main([*arguments, *SMALL.split(), "--on-policy", "--draft", "shakespeare-1m"]) == 2
    assert "draft: its tokenizer.model is not that of the model" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_another_teacher_or_temperature(folder, capsys):
    arguments = ["distill", str(folder / "texts"), "--teacher", str(folder / "teacher"), *SMALL.split(), *SHORT.split()]
    assert main([*arguments, "-o", str(folder / "out")]) == 0
    assert main([*arguments, "-o", str(folder / "out"), "--resume", "--temperature", "2"]) == 2
    assert "was started with temperature=1.0, but this run asks for 2.0" in capsys.readouterr().err
    other = tiny.gemma()
    other.weights["model.norm.weight"] = other.weights["model.norm.weight"] + 1
    other.save(folder / "other")
    arguments[3] = str(folder / "other")
    assert main([*arguments, "-o", str(folder / "out"), "--resume"]) == 2
    assert "was started with teacher=" in capsys.readouterr().err


def test_only_the_cross_entropy_has_a_temperature(folder, capsys):
    arguments = ["distill", str(folder / "texts"), "--teacher", str(folder / "teacher"), "-o", str(folder / "out")]
    assert main([*arguments, *SMALL.split(), "--divergence", "reverse-kl", "--temperature", "2"]) == 2
    assert "temperature: 2.0, expected 1 for the divergence reverse-kl" in capsys.readouterr().err


def test_another_vocabulary_is_refused(folder, capsys):
    tiny.gemma().save(folder / "other")
    tiny.gemma(vocab_size=540).save(folder / "apart")
    (folder / "apart" / "tokenizer.model").write_bytes(train_tokenizer(tiny.TEXT.splitlines(), 540))
    arguments = ["distill", str(folder / "texts"), "--teacher", str(folder / "apart"), "--model", str(folder / "other")]
    assert main([*arguments, "-o", str(folder / "out"), "--seq-len", "16"]) == 2
    assert "expected the same vocabulary" in capsys.readouterr().err


def test_the_average_is_the_mean_of_every_weight():
    models = [random_weights(CONFIG, seed) for seed in range(3)]
    merged = average(models)
    for name, weight in merged.items():
        assert weight.dtype == np.float32
        np.testing.assert_allclose(weight, (models[0][name] + models[1][name] + models[2][name]) / 3, atol=1e-6)
    assert all((average([models[0]] * 3)[name] == models[0][name]).all() for name in merged)


def test_models_of_different_shapes_are_not_averaged():
    other = dict(random_weights(CONFIG, 0)) | {"model.norm.weight": np.zeros(5, np.float32)}
    with pytest.raises(GemmaError, match=r"model 2: model\.norm\.weight: shape \(5,\), expected \(12,\)"):
        average([random_weights(CONFIG, 0), other])


def test_merge_from_the_command_line(folder, capsys):
    tiny.gemma("gemma3_text").save(folder / "another")
    teacher = str(folder / "teacher")
    assert main(["merge", teacher, teacher, "-o", str(folder / "merged")]) == 0
    assert (gemma_np.load(folder / "merged").logits([2, 5]) == tiny.gemma().logits([2, 5])).all()
    assert main(["merge", teacher, str(folder / "another"), "-o", str(folder / "x")]) == 2
    assert "model 2: its config is not that of the first, expected the same" in capsys.readouterr().err
    others = train_tokenizer([tiny.TEXT.upper()] * 3, 540)
    tiny.gemma(vocab_size=540).save(folder / "one")
    tiny.gemma(vocab_size=540).save(folder / "renamed")
    for name, tokenizer in (("one", train_tokenizer(tiny.TEXT.splitlines(), 540)), ("renamed", others)):
        (folder / name / "tokenizer.model").write_bytes(tokenizer)
    assert main(["merge", str(folder / "one"), str(folder / "renamed"), "-o", str(folder / "x")]) == 2
    assert "model 2: its tokenizer.model is not that of the first, expected the same" in capsys.readouterr().err


def test_merge_converts_to_another_dtype(folder):
    assert main(["merge", str(folder / "teacher"), "-o", str(folder / "half"), "--dtype", "bfloat16"]) == 0
    half, whole = gemma_np.load(folder / "half").weights, tiny.gemma().weights
    assert (folder / "half" / "model.safetensors").stat().st_size < 0.6 * sum(w.nbytes for w in whole.values()) + 9000
    for name, weight in whole.items():
        assert (half[name] == weight.astype(ml_dtypes.bfloat16).astype(np.float32)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: 0.0, expected more than 0"),
        ({"temperature": float("nan")}, "temperature: nan, expected more than 0"),
        ({"beta": 1.0}, "beta: 1.0, expected more than 0 and less than 1"),
    ],
)
def test_divergences_out_of_range_are_refused(options, message):
    with pytest.raises(GemmaError, match=message):
        choose_divergence("cross-entropy", **options)


def test_options_in_conflict_are_refused(folder, capsys):
    teacher = ["distill", str(folder / "texts"), "--teacher", str(folder / "teacher"), "-o", str(folder / "out")]
    for arguments, message in (
        ([*teacher, "--targets", "x"], "expected --teacher and TEXT for a live teacher, or --targets"),
        (["distill", "--targets", "x", "--on-policy", "-o", "y"], "--targets: expected no TEXT, --on-policy"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
