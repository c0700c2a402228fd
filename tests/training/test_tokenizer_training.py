"""Training a tokenizer: special pieces have Gemma's ids; digits, spaces and bytes are split as Gemma splits them."""

import pytest

from gemma_np import GemmaError
from gemma_np.cli import main
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.training.tokenizer_training import SPECIAL_PIECES, train_tokenizer
from tests.support import tiny


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train_tokenizer(tiny.TEXT.splitlines(), 540))


def test_special_pieces_have_gemmas_ids(tokenizer):
    names = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "<unused0>": 7, "<unused98>": 105}
    names |= {"<start_of_turn>": 106, "<end_of_turn>": 107, "\n": 108, "\n\n": 109, "\u2581\u2581": 138, "<table>": 168}
    names |= {"<0x00>": len(SPECIAL_PIECES), "<0xFF>": len(SPECIAL_PIECES) + 255}
    assert {name: tokenizer.id(name) for name in names} == names
    assert len(tokenizer) == 540


def test_digits_are_split_and_spaces_are_kept(tokenizer):
    assert [tokenizer.piece(id) for id in tokenizer.encode("1847", bos=False)] == list("1847")
    text = "  two   spaces\n\n\nand\tlines "
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unknown_characters_are_encoded_as_bytes(tokenizer):
    ids = tokenizer.encode("鯨", bos=False)
    assert [tokenizer.piece(id) for id in ids] == ["<0xE9>", "<0xAF>", "<0xA8>"]


def test_the_same_text_gives_the_same_tokenizer(tokenizer):
    assert train_tokenizer(tiny.TEXT.splitlines(), 540) == tokenizer.model


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (400, "vocab_size: 400, expected at least"),
        (480, r"vocab_size: 480, expected at least 5\d\d for .* the characters of the text"),
        (99_999, "Vocabulary size too high"),
    ],
)
def test_impossible_vocabulary_sizes_are_refused(size, message):
    with pytest.raises(GemmaError, match=message):
        train_tokenizer(tiny.TEXT.splitlines(), size)


def test_the_command_line(tmp_path, tokenizer, capsys):
    (tmp_path / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    (tmp_path / "t").mkdir()
    out = str(tmp_path / "t" / "tokenizer.model")
    assert main(["tokenizer", str(tmp_path / "text.txt"), "--vocab-size", "540", "-o", out]) == 0
    assert (tmp_path / "t" / "tokenizer.model").read_bytes() == tokenizer.model


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt(), GemmaError("a.txt: not UTF-8")])
def test_an_exception_while_the_lines_are_read_is_the_one_that_is_raised(error):
    def lines():
        yield "The first line."
        raise error

    with pytest.raises(type(error)) as raised:
        train_tokenizer(lines(), 540)
    assert raised.value is error
