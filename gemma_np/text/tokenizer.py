"""Encode text as token ids and decode it, with the sentencepiece library.

Source: Gemma 2 report, section 3 (SentencePiece with split digits, preserved whitespace and byte-level encodings)
and table 4 (the control pieces).
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from gemma_np.errors import GemmaError, quoted
from gemma_np.input_files import read_bytes

BOS, EOS, START_OF_TURN, END_OF_TURN = "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"

SPECIAL_TOKENS = {"bos": BOS, "eos": EOS, "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
"""The pieces with a special meaning, by the names that GGUF and transformers give to their meanings."""

CONTROL_PIECE = re.compile(
    r"<(?:bos|eos|pad|unk|mask|start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token|unused\d+)>"
    r"|\[multimodal\]"
)


class Tokenizer:
    """A sentencepiece model with Gemma's control pieces.

    Raises GemmaError when the bytes are not a sentencepiece model, when it has no `<bos>` or `<eos>`, and when it adds
    or removes spaces, as Gemma's does not.
    """

    def __init__(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model = model
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, UnicodeDecodeError):  # its message may have bytes of the model
            raise GemmaError(f"tokenizer: {len(model)} bytes, expected a sentencepiece model") from None
        self.bos, self.eos = self.id(BOS), self.id(EOS)
        normalized = self._processor.Normalize(" a  b ")
        if normalized != "\u2581a\u2581\u2581b\u2581":
            raise GemmaError(f"tokenizer: turns ' a  b ' into {normalized!r}, expected that it keeps all spaces")

    def __len__(self) -> int:
        """Return the number of pieces, V."""
        return self._processor.GetPieceSize()

    def __contains__(self, piece: str) -> bool:
        return self.piece(self._processor.PieceToId(piece)) == piece

    def id(self, piece: str) -> int:
        """Return the id of a piece. Raises GemmaError when the vocabulary does not have it."""
        if piece not in self:
            raise GemmaError(f"tokenizer: no piece {piece!r} among {len(self)}")
        return self._processor.PieceToId(piece)

    def piece(self, id: int) -> str:
        """Return the piece of an id; a space is written as U+2581. Raises GemmaError when it is damaged."""
        try:
            return self._processor.IdToPiece(id)
        except (UnicodeDecodeError, IndexError):
            raise GemmaError(f"tokenizer: piece {id} is damaged, expected a sound sentencepiece model") from None

    @property
    def ends(self) -> set[int]:
        """Return the ids that end a generation: `<eos>`, and `<end_of_turn>` when the vocabulary has it."""
        return {self.id(piece) for piece in (EOS, END_OF_TURN) if piece in self}

    @property
    def special(self) -> dict[str, str]:
        """Return those of `SPECIAL_TOKENS` that the vocabulary has."""
        return {meaning: piece for meaning, piece in SPECIAL_TOKENS.items() if piece in self}

    @property
    def turn_pieces(self) -> list[str]:
        """Return the pieces around the turns of a conversation; none when the vocabulary does not have both."""
        pieces = [START_OF_TURN, END_OF_TURN]
        return pieces if all(piece in self for piece in pieces) else []

    @cached_property
    def user_defined(self) -> set[str]:
        """Return the user-defined pieces of more than one character: those that stay whole when nothing is merged."""
        text = "\0".join(self.piece(id) for id in range(len(self)))
        unmerged = self._processor.SampleEncodeAsIds(text, nbest_size=-1, alpha=1.0)  # leaves out all merges
        return {self.piece(id) for id in set(unmerged) if len(self.piece(id)) > 1 and not self._processor.IsByte(id)}

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Encode a text; control pieces such as `<start_of_turn>` become control tokens.

        `<bos>` is put first exactly once, even if the text begins with it; `bos=False` leaves it out.

        Raises GemmaError for lone surrogates, which stand for bytes that are not UTF-8.
        """
        text = text.removeprefix(BOS)
        ids = [self.bos] if bos else []
        end = 0
        for match in CONTROL_PIECE.finditer(text):
            if match[0] in self:
                ids += [*self._encode(text[end : match.start()]), self.id(match[0])]
                end = match.end()
        return ids + self._encode(text[end:])

    def encode_verbatim(self, text: str) -> list[int]:
        """Encode a text without `<bos>`; control pieces in it are encoded as ordinary text.

        Control pieces are split after their first character, so that they encode as text and decode unchanged.

        Raises GemmaError for lone surrogates, which stand for bytes that are not UTF-8.
        """
        ids = []
        end = 0
        for match in CONTROL_PIECE.finditer(text):
            ids += self._encode(text[end : match.start() + 1])
            end = match.start() + 1
        return ids + self._encode(text[end:])

    def _encode(self, text: str) -> list[int]:
        try:
            content = text.encode()
        except UnicodeEncodeError as error:
            wrong = f"{quoted(text[error.start])} at character {error.start}"
            raise GemmaError(f"text: {wrong}, expected text that UTF-8 can encode") from None
        return self._processor.EncodeAsIds(content)

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text, without control pieces."""
        return "".join(self.decode_stream(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of each id as it arrives; the bytes of a character are held back until it is complete."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for id in ids:
            yield decoder.decode(self._bytes(id))
        yield decoder.decode(b"", final=True)

    def _bytes(self, id: int) -> bytes:
        piece = self.piece(id)
        if self._processor.IsByte(id):
            return bytes([int(piece[1:-1], 16)])  # <0x0A>
        if self._processor.IsControl(id) or CONTROL_PIECE.fullmatch(piece):
            return b""
        return piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def read_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer.model file. Raises GemmaError when it cannot be read."""
    model = read_bytes(Path(path), "a tokenizer.model file")
    try:
        return Tokenizer(model)
    except GemmaError as error:
        raise GemmaError(f"{path}: {error}") from None
