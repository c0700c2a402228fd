"""Files from outside: only regular ones are read, and text is UTF-8."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.input_files import decode_utf8, read_bytes, read_text, require_file


def test_a_file_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"\x00\xff\r\n")
    assert read_bytes(tmp_path / "a", "bytes") == b"\x00\xff\r\n"
    assert require_file(tmp_path / "a") == 4
    assert read_bytes(tmp_path / "a", "bytes", limit=4) == b"\x00\xff\r\n"
    with pytest.raises(GemmaError, match="a: 4 bytes, expected bytes of at most 3"):
        read_bytes(tmp_path / "a", "bytes", limit=3)


@given(st.text())
def test_text_is_read_as_python_opens_it(text):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_bytes(text.encode())
        assert read_text(path) == path.read_text(encoding="utf-8")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GemmaError, match="pipe: a pipe, expected a text file in UTF-8"):
        read_text(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(GemmaError, match="link: a device, expected a file"):
        require_file(tmp_path / "link")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "a folder, expected a map"),
        ("gone", "gone: No such file or directory, expected a map"),
        ("file/inside", "Not a directory, expected a map"),
        ("x" * 300, "File name too long, expected a map"),
        ("null\0", "embedded null .*, expected a map"),
    ],
)
def test_what_is_no_file(tmp_path, name, message):
    (tmp_path / "file").touch()
    with pytest.raises(GemmaError, match=message):
        require_file(tmp_path / name, "a map")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ab\xffc", r"byte 0xff at position 2 is not UTF-8, expected text in UTF-8"),
        (b"\xed\xa0\x80", "byte 0xed at position 0"),  # a lone surrogate
        ("\u00e9".encode("latin-1"), "byte 0xe9 at position 0"),
        (b"abc\xe2\x82", "byte 0xe2 at position 3"),  # cut off
    ],
)
def test_bytes_that_are_not_utf8(content, message):
    with pytest.raises(GemmaError, match=message):
        decode_utf8(content, "a.txt")
