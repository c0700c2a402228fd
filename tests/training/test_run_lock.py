"""One run, one writer."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from gemma_np import GemmaError
from gemma_np.cli import main
from gemma_np.training.run_lock import run_lock
from tests.support import tiny

HOLD = """
import sys, time
from pathlib import Path
from gemma_np.training.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path / "run"."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_a_killed_one_releases_the_lock(holder, tmp_path):
    message = rf"run: in use by process {holder.pid} on .*, expected no other run in this folder"
    with pytest.raises(GemmaError, match=message), run_lock(tmp_path / "run"):
        pass
    holder.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()  # stale
    with run_lock(tmp_path / "run"):
        assert f"process {os.getpid()}" in (tmp_path / "run" / ".lock").read_text()
    assert not (tmp_path / "run").exists()


def test_what_was_written_stays(tmp_path):
    with run_lock(tmp_path / "a" / "run"):
        (tmp_path / "a" / "run" / "weights").touch()
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["weights"]


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(KeyError), run_lock(tmp_path / "run"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(GemmaError, match="run: File exists, expected a folder to write to"), run_lock(tmp_path / "run"):
        pass


def test_many_that_want_it_hold_it_one_at_a_time(tmp_path):
    holders, most, held = [], [], []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept").touch()

    def work():
        for _ in range(200):
            try:
                with run_lock(tmp_path / "run"):
                    holders.append(1)
                    most.append(len(holders))
                    held.append(1)
                    holders.pop()
            except GemmaError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(held) > 200


@pytest.mark.parametrize("command", ["train", "distill", "cache-teacher", "compress"])
def test_every_command_that_runs_long_locks_its_folder(command, holder, tmp_path, capsys):
    tiny.gemma().save(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for name in "abc":
        (tmp_path / "texts" / f"{name}.txt").write_text(tiny.TEXT, encoding="utf-8")
    model = {"train": ["--model"], "compress": ["--resume", "--model"]}.get(command, ["--teacher"])
    arguments = [command, str(tmp_path / "texts"), *model, str(tmp_path / "model"), "-o", str(tmp_path / "run")]
    assert main([*arguments, "--seq-len", "8"]) == 2
    assert f"run: in use by process {holder.pid}" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]
