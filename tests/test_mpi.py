"""Several ranks train and evaluate as one process does, and write and print once; when one fails, all end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from gemma_np.mpi import Ranks, mpi_ranks
from gemma_np.training.losses import TopK
from gemma_np.training.task import Batch
from tests.support import tiny

TASKS = Path(__file__).parent / "integrations/tasks"
QUESTIONS = Path(__file__).parents[1] / "tutorials/questions.jsonl"

SHAPE = "--hidden-size 12 --layers 2 --heads 2 --kv-heads 1 --head-dim 4 --intermediate-size 8 --sliding-window 4 "
SHAPE += "--context 16 --seq-len 16"
TRAINING = "--batch-size 4 --learning-rate 0.01 --warmup-steps 2 --save-every 5 --eval-every 5"


@given(st.integers(1, 5), st.integers(1, 9))
def test_the_shares_of_all_ranks_are_the_batch(size, texts):
    ids = np.arange(texts * 4).reshape(texts, 4)
    batch = Batch(ids, ids[:, 1:] % 3 > 0, TopK(ids[:, 1:, None], ids[:, 1:, None] / 99))
    shares = [batch.share(rank, size) for rank in range(size)]
    assert sum(share.num_targets for share in shares) == batch.num_targets
    assert sorted(np.concatenate([share.ids for share in shares]).tolist()) == ids.tolist()
    for share in shares:
        assert (share.teacher.ids[..., 0] == share.ids[:, 1:]).all()


def test_a_single_process_is_rank_0_of_1(monkeypatch):
    with mpi_ranks() as ranks:
        assert (ranks.rank, ranks.size) == (0, 1)
    array = np.ones(3)
    Ranks().all_reduce(array)
    Ranks().barrier()
    assert (array == 1).all()
    assert Ranks().all_gather("x") == ["x"]


@given(st.integers(1, 5), st.integers(0, 9))
def test_the_parts_of_all_ranks_are_the_items(size, count):
    ranks = [Ranks(SimpleNamespace(rank=rank, size=size)) for rank in range(size)]
    parts = [each.share(list(range(count))) for each in ranks]
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def mpiexec():
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    assert found, "mpiexec: not found, expected an MPI beside mpi4py"
    return found


def command(tmp_path, ranks, out, steps, options=""):
    texts = tmp_path / "texts"
    texts.mkdir(exist_ok=True)
    for number in range(3):
        (texts / f"{number}.txt").write_text(tiny.TEXT * 2, encoding="utf-8")
    (tmp_path / "tokenizer.model").write_bytes(tiny.vocabulary())
    run = [sys.executable, "-m", "gemma_np", "train", str(texts), "--tokenizer", str(tmp_path / "tokenizer.model")]
    run += ["-o", str(tmp_path / out), *SHAPE.split(), *TRAINING.split(), "--steps", str(steps), *options.split()]
    return [mpiexec(), "-n", str(ranks), *run]


@pytest.mark.mpi
@pytest.mark.parametrize("options", ["", "--grad-accum-steps 2"])
def test_two_ranks_that_share_a_batch_train_as_one_process(tmp_path, options):
    for ranks in (1, 2):
        arguments = command(tmp_path, ranks, f"of-{ranks}", 12, options)
        subprocess.run(arguments, check=True, capture_output=True, timeout=120)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("of-1", "of-2"))
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=2e-3 * np.abs(one[name]).max())
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("of-1", "of-2")
    ]
    assert len(logs[0]) == len(logs[1]) == 12
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert logs[0][-1]["val_loss"] == pytest.approx(logs[1][-1]["val_loss"], rel=1e-5)


@pytest.mark.mpi
def test_a_killed_rank_ends_the_run_and_leaves_a_whole_checkpoint(tmp_path):
    process = subprocess.Popen(command(tmp_path, 2, "run", 100_000), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "training.safetensors").exists():
        assert time.monotonic() < deadline, "no checkpoint after a minute"
        time.sleep(0.05)
    os.kill(ranks_of(tmp_path / "run")[-1], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"KILLED BY SIGNAL: 9" in out + err or b"EXIT CODE: 9" in out + err
    steps = len(log.read_text().splitlines())
    again = command(tmp_path, 2, "run", 100_000, "--resume")
    process = subprocess.Popen(again, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    while len(log.read_text().splitlines()) <= steps:
        assert time.monotonic() < deadline + 60, "the resumed run makes no progress"
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)


def ranks_of(folder):
    """The process ids of the ranks that write to a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if arguments[0] == sys.executable.encode() and str(folder).encode() in arguments:
                found.append(int(entry.name))
    return sorted(found)


@pytest.mark.mpi
def test_an_error_of_all_ranks_is_printed_once(tmp_path):
    arguments = command(tmp_path, 3, "run", 5, "--batch-size 2")
    done = subprocess.run(arguments, capture_output=True, timeout=120, text=True)
    assert done.returncode != 0
    assert done.stderr.count("batch_size: 2 texts for 3 ranks, expected at least one for each") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.mpi
def test_ctrl_c_says_how_to_go_on(tmp_path):
    process = subprocess.Popen(command(tmp_path, 2, "run", 100_000), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "training.safetensors").exists():
        assert time.monotonic() < deadline, "no checkpoint after a minute"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert err.count(b"run: stopped; add --resume to go on after step ") == 1
    assert b"Traceback" not in err


@pytest.mark.mpi
def test_a_command_that_does_not_share_its_work_refuses_several_ranks():
    arguments = [mpiexec(), "-n", "2", sys.executable, "-m", "gemma_np", "generate", "--max-new-tokens", "3", "To be"]
    done = subprocess.run(arguments, capture_output=True, timeout=120, text=True)
    assert done.returncode != 0
    assert done.stdout == ""
    message = "generate: 2 ranks, expected one process (without mpiexec): it does not share its work"
    assert done.stderr.count(message) == 1
    assert "bug" not in done.stderr


@pytest.mark.mpi
def test_rank_0_alone_says_what_was_written(tmp_path):
    done = subprocess.run(command(tmp_path, 2, "run", 2), capture_output=True, timeout=120, text=True)
    assert done.returncode == 0
    assert done.stderr.count("run: ") == 1
    assert re.search(r"run: [\d.]+ kB; after 2 steps, the loss is \d\.\d{3}, \d\.\d{3} in validation\n", done.stderr)


EVALUATIONS = {
    "perplexity": ["--context", "32", "--stride", "9", "TEXT"],
    "evaluate": ["--json", "QUESTIONS"],
    "evaluate --compare": ["--json", "--num-fewshot", "2", "QUESTIONS", "--compare", "MODEL", "MODEL"],
}


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "text").write_text(tiny.TEXT * 3, encoding="utf-8")
    questions = [{"question": f"Is {n} odd?", "choices": ["yes", "no", f"{n}"], "answer": n % 2} for n in range(9)]
    (tmp_path / "questions").write_text("".join(json.dumps(question) + "\n" for question in questions))
    tiny.gemma(max_position_embeddings=200).save(tmp_path / "model")
    return tmp_path


def run(ranks, *arguments, content=None):
    """Run gemma-np on several ranks, and return what it prints."""
    line = [mpiexec(), "-n", str(ranks), sys.executable, "-m", "gemma_np", *arguments]
    done = subprocess.run(line, capture_output=True, timeout=120, text=True, input=content)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.mpi
@pytest.mark.parametrize("name", EVALUATIONS)
def test_several_ranks_measure_what_one_does(inputs, name):
    arguments = [str(inputs / word.lower()) if word.isupper() else word for word in EVALUATIONS[name]]
    if "--compare" not in arguments:
        arguments += ["--model", str(inputs / "model")]
    one, two, three = (run(ranks, name.split()[0], *arguments) for ranks in (1, 2, 3))
    for other in (two, three):  # printed once, and equal to rounding
        assert re.split(NUMBER, other) == re.split(NUMBER, one)
        np.testing.assert_allclose(numbers(other), numbers(one), rtol=1e-5, atol=2e-5)


NUMBER = r"-?\d+\.?\d*(?:e-\d+)?"


def numbers(text):
    return [float(number) for number in re.findall(NUMBER, text)]


@pytest.mark.mpi
def test_every_rank_reads_the_standard_input_of_the_first(inputs):
    model = ["perplexity", "--context", "32", "--model", str(inputs / "model")]
    assert run(2, *model, "-", content=tiny.TEXT * 3) == run(1, *model, str(inputs / "text"))


@pytest.mark.mpi
@pytest.mark.evaluation
def test_the_harness_shares_its_work_and_prints_once(inputs):
    tasks = inputs / "tasks"
    tasks.mkdir()
    for name in ("questions", "stories"):
        text = (TASKS / f"{name}.yaml").read_text()
        text = text.replace("QUESTIONS", str(QUESTIONS)).replace("STORIES", str(TASKS / "stories.jsonl"))
        (tasks / f"{name}.yaml").write_text(text)
    arguments = ["lm-eval", "--model", "gemma_np", "--model_args", f"pretrained={inputs / 'model'}", "--limit", "6"]
    arguments += ["--tasks", "gemma_np_questions,gemma_np_stories", "--include_path", str(tasks)]
    one, two = run(1, *arguments), run(2, *arguments)
    assert "gemma_np_stories" in one
    assert one == two
