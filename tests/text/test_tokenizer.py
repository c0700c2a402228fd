"""Text to ids and back, on a small vocabulary trained the way Gemma's was."""

import io

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from gemma_np import GemmaError
from gemma_np.text.tokenizer import BOS, END_OF_TURN, START_OF_TURN, Tokenizer, read_tokenizer
from tests.support import tiny

TOKENIZER = tiny.tokenizer()
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
pieces_and_text = st.lists(st.sampled_from([START_OF_TURN, END_OF_TURN, BOS, "<eos>", "<", "the ", "é"])).map("".join)


@given(texts)
def test_decoding_undoes_encoding(text):
    assert TOKENIZER.decode(TOKENIZER.encode_verbatim(text)) == text


@given(texts)
def test_ids_are_those_of_the_library(text):
    library = sentencepiece.SentencePieceProcessor(model_proto=tiny.vocabulary())
    assert TOKENIZER.encode(text, bos=False) == library.encode(text)
    assert TOKENIZER.decode(library.encode(text)) == library.decode(library.encode(text))


@pytest.mark.parametrize("text", ["The sea", "<bos>The sea"])
def test_bos_comes_exactly_once(text):
    ids = TOKENIZER.encode(text)
    assert ids[0] == TOKENIZER.bos == 2
    assert ids.count(2) == 1
    assert TOKENIZER.encode(text, bos=False) == ids[1:]


def test_a_control_piece_in_a_prompt_is_what_it_names():
    ids = TOKENIZER.encode(f"{START_OF_TURN}the{END_OF_TURN}<unused0>", bos=False)
    assert ids[0] == TOKENIZER.id(START_OF_TURN)
    assert ids[-2:] == [TOKENIZER.id(END_OF_TURN), TOKENIZER.id("<unused0>")]


def test_a_control_piece_that_the_vocabulary_lacks_is_text():
    assert TOKENIZER.decode(TOKENIZER.encode("<unused98>", bos=False)) == "<unused98>"


@given(pieces_and_text)
def test_verbatim_a_control_piece_is_text(text):
    ids = TOKENIZER.encode_verbatim(text)
    assert not set(ids) & {TOKENIZER.id(name) for name in (BOS, "<eos>", START_OF_TURN, END_OF_TURN)}
    assert TOKENIZER.decode(ids) == text


def test_control_pieces_are_left_out_of_the_text():
    ids = TOKENIZER.encode(f"{START_OF_TURN}the{END_OF_TURN}")
    assert TOKENIZER.decode([*ids, TOKENIZER.eos]) == "the"


@given(texts)
def test_a_stream_joins_to_the_text_and_never_shows_half_a_character(text):
    ids = TOKENIZER.encode_verbatim(text)
    parts = list(TOKENIZER.decode_stream(ids))
    assert len(parts) == len(ids) + 1
    assert "".join(parts) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


def test_an_emoji_of_four_bytes_comes_out_with_its_last():
    assert list(TOKENIZER.decode_stream(TOKENIZER.encode_verbatim("🙂"))) == ["", "", "", "🙂", ""]


def test_half_a_character_at_the_end_is_marked_once():
    assert list(TOKENIZER.decode_stream(TOKENIZER.encode_verbatim("🙂")[:2])) == ["", "", "\ufffd"]


def test_the_size_and_the_names():
    assert len(TOKENIZER) == 400
    assert "<bos>" in TOKENIZER
    assert "<nothing>" not in TOKENIZER
    assert TOKENIZER.piece(TOKENIZER.id("\n\n")) == "\n\n"


def test_a_piece_that_is_not_there():
    with pytest.raises(GemmaError, match="no piece '<nothing>' among 400"):
        TOKENIZER.id("<nothing>")


def test_what_is_no_model():
    with pytest.raises(GemmaError, match="5 bytes, expected a sentencepiece model"):
        Tokenizer(b"hello")


def test_a_model_without_bos():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.TEXT.splitlines()), model_writer=model, vocab_size=80, bos_id=-1, minloglevel=2
    )
    with pytest.raises(GemmaError, match="no piece '<bos>'"):
        Tokenizer(model.getvalue())


def test_a_model_that_changes_spaces():
    model = sentencepiece_model_pb2.ModelProto.FromString(tiny.vocabulary())
    model.normalizer_spec.add_dummy_prefix = True
    with pytest.raises(GemmaError, match=r"turns ' a  b ' into .*, expected that it keeps all spaces"):
        Tokenizer(model.SerializeToString())


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"hello")
    with pytest.raises(GemmaError, match=r"tokenizer\.model: tokenizer: 5 bytes, expected a sentencepiece model"):
        read_tokenizer(tmp_path / "tokenizer.model")
