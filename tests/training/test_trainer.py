"""Training runs: the loss falls, and a run that is killed and resumed ends bit-identical to an uninterrupted one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gemma_np
from gemma_np import GemmaError
from gemma_np.cli import main
from gemma_np.mpi import Ranks
from gemma_np.training import trainer, training_state
from gemma_np.training.data import (
    consecutive_batches,
    random_batches,
    random_windows,
    text_files,
    tokenize_files,
    tokenize_texts,
)
from gemma_np.training.task import Batch, Task, next_token
from gemma_np.training.tokenizer_training import train_tokenizer
from gemma_np.training.trainer import initial_weights, loss_and_gradients, run_task, validation_loss
from gemma_np.training.training_state import TrainingConfig
from tests.support import tiny
from tests.support.damage import flip_last_bit

CONFIG = tiny.config()
TRAINING = TrainingConfig(
    steps=8, batch_size=3, seq_len=12, learning_rate=0.01, warmup_steps=2, save_every=2, eval_every=4
)
TOKENS = np.array(tiny.tokenizer().encode(tiny.TEXT * 3), np.uint16)


def text_task(training_config=TRAINING):
    """The task of predicting the next token of TOKENS."""
    validation = consecutive_batches(TOKENS[:60], training_config.batch_size, training_config.seq_len)
    return Task(random_batches(TOKENS, training_config.batch_size, training_config.seq_len), validation=validation)


def run(folder, training_config=TRAINING, task=None, **options):
    model = gemma_np.Gemma(CONFIG, initial_weights(CONFIG, np.random.default_rng(0)), tiny.tokenizer())
    return run_task(model, task or text_task(training_config), training_config, folder, **options).weights


def saved_state(folder):
    return training_state.load_state(folder / "training.safetensors", CONFIG, TRAINING, {})


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_loss_falls(tmp_path):
    run(tmp_path / "run", replace(TRAINING, steps=60))
    log = log_of(tmp_path / "run")
    assert [entry["step"] for entry in log] == list(range(1, 61))
    assert log[-1]["val_loss"] < log[3]["val_loss"] - 1
    assert log[-1]["val_loss"] < np.log(len(tiny.tokenizer())) - 1


def test_the_folder_is_a_checkpoint(tmp_path):
    weights = run(tmp_path / "run")
    model = gemma_np.load(tmp_path / "run")
    assert model.config == CONFIG
    assert all((model.weights[name] == weights[name]).all() for name in weights)
    assert model.generate("The", max_new_tokens=3) is not None


@pytest.mark.framework
def test_the_framework_reads_the_folder(tmp_path):
    from transformers import AutoModelForCausalLM

    weights = run(tmp_path / "run")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run", attn_implementation="eager")
    name = "model.layers.2.mlp.up_proj.weight"
    assert (theirs.get_parameter(name).detach().numpy() == weights[name]).all()


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradients_of_shares_add_up_to_those_of_the_batch(masked):
    """Each share is divided by the number of targets of the whole batch, however many of its own count."""
    weights = {name: w.astype(np.float64) for name, w in initial_weights(CONFIG, np.random.default_rng(0)).items()}
    ids = random_windows(TOKENS, 5, 9, np.random.default_rng(0))
    batch = Batch(ids, np.arange(40).reshape(5, 8) % 7 > 3 if masked else None)
    shares = [batch.share(rank, 2) for rank in range(2)]
    counts = [share.num_targets for share in shares]
    assert sum(counts) == batch.num_targets
    assert counts[0] != counts[1]
    loss, gradients, _ = loss_and_gradients(weights, CONFIG, batch, next_token)
    parts = [loss_and_gradients(weights, CONFIG, share, next_token, batch.num_targets) for share in shares]
    assert sum(value for value, _, _ in parts) == pytest.approx(loss, rel=1e-12)
    for name, gradient in gradients.items():
        total = parts[0][1][name] + parts[1][1][name]
        np.testing.assert_allclose(total, gradient, rtol=1e-9, atol=1e-12 * np.abs(gradient).max())
    for share, (value, _, _), count in zip(shares, parts, counts, strict=True):  # by default, its own number
        own = loss_and_gradients(weights, CONFIG, share, next_token)[0]
        assert value * batch.num_targets == pytest.approx(own * count, rel=1e-12)


def test_two_accumulated_batches_are_one_of_twice_the_size(tmp_path):
    """Two batches of 2, drawn one after the other, hold the texts of one batch of 4."""
    one = run(tmp_path / "one", replace(TRAINING, batch_size=4, steps=3))
    two = run(tmp_path / "two", replace(TRAINING, batch_size=2, steps=3, grad_accum_steps=2))
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-3)
    for a, b in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-3)


def test_a_crashed_run_resumes_to_the_same_end(tmp_path, monkeypatch):
    expected = run(tmp_path / "whole")

    def crash_at_6(state, *rest, original=trainer.train_step):
        if state.step == 5:
            raise KeyboardInterrupt
        return original(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", crash_at_6)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "crashed")
    found = run(tmp_path / "crashed", resume=True)
    assert all((found[name] == expected[name]).all() for name in expected)
    assert [entry["step"] for entry in log_of(tmp_path / "crashed")] == list(range(1, 9))
    assert log_of(tmp_path / "crashed")[-1]["loss"] == log_of(tmp_path / "whole")[-1]["loss"]


def test_killed_at_20_random_moments_it_ends_bit_identical(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text(tiny.TEXT * 2, encoding="utf-8")
    (tmp_path / "tokenizer.model").write_bytes(tiny.vocabulary())
    shape = "--hidden-size 12 --layers 2 --heads 2 --kv-heads 1 --head-dim 4 --intermediate-size 8 --sliding-window 4"
    training = "--context 16 --steps 4000 --batch-size 2 --seq-len 16 --save-every 1 --eval-every 500"

    def command(out):
        texts, tokenizer = str(tmp_path / "texts"), str(tmp_path / "tokenizer.model")
        start = [sys.executable, "-m", "gemma_np", "train", texts, "--tokenizer", tokenizer, "-o", str(tmp_path / out)]
        return [*start, "--resume", *shape.split(), *training.split()]

    started = time.perf_counter()
    subprocess.run(command("whole"), check=True, capture_output=True, timeout=300)
    longest = (time.perf_counter() - started) / 30  # 20 times this is less than a whole run
    started = time.perf_counter()
    subprocess.run(command("whole"), check=True, capture_output=True, timeout=300)  # nothing is left to do
    start = time.perf_counter() - started
    generator = random.Random(0)
    for kills in range(20):
        process = subprocess.Popen(command("killed"), stderr=subprocess.PIPE)
        time.sleep(generator.uniform(0.7 * start, start + longest))
        assert process.poll() is None, f"the run ended after {kills} kills"
        process.send_signal(signal.SIGKILL)
        assert process.communicate()[1] == b""
    subprocess.run(command("killed"), check=True, capture_output=True, timeout=300)
    for file in ("model.safetensors", "training.safetensors"):
        killed, whole = load_file(tmp_path / "killed" / file), load_file(tmp_path / "whole" / file)
        assert set(killed) == set(whole)
        assert all(killed[name].tobytes() == whole[name].tobytes() for name in whole)
    assert [entry["step"] for entry in log_of(tmp_path / "killed")] == list(range(1, 4001))


# Errors


def test_a_run_does_not_overwrite_another(tmp_path):
    run(tmp_path / "run")
    with pytest.raises(GemmaError, match="holds a run already, expected --resume or another folder"):
        run(tmp_path / "run")


def test_a_run_is_not_resumed_with_another_training_config(tmp_path):
    run(tmp_path / "run")
    with pytest.raises(GemmaError, match=r"was started with learning_rate=0\.01, but this run asks for 0\.5"):
        run(tmp_path / "run", replace(TRAINING, learning_rate=0.5), resume=True)
    assert run(tmp_path / "run", replace(TRAINING, save_every=7), resume=True)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path):
    run(tmp_path / "run")
    good = (tmp_path / "run" / "training.safetensors").read_bytes()

    def nan_loss(logits, batch):
        losses, dlogits = next_token(logits, batch)
        return losses * np.nan, dlogits

    state = saved_state(tmp_path / "run")
    state.weights["model.layers.1.mlp.up_proj.weight"][0, 0] = np.inf
    with pytest.raises(GemmaError, match=r"step 9: the loss is not finite; first in model\.layers\.1\.mlp\.up_proj"):
        trainer.train_step(state, CONFIG, text_task(), TRAINING, Ranks())
    state = saved_state(tmp_path / "run")
    with pytest.raises(GemmaError, match="step 9: the loss is not finite; first in none of the arrays"):
        trainer.train_step(state, CONFIG, replace(text_task(), loss=nan_loss), TRAINING, Ranks())
    assert (tmp_path / "run" / "training.safetensors").read_bytes() == good


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    run(tmp_path / "run", replace(TRAINING, steps=8))
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    state = saved_state(tmp_path / "run")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)  # the first file that is written is not complete
        message = r"run/\S+: could not be written \(No space left on device\); "
        with pytest.raises(GemmaError, match=message):
            training_state.save_state(tmp_path / "run", state, tiny.gemma(), TRAINING, {})
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
    original, written = os.replace, []

    def full_at_the_state(source, target):
        written.append(target)
        return full() if str(target).endswith("training.safetensors") else original(source, target)

    monkeypatch.setattr("os.rename", full_at_the_state)  # of Path.replace, too
    monkeypatch.setattr("os.replace", full_at_the_state)
    with pytest.raises(GemmaError, match=r"training\.safetensors: could not be written .*; the file before is whole"):
        training_state.save_state(tmp_path / "run", state, tiny.gemma(), TRAINING, {})
    after = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    assert after.keys() == before.keys()
    assert after["training.safetensors"] == before["training.safetensors"]


def damage_state(folder, change):
    """Write the state of a run again, after `change` was made to its tensors and its metadata."""
    path = folder / "training.safetensors"
    tensors = load_file(path)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    change(tensors, metadata)
    save_file(tensors, path, metadata)


NORM = "weights/model.norm.weight"


def test_a_finished_run_mends_its_checkpoint(tmp_path):
    run(tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    whole = flip_last_bit(path)
    run(tmp_path / "run", resume=True)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t[NORM].view(np.uint32).__setitem__(0, t[NORM].view(np.uint32)[0] ^ 1), f"{NORM}: damaged"),
        (lambda t, m: t.update({NORM: t[NORM][:-1]}), rf"{NORM}: \(\d+,\), expected the shape"),
        (lambda t, m: t.pop(NORM), f"{NORM}: missing, expected the shape"),
        (lambda t, m: t.pop("v/model.norm.weight"), "v/model.norm.weight: missing"),
        (lambda t, m: t.update({NORM: t[NORM].astype(np.float64)}), f"{NORM}: dtype F64, expected one of F32"),
        (lambda t, m: m.update(step="1.5"), "step: 1.5, expected a whole number"),
        (lambda t, m: m.update(step="7"), "metadata: damaged .wrong checksum"),
        (lambda t, m: m.update(step="null"), "step: null, expected a whole number"),
        (lambda t, m: m.pop("generator"), "generator: null, expected a JSON object"),
        (
            lambda t, m: m.update(generator=m["generator"].replace("PCG64", "MT19937")),
            "bit_generator: .*expected 'PCG64'",
        ),
        (lambda t, m: m.update(generator=m["generator"].replace('"inc": ', '"inc": 1')), "inc|metadata"),
        (lambda t, m: m.update(checksums="{}"), "metadata: damaged"),
        (lambda t, m: m.clear(), "step: null, expected a whole number"),
    ],
)
def test_a_damaged_state_is_refused_and_the_one_before_offered(change, message, tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "run")
    damage_state(tmp_path / "run", change)
    offer = r"; training-previous\.safetensors, of step \d+, is whole: rename it to continue there$"
    with pytest.raises(GemmaError, match=rf"training\.safetensors: .*({message}).*{offer}"):
        run(tmp_path / "run", resume=True)
    (tmp_path / "run" / "training-previous.safetensors").rename(tmp_path / "run" / "training.safetensors")
    again = run(tmp_path / "run", resume=True)
    assert all((again[name] == weight).all() for name, weight in whole.items())


def test_without_a_state_before_nothing_is_offered(tmp_path):
    run(tmp_path / "run")
    path = tmp_path / "run" / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    (tmp_path / "run" / "training-previous.safetensors").write_bytes(b"damaged, too")
    with pytest.raises(GemmaError, match=r"training\.safetensors: damaged .*expected a complete safetensors file$"):
        run(tmp_path / "run", resume=True)


def test_a_lost_state_is_told_from_a_run_that_never_began(tmp_path):
    run(tmp_path / "run")
    (tmp_path / "run" / "training.safetensors").unlink()
    with pytest.raises(GemmaError, match=r"No such file.*; training-previous\.safetensors, of step \d+, is whole"):
        run(tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: 0, expected 1 or more"),
        ({"learning_rate": -1.0}, "learning_rate: -1.0, expected"),
        ({"learning_rate": float("nan")}, "learning_rate: nan"),
        ({"warmup_steps": -1}, "warmup_steps: -1, expected 0 or more"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(GemmaError, match=message):
        replace(TRAINING, **change)


# Data


def test_the_split_is_by_document(tmp_path):
    texts = [f"Document {letter} says {letter * 9}." for letter in "abcdefgh"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    tokens = tokenize_files(text_files(tmp_path), tiny.tokenizer(), val_fraction=0.25, seed=0)
    decoded = {}
    for name in ("train", "validation"):
        ids = tokens[name]
        cuts = np.flatnonzero(ids == tiny.tokenizer().bos)
        assert cuts[0] == 0
        decoded[name] = {tiny.tokenizer().decode(part.tolist()) for part in np.split(ids, cuts[1:])}
    assert len(decoded["train"]) == 6
    assert len(decoded["validation"]) == 2
    assert decoded["train"] | decoded["validation"] == set(texts)


def test_damaged_token_files_are_refused(tmp_path):
    tmp_path = tmp_path / "runs" / "new" / "data"  # none of these folders exists yet
    tokens = tokenize_texts(TOKENS, tiny.tokenizer(), tmp_path, val_fraction=0.2)
    assert np.concatenate(tokens).tolist() == TOKENS.tolist()
    path = tmp_path / "train.npy"
    good = path.read_bytes()

    def message():
        with pytest.raises(GemmaError) as error:
            tokenize_texts(TOKENS, tiny.tokenizer(), tmp_path, val_fraction=0.2, keep=True)
        return str(error.value)

    flip_last_bit(path)
    assert "train.npy: damaged (wrong checksum)" in message()
    path.write_bytes(good[:-4])
    assert "train.npy: damaged (" in message()
    np.save(path, np.ones(5))
    assert "train.npy: float64, expected unsigned integers" in message()
    np.save(path, np.array([{}]), allow_pickle=True)
    assert "train.npy: damaged (Array can't be memory-mapped" in message()
    path.unlink()
    assert "train.npy: No such file or directory, expected a token file" in message()
    path.write_bytes(good)
    (tmp_path / "origin.json").write_text("{")
    assert "origin.json: not JSON" in message()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, -1, 5], "ids: from -1 to 5, expected 0 to"),
        ([1, 2**40], "ids: from 1 to 1099511627776, expected 0 to"),
        ([[1, 2]], r"ids: int64 of shape \(1, 2\), expected integers in one row"),
        ([0.5], r"ids: float64 of shape \(1,\), expected integers"),
    ],
)
def test_arrays_that_are_no_ids(ids, message, tmp_path):
    with pytest.raises(GemmaError, match=message):
        tokenize_texts(np.array(ids), tiny.tokenizer(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_was_edited_is_another_text(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(tiny.TEXT, encoding="utf-8")
    tokenize_texts(tmp_path, tiny.tokenizer(), tmp_path / "data")
    (tmp_path / "a.txt").write_text(tiny.TEXT.swapcase(), encoding="utf-8")  # of the same length
    with pytest.raises(GemmaError, match=r"made with text=.*, but this run asks for"):
        tokenize_texts(tmp_path, tiny.tokenizer(), tmp_path / "data", keep=True)


def test_random_windows_are_windows_of_the_file():
    ids = random_windows(TOKENS, 5, 8, np.random.default_rng(0))
    windows = {tuple(TOKENS[start : start + 8]) for start in range(len(TOKENS) - 7)}
    assert ids.shape == (5, 8)
    assert {tuple(row) for row in ids.tolist()} <= windows


def test_the_last_window_of_a_file_can_be_drawn():
    assert (random_windows(TOKENS[:8], 3, 8, np.random.default_rng(0)) == TOKENS[:8]).all()


def test_validation_covers_the_file_once():
    batches = consecutive_batches(TOKENS[:31], batch_size=2, seq_len=7, limit=100)
    assert [batch.ids.shape for batch in batches] == [(2, 8), (2, 8)]
    assert (np.concatenate([batch.ids[:, 1:].ravel() for batch in batches]) == TOKENS[1:29]).all()


def test_the_validation_loss_of_uniform_predictions():
    weights = initial_weights(CONFIG, np.random.default_rng(0))
    weights["model.norm.weight"] -= 1  # 1 + w is zero, and so are all logits
    assert validation_loss(weights, CONFIG, text_task().validation, Ranks()) == pytest.approx(np.log(CONFIG.vocab_size))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["EMPTY", "--tokenizer", "TOKENIZER"], "no text, expected a file or a folder with .txt files"),
        (["SHORT", "--tokenizer", "TOKENIZER"], "documents: 1, expected at least 2 (1 to validate on)"),
        (["SHORT", "--tokenizer", "TOKENIZER", "--val-fraction", "0"], "10 tokens, expected more than seq_len=128"),
        (["SHORT"], "expected --tokenizer to train from scratch"),
        (["SHORT", "--tokenizer", "no-such-file"], "no-such-file: No such file or directory, expected a tokenizer"),
        (
            ["SHORT", "--tokenizer", "TOKENIZER", "--seq-len", "300"],
            "seq_len: 300, expected at most the model's context",
        ),
        (["SHORT", "--tokenizer", "TOKENIZER", "--kv-heads", "3"], "num_attention_heads: 4, expected a multiple"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.txt").write_text("Too short.")
    (tmp_path / "tokenizer.model").write_bytes(tiny.vocabulary())
    paths = {"EMPTY": tmp_path / "empty", "SHORT": tmp_path / "short", "TOKENIZER": tmp_path / "tokenizer.model"}
    arguments = [str(paths.get(argument, argument)) for argument in arguments]
    assert main(["train", *arguments, "-o", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


# An output folder that exists


@pytest.fixture
def finished(tmp_path):
    """A finished run of the command line: its folder and its arguments."""
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text(tiny.TEXT, encoding="utf-8")
    (tmp_path / "tokenizer.model").write_bytes(tiny.vocabulary())
    small = "--hidden-size 8 --layers 2 --heads 2 --kv-heads 1 --head-dim 4 --intermediate-size 8 --sliding-window 4"
    short = "--context 16 --seq-len 16 --steps 3 --batch-size 2 --warmup-steps 1"
    arguments = ["train", str(tmp_path / "texts"), "--tokenizer", str(tmp_path / "tokenizer.model")]
    arguments += [*small.split(), *short.split(), "-o", str(tmp_path / "run")]
    assert main(arguments) == 0
    return tmp_path, arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val-fraction", "0.5"], "made with val_fraction=0.05, but this run asks for 0.5"),
        (["--seed", "1"], "made with seed=0, but this run asks for 1"),
        (["--tokenizer", "OTHER"], "made with tokenizer="),
        (["--learning-rate", "0.5"], "was started with learning_rate=0.001, but this run asks for 0.5"),
        (["--intermediate-size", "9"], "was started with intermediate_size=8, but this run asks for 9"),
    ],
)
def test_a_run_is_not_resumed_with_other_options(finished, options, message, capsys):
    folder, arguments = finished
    (folder / "other.model").write_bytes(train_tokenizer(tiny.TEXT.splitlines(), 540))
    before = {file.name: file.read_bytes() for file in (folder / "run").iterdir() if file.is_file()}
    options = [str(folder / "other.model") if option == "OTHER" else option for option in options]
    assert main([*arguments, "--resume", *options]) == 2
    assert message in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (folder / "run").iterdir() if file.is_file()} == before


def test_a_run_is_not_resumed_with_other_texts(finished, capsys):
    folder, arguments = finished
    (folder / "texts" / "3.txt").write_text("More of it.")
    assert main([*arguments, "--resume"]) == 2
    assert "made with documents=3, but this run asks for 4" in capsys.readouterr().err


def test_another_checkpoint_is_not_overwritten(finished, capsys):
    folder, arguments = finished
    tiny.gemma().save(folder / "other")
    before = (folder / "other" / "model.safetensors").read_bytes()
    for options in ([], ["--resume"]):
        assert main([*arguments[:-1], str(folder / "other"), *options]) == 2
        assert "other: holds a checkpoint already" in capsys.readouterr().err
    assert (folder / "other" / "model.safetensors").read_bytes() == before


def test_an_output_inside_a_file_is_refused_in_one_line(finished, capsys):
    folder, arguments = finished
    (folder / "file").touch()
    assert main([*arguments[:-1], str(folder / "file" / "run")]) == 2
    err = capsys.readouterr().err
    assert "Not a directory" in err
    assert err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(GemmaError, match=r"step 1: the result is not finite; first in model\."):
        run(tmp_path / "run", replace(TRAINING, learning_rate=1e39, warmup_steps=0, save_every=1))
    assert not (tmp_path / "run" / "training.safetensors").exists()
