"""Train a tokenizer with sentencepiece and the settings of Gemma's own.

Source: Gemma 2 report, section 3: SentencePiece with split digits, preserved whitespace, byte-level encodings; Gemma 1
report (arXiv 2403.08295), section 3.3. The special pieces have the same ids as in Gemma 1 and 2.
"""

import io
import re
from collections.abc import Iterable, Iterator

from gemma_np.errors import GemmaError

_LONGEST = 10_000  # characters of a line; longer ones are split
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_OPENING = ("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6", "blockquote")
_INLINE = ("strong", "em", "b", "i", "u", "s", "sub", "sup", "code")

SPECIAL_PIECES = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]"),  # 0 to 6
    *(f"<unused{number}>" for number in range(99)),  # 7 to 105
    *("<start_of_turn>", "<end_of_turn>"),  # 106 and 107
    *("\n" * length for length in range(1, 31)),  # 108 to 137
    *(_SPACE * length for length in range(2, 32)),  # 138 to 167
    *(f"<{slash}{tag}>" for tags in (_OPENING, _HEADINGS, _INLINE) for slash in ("", "/") for tag in tags),
)
"""The first pieces; 256 bytes follow, then the trained pieces."""


def train_tokenizer(lines: Iterable[str], vocab_size: int) -> bytes:
    """Train a tokenizer of `vocab_size` pieces on lines of text by byte-pair encoding; return its tokenizer.model.

    Raises GemmaError when there is too little text for so many pieces, or too few pieces for the special ones.
    """
    from sentencepiece import SentencePieceTrainer

    smallest = len(SPECIAL_PIECES) + 256 + 1
    if vocab_size < smallest:
        raise GemmaError(f"vocab_size: {vocab_size}, expected at least {smallest} for the special pieces and the bytes")
    model, interruptions = io.BytesIO(), list[BaseException]()

    def parts() -> Iterator[str]:
        try:
            yield from (part for line in lines for part in _short(line))
        except BaseException as error:
            interruptions.append(error)
            raise

    try:
        SentencePieceTrainer.train(
            sentence_iterator=parts(),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            eos_piece="<eos>",
            bos_piece="<bos>",
            unk_piece="<unk>",
            user_defined_symbols=list(SPECIAL_PIECES[4:]),  # sentencepiece would read a tuple as one name
            max_sentence_length=4 * _LONGEST,  # bytes; sentencepiece skips longer lines
            num_threads=1,  # with more threads the result is not reproducible
            minloglevel=2,
        )
    except RuntimeError as error:
        if interruptions:  # sentencepiece turns every exception of the iterator into one of its own
            raise interruptions[0] from None
        reason = str(error).rsplit("] ", 1)[-1] or "the text is empty"
        if needed := re.search(r"required_chars\. \d+ vs (\d+)", reason):
            purpose = "for the special pieces, the bytes and the characters of the text"
            raise GemmaError(f"vocab_size: {vocab_size}, expected at least {needed[1]} {purpose}") from None
        raise GemmaError(f"vocab_size: {vocab_size}: {reason}") from None
    return model.getvalue()


def _short(line: str) -> Iterator[str]:
    """Split a line into parts of at most 10,000 characters."""
    return (line[start : start + _LONGEST] for start in range(0, len(line), _LONGEST))
