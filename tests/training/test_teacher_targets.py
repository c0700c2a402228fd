"""A teacher's distributions on disk: what is written, what is read back, how an interrupted run continues."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import gemma_np
from gemma_np import GemmaError
from gemma_np.checkpoints.safetensors_file import write_tensors
from gemma_np.cli import main
from gemma_np.model.log_probs import log_softmax
from gemma_np.training import teacher_targets
from gemma_np.training.losses import soft_cross_entropy
from gemma_np.training.optimizer import AdamW
from gemma_np.training.task import Batch
from gemma_np.training.teacher_targets import from_targets, mean_probs, random_targets, top_k, write_targets
from gemma_np.training.training_state import State
from tests.support import tiny
from tests.support.damage import flip_last_bit
from tests.support.strategies import normal, seeds

TOKENS = np.array(tiny.tokenizer().encode(tiny.TEXT * 2), np.uint16)
SEQ_LEN = 12


def state():
    return State({}, AdamW(), np.random.default_rng(0))


@given(seeds, st.integers(1, 6))
def test_top_k_returns_the_most_likely_tokens_and_their_probabilities(seed, k):
    logits = 3 * normal(seed, 2, 7)
    expected = np.exp(log_softmax(logits))
    ids, probs = top_k(expected, k)
    for row in range(2):
        assert set(ids[row]) == set(np.argsort(-logits[row])[:k])
        np.testing.assert_allclose(probs[row], expected[row, ids[row]], rtol=1e-12)


def test_batches_hold_the_teachers_top_k(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_targets, "_TEXTS", 5)  # several files
    teacher, k = tiny.gemma(), 20
    write_targets([teacher], TOKENS, SEQ_LEN, k, tmp_path)
    assert len(list(tmp_path.glob("targets-*"))) > 2
    batch = random_targets(tmp_path, 1000, teacher.config.vocab_size)(state())
    texts = {tuple(TOKENS[start : start + SEQ_LEN + 1]) for start in range(0, len(TOKENS) - SEQ_LEN, SEQ_LEN)}
    assert {tuple(row) for row in batch.ids.tolist()} == texts  # 1000 draws find all of them
    expected = top_k(np.exp(log_softmax(teacher.logits(batch.ids[:, :-1]))), k)
    for row, expected_row in zip(batch.teacher.ids.reshape(-1, k), expected.ids.reshape(-1, k), strict=True):
        assert set(row) == set(expected_row)
    np.testing.assert_allclose(np.sort(batch.teacher.probs), np.sort(expected.probs), rtol=1e-3)


def test_with_nearly_all_tokens_the_loss_is_that_of_a_live_teacher(tmp_path):
    teacher = tiny.gemma()
    write_targets([teacher], TOKENS[: SEQ_LEN + 1], SEQ_LEN, teacher.config.vocab_size - 1, tmp_path)
    batch = random_targets(tmp_path, 1, 400)(state())
    logits = np.random.default_rng(0).standard_normal((1, SEQ_LEN, teacher.config.vocab_size))
    found, dfound = from_targets(logits, batch)
    expected, dexpected = soft_cross_entropy(logits, teacher.logits(batch.ids[:, :-1]))
    np.testing.assert_allclose(found, expected, rtol=1e-3)  # probabilities are stored in float16
    np.testing.assert_allclose(dfound, dexpected, atol=1e-4)


def test_an_interrupted_teacher_continues_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_targets, "_TEXTS", 5)
    teacher = tiny.gemma()
    write_targets([teacher], TOKENS, SEQ_LEN, 4, tmp_path / "whole")

    def stop_at_the_third(path, arrays, metadata, written=[]):  # noqa: B006 (it counts the calls)
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        write_tensors(path, arrays, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_targets, "write_tensors", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            write_targets([teacher], TOKENS, SEQ_LEN, 4, tmp_path / "stopped")
    assert len(list((tmp_path / "stopped").glob("targets-*"))) == 2
    with pytest.raises(GemmaError, match="No such file or directory, expected a safetensors file"):
        random_targets(tmp_path / "stopped", 1, 400)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "stopped").glob("targets-*")}
    write_targets([teacher], TOKENS, SEQ_LEN, 4, tmp_path / "stopped")
    for path in (tmp_path / "whole").glob("targets-*.safetensors"):
        again = tmp_path / "stopped" / path.name
        assert all((a == b).all() for a, b in zip(load_file(path).values(), load_file(again).values(), strict=True))
        assert again.stat().st_mtime_ns == kept.get(path.name, again.stat().st_mtime_ns)


def test_the_distributions_of_several_teachers_are_averaged(tmp_path):
    teachers = [tiny.gemma(seed=seed) for seed in (1, 2, 3)]
    write_targets(teachers, TOKENS[: 9 * SEQ_LEN], SEQ_LEN, 399, tmp_path)
    batch = random_targets(tmp_path, 20, 400)(state())
    mean = np.mean([np.exp(log_softmax(teacher.logits(batch.ids[:, :-1]))) for teacher in teachers], axis=0)
    expected = np.take_along_axis(mean, batch.teacher.ids, axis=-1)
    np.testing.assert_allclose(batch.teacher.probs, expected, rtol=1e-3, atol=1e-7)  # stored in float16


def test_the_mean_of_teachers_is_never_worse_than_the_mean_of_their_losses():
    teachers = [tiny.gemma(seed=seed) for seed in (1, 2, 3)]
    ids = TOKENS[:48].reshape(1, -1).astype(np.int64)
    log_probs = [log_softmax(teacher.logits(ids[:, :-1])) for teacher in teachers]
    mean = np.log(mean_probs(teachers, ids[:, :-1]))
    losses, together = (-np.take_along_axis(np.stack(each), ids[None, :, 1:, None], -1) for each in (log_probs, [mean]))
    assert (together[0] <= losses.mean(axis=0) + 1e-9).all()  # Jensen: -log is convex
    assert together.mean() < losses.mean() - 1e-4


def test_teachers_that_do_not_fit_together_are_refused(tmp_path):
    with pytest.raises(GemmaError, match="teacher: none, expected one or more"):
        write_targets([], TOKENS, SEQ_LEN, 4, tmp_path)
    larger = tiny.gemma(vocab_size=464)
    with pytest.raises(GemmaError, match="teacher: vocab_size=464, expected 400 as in the first teacher"):
        write_targets([tiny.gemma(), larger], TOKENS, SEQ_LEN, 4, tmp_path)
    short = tiny.gemma(max_position_embeddings=SEQ_LEN - 1)
    with pytest.raises(GemmaError, match=f"seq_len: {SEQ_LEN}, expected 1 to the teacher's context of {SEQ_LEN - 1}"):
        write_targets([tiny.gemma(), short], TOKENS, SEQ_LEN, 4, tmp_path)


def test_other_settings_are_refused(tmp_path):
    teacher = tiny.gemma()
    write_targets([teacher], TOKENS, SEQ_LEN, 4, tmp_path)
    with pytest.raises(GemmaError, match="was started with top_k=4, but this run asks for 5"):
        write_targets([teacher], TOKENS, SEQ_LEN, 5, tmp_path)
    other = tiny.gemma()
    other.weights["model.norm.weight"] = other.weights["model.norm.weight"] + 1
    with pytest.raises(GemmaError, match="was started with teachers="):
        write_targets([other], TOKENS, SEQ_LEN, 4, tmp_path)
    with pytest.raises(GemmaError, match="top_k: 400, expected 1 to 399"):
        write_targets([teacher], TOKENS, SEQ_LEN, 400, tmp_path)


def test_a_refused_call_leaves_the_folder_as_it_was(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text(tiny.TEXT, encoding="utf-8")
    tiny.gemma().save(tmp_path / "teacher")
    arguments = ["cache-teacher", str(tmp_path / "texts"), "--teacher", str(tmp_path / "teacher")]
    arguments += ["-o", str(tmp_path / "out")]
    for wrong in (["--seq-len", "65"], ["--seq-len", "16", "--top-k", "400"]):
        assert main([*arguments, *wrong]) == 2
        assert not (tmp_path / "out").exists()
    assert main([*arguments, "--seq-len", "16"]) == 0
    assert main([*arguments, "--seq-len", "16", "--seed", "1"]) == 2
    assert "made with seed=0, but this run asks for 1" in capsys.readouterr().err


SETTINGS = {"seq_len": 8, "top_k": 4, "tokens": 100, "teachers": [5]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[]", r"\[\], expected a JSON object"),
        ("{}", "seq_len: missing, expected a whole number"),
        ("no JSON", "not JSON"),
        (json.dumps(SETTINGS | {"top_k": 1.5}), "top_k: 1.5, expected a whole number"),
        (json.dumps(SETTINGS | {"teachers": [-1]}), r"teachers\[0\]: -1, expected a whole number"),
        (json.dumps(SETTINGS | {"tokens": 8}), "8 tokens, expected more than seq_len=8"),
        (json.dumps(SETTINGS | {"tokens": 2**60}), "targets-00001-of-.*: No such file or directory"),
    ],
)
def test_damaged_settings_are_refused(tmp_path, settings, message):
    (tmp_path / "targets.json").write_text(settings)
    with pytest.raises(GemmaError, match=message):
        random_targets(tmp_path, 1, 400)


def arrays_without(name):
    return lambda arrays: {other: array for other, array in arrays.items() if other != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays | {"ids": arrays["ids"] ^ 1}, "ids: damaged .wrong checksum"),
        (lambda arrays: arrays | {"top": arrays["top"][..., ::-1].copy()}, "top: damaged"),
        (lambda arrays: arrays | {"probs": np.nextafter(arrays["probs"], np.float16(0))}, "probs: damaged"),
        (lambda arrays: arrays | {"probs": arrays["probs"].astype(np.float32)}, "probs: dtype F32, expected one of"),
        (lambda arrays: arrays | {"probs": arrays["top"]}, "probs: uint16, expected float16"),
        (lambda arrays: arrays | {"top": arrays["top"][:, :-1].copy()}, r"top: \(\d+, 8, 4\), expected the shape"),
        (arrays_without("ids"), "ids: missing, expected the shape"),
    ],
)
def test_damaged_targets_are_refused(tmp_path, change, message):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    write_targets([tiny.gemma()], TOKENS[:100], 9, 4, tmp_path)
    (path,) = tmp_path.glob("targets-*")
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    save_file(change(load_file(path)), path, metadata)
    with pytest.raises(GemmaError, match=message):
        random_targets(tmp_path, 1, 400)


def test_a_teacher_does_not_continue_with_damaged_files(tmp_path):
    write_targets([tiny.gemma()], TOKENS, SEQ_LEN, 4, tmp_path)
    path = next(tmp_path.glob("targets-*"))
    whole = flip_last_bit(path)
    with pytest.raises(GemmaError, match=r"probs: damaged \(wrong checksum\); to mend it, remove it, repeat cache"):
        write_targets([tiny.gemma()], TOKENS, SEQ_LEN, 4, tmp_path)
    path.unlink()
    write_targets([tiny.gemma()], TOKENS, SEQ_LEN, 4, tmp_path)
    assert path.read_bytes() == whole


def test_targets_of_a_larger_vocabulary_are_refused(tmp_path):
    write_targets([tiny.gemma()], TOKENS[:100], 9, 4, tmp_path)
    with pytest.raises(GemmaError, match="has ids that are too large, expected at most 20"):
        random_targets(tmp_path, 1, 21)


def test_a_batch_without_targets_is_refused():
    with pytest.raises(GemmaError, match="targets: none in the batch"):
        from_targets(np.zeros((1, 2, 5)), Batch(np.zeros((1, 3), int)))


def test_the_command_line_caches_a_teacher_and_distills_from_it(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text(tiny.TEXT, encoding="utf-8")
    tiny.gemma().save(tmp_path / "teacher")
    folder, out = str(tmp_path / "targets"), tmp_path / "student"
    arguments = [str(tmp_path / "texts"), "--teacher", str(tmp_path / "teacher"), "--top-k", "8", "--seq-len", "16"]
    assert main(["cache-teacher", *arguments, "-o", folder]) == 0
    small = "--hidden-size 8 --layers 2 --heads 2 --kv-heads 1 --head-dim 4 --intermediate-size 8 --sliding-window 4"
    short = "--context 16 --steps 40 --batch-size 2 --learning-rate 0.03 --warmup-steps 2"
    assert main(["distill", "--targets", folder, "-o", str(out), *small.split(), *short.split()]) == 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert np.mean([entry["loss"] for entry in log[-5:]]) < np.mean([entry["loss"] for entry in log[:5]]) - 0.05
    assert "val_loss" in log[-1]
    assert gemma_np.load(out).tokenizer.model == tiny.vocabulary()
    assert main(["distill", "--targets", str(tmp_path / "texts"), "-o", str(tmp_path / "x")]) == 2
    assert "expected the output of gemma-np cache-teacher" in capsys.readouterr().err
    assert main(["distill", "-o", str(tmp_path / "x")]) == 2
    assert "expected --teacher and TEXT" in capsys.readouterr().err
