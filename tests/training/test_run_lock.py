"""One run, one writer."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

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


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system opens what a link names")
def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("as it was")
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(GemmaError, match=r"run: .*, expected a folder to write to"), run_lock(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "as it was"


def test_the_lock_of_the_next_process_stays_when_the_one_before_is_released(tmp_path, monkeypatch):
    """The next process takes the lock at the moment at which the one before gives it away."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept").touch()
    close, begun = os.close, []

    def close_and_let_the_next_begin(descriptor):
        close(descriptor)
        if not begun:
            begun.append(run_lock(tmp_path / "run"))
            begun[0].__enter__()

    with run_lock(tmp_path / "run"):
        monkeypatch.setattr("os.close", close_and_let_the_next_begin)
    assert (tmp_path / "run" / ".lock").exists()
    begun[0].__exit__(None, None, None)


def test_a_folder_that_vanishes_is_created_again(tmp_path, monkeypatch):
    """Another process removes its empty folder before the lock in it is opened."""
    original, removed = os.open, []

    def open_once_removed(path, *rest):
        if not removed:
            removed.append(path.parent)
            path.parent.rmdir()
        return original(path, *rest)

    monkeypatch.setattr("os.open", open_once_removed)
    with run_lock(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").exists()
    assert removed


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not remove the folder that it works in")
def test_a_working_folder_that_was_removed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(GemmaError, match="run: No such file or directory"), run_lock(Path("run")):
        pass


def test_a_full_disk_does_not_keep_from_locking(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    refused = pytest.raises(GemmaError, match="in use by another process")
    with run_lock(tmp_path / "run"), refused, run_lock(tmp_path / "run"):
        pass


def test_many_that_want_it_hold_it_one_at_a_time(tmp_path):
    holders, most, held = [], [], []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept").touch()

    def work():
        times = 0
        while times < 100:
            try:
                with run_lock(tmp_path / "run"):
                    holders.append(1)
                    most.append(len(holders))
                    times += 1
                    held.append(1)
                    holders.pop()
            except GemmaError:
                time.sleep(0.0001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(held) == 400


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
