"""A teacher's distributions on disk: what is stored, what comes back, what a stopped run leaves."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import gemma_np
from gemma_np import GemmaError
from gemma_np.cli import main
from gemma_np.model.log_probs import log_softmax
from gemma_np.training import teacher_targets
from gemma_np.training.losses import soft_cross_entropy
from gemma_np.training.optimizer import AdamW
from gemma_np.training.task import Batch
from gemma_np.training.teacher_targets import from_targets, random_targets, top_k, write_targets
from gemma_np.training.training_state import State
from tests.support import tiny
from tests.support.strategies import normal, seeds

TOKENS = np.array(tiny.tokenizer().encode(tiny.TEXT * 2), np.uint16)
LENGTH = 12


def state():
    return State({}, AdamW(), np.random.default_rng(0))


@given(seeds, st.integers(1, 6))
def test_top_k_is_the_largest_and_their_probabilities(seed, k):
    logits = 3 * normal(seed, 2, 7)
    ids, probs = top_k(logits, k)
    expected = np.exp(log_softmax(logits))
    for row in range(2):
        assert set(ids[row]) == set(np.argsort(-logits[row])[:k])
        np.testing.assert_allclose(probs[row], expected[row, ids[row]], rtol=1e-12)


def test_what_is_drawn_is_what_the_teacher_says_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_targets, "_TEXTS", 5)  # several files
    teacher, k = tiny.gemma(), 20
    write_targets(teacher, TOKENS, LENGTH, k, tmp_path)
    assert len(list(tmp_path.glob("targets-*"))) > 2
    batch = random_targets(tmp_path, batch=1000)(state())
    texts = {tuple(TOKENS[start : start + LENGTH + 1]) for start in range(0, len(TOKENS) - LENGTH, LENGTH)}
    assert {tuple(row) for row in batch.ids.tolist()} == texts  # so many draws find all of them
    expected = top_k(teacher.logits(batch.ids[:, :-1]), k)
    for found, wanted in zip(batch.teacher.ids.reshape(-1, k), expected.ids.reshape(-1, k), strict=True):
        assert set(found) == set(wanted)
    np.testing.assert_allclose(np.sort(batch.teacher.probs), np.sort(expected.probs), rtol=1e-3)


def test_with_nearly_all_tokens_kept_the_loss_is_the_live_one(tmp_path):
    teacher = tiny.gemma()
    write_targets(teacher, TOKENS[: LENGTH + 1], LENGTH, teacher.config.vocab_size - 1, tmp_path)
    batch = random_targets(tmp_path, 1)(state())
    logits = np.random.default_rng(0).standard_normal((1, LENGTH, teacher.config.vocab_size))
    found, dfound = from_targets(logits, batch)
    expected, dexpected = soft_cross_entropy(logits, teacher.logits(batch.ids[:, :-1]))
    np.testing.assert_allclose(found, expected, rtol=1e-3)  # probabilities are stored in float16
    np.testing.assert_allclose(dfound, dexpected, atol=1e-4)


def test_a_stopped_teacher_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_targets, "_TEXTS", 5)
    teacher = tiny.gemma()
    write_targets(teacher, TOKENS, LENGTH, 4, tmp_path / "whole")

    def stop_at_the_third(arrays, path, written=[]):  # noqa: B006 (it counts the calls)
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        save(arrays, path)

    from safetensors.numpy import save_file as save

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.numpy.save_file", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            write_targets(teacher, TOKENS, LENGTH, 4, tmp_path / "stopped")
    assert len(list((tmp_path / "stopped").glob("targets-*"))) == 2
    with pytest.raises(GemmaError, match="expected what gemma-np cache-teacher writes, whole"):
        random_targets(tmp_path / "stopped", 1)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "stopped").glob("targets-*")}
    write_targets(teacher, TOKENS, LENGTH, 4, tmp_path / "stopped")
    for path in (tmp_path / "whole").glob("targets-*.safetensors"):
        again = tmp_path / "stopped" / path.name
        assert all((a == b).all() for a, b in zip(load_file(path).values(), load_file(again).values(), strict=True))
        assert again.stat().st_mtime_ns == kept.get(path.name, again.stat().st_mtime_ns)


def test_other_settings_are_refused(tmp_path):
    teacher = tiny.gemma()
    write_targets(teacher, TOKENS, LENGTH, 4, tmp_path)
    with pytest.raises(GemmaError, match="was begun with top_k=4, expected 5"):
        write_targets(teacher, TOKENS, LENGTH, 5, tmp_path)
    other = tiny.gemma()
    other.weights["model.norm.weight"] = other.weights["model.norm.weight"] + 1
    with pytest.raises(GemmaError, match="was begun with teacher="):
        write_targets(other, TOKENS, LENGTH, 4, tmp_path)
    with pytest.raises(GemmaError, match="top-k: 400, expected 1 to 399"):
        write_targets(teacher, TOKENS, LENGTH, 400, tmp_path)


def test_a_refused_call_leaves_the_folder_as_it_was(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text(tiny.TEXT, encoding="utf-8")
    tiny.gemma().save(tmp_path / "teacher")
    words = [
        "cache-teacher",
        str(tmp_path / "texts"),
        "--teacher",
        str(tmp_path / "teacher"),
        "-o",
        str(tmp_path / "out"),
    ]
    for wrong in (["--seq-len", "65"], ["--seq-len", "0"], ["--seq-len", "16", "--top-k", "400"]):
        assert main([*words, *wrong]) == 2
        assert not (tmp_path / "out").exists()
    assert main([*words, "--seq-len", "16"]) == 0
    assert main([*words, "--seq-len", "16", "--seed", "1"]) == 2
    assert "made with seed=0, expected 1" in capsys.readouterr().err


@pytest.mark.parametrize("settings", ["[]", "{}", "no JSON"])
def test_settings_that_are_none(tmp_path, settings):
    (tmp_path / "targets.json").write_text(settings)
    with pytest.raises(GemmaError, match="expected what gemma-np cache-teacher writes"):
        random_targets(tmp_path, 1)


def test_a_batch_without_targets():
    with pytest.raises(GemmaError, match="targets: none in the batch"):
        from_targets(np.zeros((1, 2, 5)), Batch(np.zeros((1, 3), int)))


def test_from_the_command_line(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text(tiny.TEXT, encoding="utf-8")
    tiny.gemma().save(tmp_path / "teacher")
    folder, out = str(tmp_path / "targets"), tmp_path / "student"
    asked = [str(tmp_path / "texts"), "--teacher", str(tmp_path / "teacher"), "--top-k", "8", "--seq-len", "16"]
    assert main(["targets", *asked, "-o", folder]) == 0
    small = "--hidden-size 8 --layers 2 --heads 2 --kv-heads 1 --head-dim 4 --intermediate-size 8 --sliding-window 4 --context 16"
    arguments = ["distill", "--targets", folder, "-o", str(out), *small.split()]
    assert (
        main([*arguments, *["--steps", "40", "--batch-size", "2", "--learning-rate", "0.03", "--warmup-steps", "2"]])
        == 0
    )
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert np.mean([entry["loss"] for entry in log[-5:]]) < np.mean([entry["loss"] for entry in log[:5]]) - 0.05
    assert "validation" in log[-1]
    assert gemma_np.load(out).tokenizer.model == tiny.vocabulary()
    assert main(["distill", "--targets", str(tmp_path), "-o", str(tmp_path / "x")]) == 2
    assert "expected what gemma-np cache-teacher writes" in capsys.readouterr().err
    assert main(["distill", "-o", str(tmp_path / "x")]) == 2
    assert "expected --teacher and TEXT" in capsys.readouterr().err
