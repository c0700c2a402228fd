"""A tokenizer of one's own: the special pieces in Gemma's places, and its way with digits, spaces and bytes."""

import pytest

from gemma_np import GemmaError
from gemma_np.cli import main
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.training.tokenizer_training import SPECIAL_PIECES, train_tokenizer
from tests.support import tiny


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train_tokenizer(tiny.TEXT.splitlines(), 540))


def test_special_pieces_stand_where_gemma_has_them(tokenizer):
    names = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "<unused0>": 7, "<unused98>": 105}
    names |= {"<start_of_turn>": 106, "<end_of_turn>": 107, "\n": 108, "\n\n": 109, "\u2581\u2581": 138, "<table>": 168}
    names |= {"<0x00>": len(SPECIAL_PIECES), "<0xFF>": len(SPECIAL_PIECES) + 255}
    assert {name: tokenizer.id(name) for name in names} == names
    assert len(tokenizer) == 540


def test_digits_stand_alone_and_spaces_stay(tokenizer):
    assert [tokenizer.piece(id) for id in tokenizer.encode("1847", bos=False)] == list("1847")
    text = "  two   spaces\n\n\nand\tlines "
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_it_never_saw_is_spelled_in_bytes(tokenizer):
    ids = tokenizer.encode("鯨", bos=False)
    assert [tokenizer.piece(id) for id in ids] == ["<0xE9>", "<0xAF>", "<0xA8>"]


def test_the_same_text_gives_the_same_tokenizer(tokenizer):
    assert train_tokenizer(tiny.TEXT.splitlines(), 540) == tokenizer.model


@pytest.mark.parametrize(
    ("size", "message"), [(400, "vocabulary size: 400, expected at least"), (99_999, "Vocabulary size too high")]
)
def test_sizes_that_cannot_be(size, message):
    with pytest.raises(GemmaError, match=message):
        train_tokenizer(tiny.TEXT.splitlines(), size)


def test_the_command_line(tmp_path, tokenizer, capsys):
    (tmp_path / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    arguments = [
        "tokenizer",
        str(tmp_path / "text.txt"),
        "--size",
        "540",
        "-o",
        str(tmp_path / "t" / "tokenizer.model"),
    ]
    assert main(arguments) == 0
    assert (tmp_path / "t" / "tokenizer.model").read_bytes() == tokenizer.model
