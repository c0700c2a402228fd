"""Files and folders are written whole or not at all, whatever happens meanwhile."""

import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_np import GemmaError
from gemma_np.checkpoints.atomic_write import atomic_write, write_content


def write_two(path):
    (path / "a").write_text("A")
    (path / "b").mkdir()
    (path / "b" / "c").write_text("C")


def test_a_file_is_written_and_replaced(tmp_path):
    for text in ("one", "two"):
        atomic_write(tmp_path / "x", lambda path, text=text: path.write_text(text))
        assert (tmp_path / "x").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_is_written_with_its_parents(tmp_path):
    atomic_write(tmp_path / "deep" / "er", write_two, as_folder=True)
    assert (tmp_path / "deep" / "er" / "b" / "c").read_text() == "C"
    (tmp_path / "empty").mkdir()
    atomic_write(tmp_path / "empty", write_two, as_folder=True)
    with pytest.raises(GemmaError, match="empty: exists, expected a new folder"):
        atomic_write(tmp_path / "empty", write_two, as_folder=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit(143), ZeroDivisionError, GemmaError("no")])
@pytest.mark.parametrize("as_folder", [False, True])
def test_what_fails_leaves_nothing_and_changes_nothing(error, as_folder, tmp_path):
    def fail(path):
        (path / "half" if as_folder else path).write_text("half")
        raise error

    (tmp_path / "old").write_text("old")
    name = "new" if as_folder else "old"
    with pytest.raises(error if isinstance(error, type) else type(error)):
        atomic_write(tmp_path / name, fail, as_folder=as_folder)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old", "old")]


@pytest.mark.parametrize("function", ["fsync", "rename", "open"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_system_call_that_fails(function, exists, tmp_path, monkeypatch):
    if exists:
        (tmp_path / "x").write_text("old")
    before = [(path.name, path.read_text()) for path in tmp_path.iterdir()]

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        patch.setattr(os, "replace" if function == "rename" else function, fail)
        left = "the file before is whole" if exists else "nothing is left of it"
        with pytest.raises(GemmaError, match=rf"x: could not be written \(No space left on device\); {left}"):
            atomic_write(tmp_path / "x", lambda path: path.write_text("new"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == before


def test_files_and_their_folder_reach_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda file: events.append(Path(os.readlink(f"/proc/self/fd/{file}"))))
    atomic_write(tmp_path / "x", write_two, as_folder=True)
    *before, last = events
    assert {path.name for path in before if path.name in "abc"} == {"a", "b", "c"}
    assert all(".partial" in str(path) for path in before)
    assert last == tmp_path


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "x", lambda path: path.write_text("x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_a_link_at_the_name_of_the_unfinished_file_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda _: "0")
    name = f".gemma_np.{platform.node()}.{os.getpid()}.0.partial"
    (tmp_path / "secret").write_text("secret")
    (tmp_path / name).symlink_to(tmp_path / "secret")
    with pytest.raises(GemmaError, match=r"x: could not be written \(File exists\); nothing is left of it"):
        atomic_write(tmp_path / "x", lambda path: path.write_text("x"))
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "other").write_text("other")
    (tmp_path / "x").symlink_to(tmp_path / "other")
    atomic_write(tmp_path / "x", lambda path: path.write_text("x"))
    assert ((tmp_path / "other").read_text(), (tmp_path / "x").read_text()) == ("other", "x")


def test_leftovers_of_dead_processes_are_removed_and_no_others(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    host = platform.node()
    dead = [f".gemma_np.{host}.{process.pid}.{number}.partial" for number in ("a1", "b2")]
    kept = [f".gemma_np.{host}.{os.getpid()}.c3.partial", f".gemma_np.elsewhere.{process.pid}.d4.partial", ".partial"]
    (tmp_path / dead[0]).write_text("half")
    (tmp_path / dead[1]).mkdir()
    (tmp_path / dead[1] / "half").write_text("half")
    for name in kept:
        (tmp_path / name).write_text("half")
    atomic_write(tmp_path / "x", lambda path: path.write_text("x"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "x"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "a folder, expected a file to write"),
        ("", "a folder, expected a file to write"),
        ("gone/x", "the folder .*gone does not exist, expected a file in an existing folder"),
        ("pipe", "a pipe, expected a file to write"),
    ],
)
def test_what_is_no_file_to_write(name, message, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GemmaError, match=message):
        atomic_write(tmp_path / name, lambda path: path.write_text("x"))
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_an_error_names_the_target_and_not_the_unfinished_file(tmp_path):
    def fail(path):
        raise GemmaError(f"{path}: wrong")

    with pytest.raises(GemmaError, match=r"/x: wrong$"):
        atomic_write(tmp_path / "x", fail)


def test_a_file_with_this_content_is_left_alone(tmp_path):
    path = tmp_path / "config.json"
    write_content(path, b"one")
    before = path.stat().st_ino
    write_content(path, b"one")
    assert path.stat().st_ino == before
    write_content(path, b"other")
    assert path.read_bytes() == b"other"
    assert list(tmp_path.iterdir()) == [path]
