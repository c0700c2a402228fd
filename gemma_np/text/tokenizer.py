"""Text to token ids and back, on the sentencepiece library.

Source: Gemma 2 report, section 3 (SentencePiece with split digits, preserved whitespace and byte-level encodings)
and table 4 (the control pieces).
"""

import codecs
import re
from collections.abc import Iterable, Iterator

from sentencepiece import SentencePieceProcessor

from gemma_np.errors import GemmaError

BOS, EOS, START_OF_TURN, END_OF_TURN = "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"

_CONTROL_PIECE = re.compile(
    r"<(?:bos|eos|pad|unk|mask|start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token|unused\d+)>"
    r"|\[multimodal\]"
)


class Tokenizer:
    """A sentencepiece vocabulary with Gemma's special pieces.

    Raises GemmaError when the bytes are no sentencepiece model, or when it lacks `<bos>` or `<eos>`.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise GemmaError(f"tokenizer: {len(model)} bytes that are no sentencepiece model") from None
        self.bos, self.eos = self.id(BOS), self.id(EOS)

    def __len__(self) -> int:
        """The number of pieces, V."""
        return self._processor.GetPieceSize()

    def __contains__(self, piece: str) -> bool:
        return self._processor.IdToPiece(self._processor.PieceToId(piece)) == piece

    def id(self, piece: str) -> int:
        """The id of a piece by its name. Raises GemmaError when the vocabulary has no such piece."""
        if piece not in self:
            raise GemmaError(f"tokenizer: no piece {piece!r} among {len(self)}")
        return self._processor.PieceToId(piece)

    def piece(self, id: int) -> str:
        """The name of a piece, with U+2581 for a space."""
        return self._processor.IdToPiece(id)

    @property
    def ends(self) -> set[int]:
        """The ids of the pieces that end what a model writes: `<eos>`, and `<end_of_turn>` where there is one."""
        return {self.id(piece) for piece in (EOS, END_OF_TURN) if piece in self}

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """The ids of a text in which control pieces, such as `<start_of_turn>`, count as what they name.

        `<bos>` comes first exactly once, whether the text begins with it or not; `bos=False` leaves it out.
        """
        text = text.removeprefix(BOS)
        ids = [self.bos] if bos else []
        end = 0
        for match in _CONTROL_PIECE.finditer(text):
            if match[0] in self:
                ids += [*self._processor.EncodeAsIds(text[end : match.start()]), self.id(match[0])]
                end = match.end()
        return ids + self._processor.EncodeAsIds(text[end:])

    def encode_verbatim(self, text: str) -> list[int]:
        """The ids of a text in which control pieces are nothing but text, without `<bos>`.

        A control piece is cut behind its first character: neither half names anything, and they decode to the same.
        """
        ids = []
        end = 0
        for match in _CONTROL_PIECE.finditer(text):
            ids += self._processor.EncodeAsIds(text[end : match.start() + 1])
            end = match.start() + 1
        return ids + self._processor.EncodeAsIds(text[end:])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; control pieces are left out."""
        return "".join(self.decode_stream(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of each id as it comes, never half a character: its bytes wait until the rest of it is there."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for id in ids:
            yield decoder.decode(self._bytes(id))
        yield decoder.decode(b"", final=True)

    def _bytes(self, id: int) -> bytes:
        piece = self.piece(id)
        if self._processor.IsByte(id):
            return bytes([int(piece[1:-1], 16)])  # <0x0A>
        if self._processor.IsControl(id) or _CONTROL_PIECE.fullmatch(piece):
            return b""
        return piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()
