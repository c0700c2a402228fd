"""Load a Gemma checkpoint and use it: generate text, chat, trace, measure perplexity."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from gemma_np.checkpoints.config_json import read_config
from gemma_np.checkpoints.gguf import config_from_metadata, load_gguf
from gemma_np.checkpoints.gguf_file import read_gguf
from gemma_np.checkpoints.hub import download
from gemma_np.checkpoints.huggingface import load_folder
from gemma_np.checkpoints.saving import save_folder
from gemma_np.config import RELEASED, GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.evaluation.perplexity import TextLoss, sliding_losses
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.scope import Record
from gemma_np.text.chat import chat_ids
from gemma_np.text.generation import generate_ids
from gemma_np.text.sampling import Sampling
from gemma_np.text.speculation import Acceptance, speculative_ids
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.weights.formats import Weights, dequantize

ASSETS = Path(__file__).parent / "assets"

BUNDLED_MODELS = {
    "shakespeare-1m": "writes Shakespeare; distilled from shakespeare-4m and its twin",
    "shakespeare-1m-scratch": "its twin, trained on the same batches without a teacher",
    "shakespeare-4m": "its teacher, trained on Bibles and Shakespeare",
    "shakespeare-chat": "shakespeare-1m, fine-tuned to reply",
    "shakespeare-gemma1": "a Gemma 1 that writes Shakespeare",
    "shakespeare-gemma3": "a Gemma 3 that writes Shakespeare",
}
"""The models that come with the package, and what they are."""

BUNDLED = {name: ASSETS / name for name in BUNDLED_MODELS}
"""Their folders."""

DEFAULT = "shakespeare-1m"
DEFAULT_CHAT = "shakespeare-chat"

DTYPES = ("auto", "stored", "float32", "float64")

_IMAGE_ROWS = (0, 64)  # the multimodal Gemma 3 checkpoints have 64 more rows than text needs

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load(name_or_path: str | Path = DEFAULT, dtype: str = "auto") -> "Gemma":
    """Load a model: a Hugging Face folder, a .gguf file, a hub id such as google/gemma-2-2b-it, or a bundled model.

    dtype: "auto" keeps the matrices of a quantized checkpoint as they are stored, and reads others as float32; "stored"
    always keeps matrices of 16 bits, which takes half the memory and is slower; "float32" dequantizes; "float64" does,
    too, to measure the rounding error of float32.

    Raises GemmaError for an unknown dtype, and when the checkpoint is missing, damaged or does not match its config.

        >>> gemma_np.load().generate("To be", max_new_tokens=20)
        >>> gemma_np.load("google/gemma-2-2b").generate("The capital of France is", max_new_tokens=8)
    """
    if dtype not in DTYPES:
        raise GemmaError(f"dtype: {dtype!r}, expected one of {', '.join(DTYPES)}")
    path = resolve_checkpoint(name_or_path)
    config, weights, tokenizer_model = (load_gguf if path.is_file() else load_folder)(path, dtype)
    try:
        tokenizer = Tokenizer(tokenizer_model) if tokenizer_model is not None else None
    except GemmaError as error:
        raise GemmaError(f"{path}: {error}") from None
    if tokenizer and config.vocab_size - len(tokenizer) not in _IMAGE_ROWS:
        raise GemmaError(f"{path}: tokenizer of {len(tokenizer)} pieces, expected vocab_size={config.vocab_size}")
    return Gemma(config, weights, tokenizer, path if path.is_dir() else None)


def resolve_checkpoint(name_or_path: str | Path) -> Path:
    """Return the checkpoint folder or .gguf file that a name or path stands for; download it if it is a hub id.

    Raises GemmaError when it is none of them.
    """
    path = BUNDLED.get(str(name_or_path), Path(name_or_path))
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.exists():
        raise GemmaError(f"{path}: a file, expected a .gguf file, a checkpoint folder or a hub id")
    if str(name_or_path) in RELEASED:
        raise GemmaError(f"{path}: no such folder or file (gemma-np models lists the hub id of {path})")
    if not _HUB_ID.fullmatch(str(name_or_path)):
        raise GemmaError(f"{path}: no such folder or file (a hub id looks like google/gemma-2-2b-it)")
    return download(str(name_or_path))


def resolve_config(name_or_path: str | Path) -> GemmaConfig:
    """Return the config of a checkpoint without loading its weights; released names, as gemma-2-2b, need no file."""
    released = re.sub(r"^google/|-(it|pt)$", "", str(name_or_path))
    if released in RELEASED and not Path(name_or_path).exists():
        return RELEASED[released]
    path = resolve_checkpoint(name_or_path)
    return config_from_metadata(read_gguf(path).metadata) if path.is_file() else read_config(path / "config.json")


@dataclass
class Gemma:
    """A loaded model. Without a tokenizer in its checkpoint, `tokenizer` is None and the model takes token ids only."""

    config: GemmaConfig
    weights: Weights
    tokenizer: Tokenizer | None
    source: Path | None = None  # the folder that it was loaded from

    def logits(self, ids: ArrayLike) -> np.ndarray:
        """Return the logits of the next token at each position.

        ids [..., T] -> [..., T, V]
        """
        return lm_head(transformer(ids, self.weights, self.config), self.weights, self.config)

    def trace(self, ids: ArrayLike) -> dict[str, np.ndarray]:
        """Return every intermediate of ids [..., T] by name, in the order of execution.

        `gemma_np.model.records` has the table of names and shapes.
        """
        record = Record()
        x = transformer(ids, self.weights, self.config, tape=record)
        lm_head(x, self.weights, self.config, record)
        return record

    def generate(self, prompt: str | Sequence[int], max_new_tokens: int = 128, **options: Any) -> str:
        """Generate text after a prompt, which is a text or token ids.

        The options are those of `stream_ids`. Raises GemmaError for an empty prompt, and when there is no tokenizer.
        """
        return "".join(self.stream(prompt, max_new_tokens, **options))

    def stream(self, prompt: str | Sequence[int], max_new_tokens: int = 128, **options: Any) -> Iterator[str]:
        """Yield the text of `generate` piece by piece. Raises GemmaError, when called, as `generate` does."""
        tokenizer = self.require_tokenizer()
        if isinstance(prompt, str):
            if not prompt:
                raise GemmaError("prompt: empty, expected some text")
            prompt = tokenizer.encode(prompt)
        return tokenizer.decode_stream(self.stream_ids(prompt, max_new_tokens, **options))

    def stream_ids(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        int8_cache: bool = False,
        draft: "Draft | None" = None,
        draft_tokens: int | None = None,
        acceptance: Acceptance | None = None,
    ) -> Iterator[int]:
        """Generate token ids after those of the prompt; this needs no tokenizer.

        `Sampling` explains temperature, top_k and top_p; the same seed gives the same tokens. int8_cache: keep keys and
        values in 8 bits.

        draft: decode speculatively, from the same distribution: a `Draft` proposes `draft_tokens` tokens at once (see
        `speculation.py`); acceptance: counts those that are accepted.

        Raises GemmaError, when called, as `generate_ids` does, and for a draft of another vocabulary.
        """
        prompt, stop = list(prompt), self.tokenizer.ends if self.tokenizer else ()
        sampling, generator = Sampling(temperature, top_k, top_p), np.random.default_rng(seed)
        if draft is None:
            return generate_ids(
                prompt,
                self.weights,
                self.config,
                lambda logits: sampling.choose(logits, generator),
                max_new_tokens,
                stop=stop,
                int8_cache=int8_cache,
            )
        return speculative_ids(
            prompt,
            self.weights,
            self.config,
            self.resolve_draft(draft),
            max_new_tokens,
            sampling=sampling,
            generator=generator,
            draft_tokens=draft_tokens,
            stop=stop,
            int8_cache=int8_cache,
            acceptance=acceptance,
        )

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> str:
        """Generate the model's answer to a conversation: [{"role": "user", "content": "Hello"}, ...].

        `chat_ids` describes the messages, `stream_ids` the options. By default the answer has at most 512
        tokens, or as many as the context has room for.
        """
        return "".join(self.stream_chat(messages, max_new_tokens, **options))

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Yield the answer of `chat` piece by piece."""
        ids = chat_ids(messages, self.require_tokenizer())
        if max_new_tokens is None:
            max_new_tokens = max(1, min(512, self.config.max_position_embeddings - len(ids)))
        return self.stream(ids, max_new_tokens, **options)

    def perplexity(self, text: str) -> float:
        """Return exp of the mean negative log-likelihood per token of a text; see `text_loss`."""
        return self.text_loss(text).perplexity

    def text_loss(self, text: str, context: int | None = None, stride: int | None = None) -> TextLoss:
        """Measure the loss on a text, as perplexity, bits per token and bits per byte.

        A text longer than `context` tokens is read through windows that move by `stride` (see `sliding_losses`).
        Raises GemmaError for an empty text, and when the loss is not finite.
        """
        tokenizer = self.require_tokenizer()
        ids = tokenizer.encode(text, bos=False)
        if not ids:
            raise GemmaError("text: empty, expected at least one token")
        losses = sliding_losses(ids, tokenizer.bos, self.weights, self.config, context=context, stride=stride)
        nats = float(losses.sum())
        if not np.isfinite(nats):
            raise GemmaError(f"perplexity: {nats}, expected a finite number (are the weights damaged?)")
        return TextLoss(nats, len(ids), len(text.encode()))

    def dequantized(self) -> "Gemma":
        """Return the same model with every weight as a plain array, to train it or to quantize it again."""
        return replace(self, weights={name: dequantize(weight) for name, weight in self.weights.items()})

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint folder that `load` and transformers read; other files of `source` are kept.

        Raises GemmaError when the folder is not empty.
        """
        save_folder(Path(folder), self.config, self.weights.items(), self.tokenizer, source=self.source)

    def require_tokenizer(self) -> Tokenizer:
        """Return the tokenizer. Raises GemmaError when the checkpoint has none."""
        if self.tokenizer is None:
            raise GemmaError(
                "tokenizer.model: missing from the checkpoint, expected to read text (token ids work without)"
            )
        return self.tokenizer

    def resolve_draft(self, draft: "Draft") -> "Gemma | Literal['lookup']":
        """Return what proposes tokens to this model. Raises GemmaError when its vocabulary is another one."""
        if callable(draft):
            draft = draft(self)
        if draft == "lookup":
            return "lookup"
        if not isinstance(draft, Gemma):
            raise GemmaError(f"draft: {draft!r}, expected a model, a function that makes one, or 'lookup'")
        if (draft.tokenizer_model or b"") != (self.tokenizer_model or b""):
            raise GemmaError("draft: its tokenizer.model is not that of the model, expected the same vocabulary")
        if self.config.vocab_size - draft.config.vocab_size not in _IMAGE_ROWS:
            raise GemmaError(
                f"draft: vocab_size={draft.config.vocab_size}, expected {self.config.vocab_size} as in the model"
            )
        return draft

    @property
    def tokenizer_model(self) -> bytes | None:
        """Return the content of tokenizer.model, or None when the checkpoint has none."""
        return self.tokenizer.model if self.tokenizer else None


Draft = Gemma | Literal["lookup"] | Callable[[Gemma], Gemma]
"""What proposes tokens to a model: a smaller one of the same vocabulary; a function that makes it from the model, such
as `half_draft`; or "lookup", which copies what followed the last tokens when they occurred before."""
