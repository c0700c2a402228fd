"""Load a Gemma checkpoint and use it: generate text, chat, trace, measure perplexity."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from inspect import Parameter, signature
from itertools import chain
from pathlib import Path
from typing import Any, Literal, overload

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
from gemma_np.mpi import Ranks
from gemma_np.scope import Record, Tape, no_tape
from gemma_np.text.batch import generate_batch
from gemma_np.text.chat import chat_ids
from gemma_np.text.generation import OnToken, generate_ids
from gemma_np.text.logprobs import Completion, TokenLogprob, token_logprob
from gemma_np.text.sampling import Sampling
from gemma_np.text.speculation import Acceptance, speculative_ids
from gemma_np.text.stop_strings import before_stop, stop_strings
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.weights.formats import Weights, dequantize

ASSETS = Path(__file__).parent / "assets"

BUNDLED_MODELS = {
    "shakespeare-1m": "writes Shakespeare; distilled from shakespeare-4m and -1m-scratch",
    "shakespeare-1m-scratch": "the same, trained on the same batches without a teacher",
    "shakespeare-4m": "a larger one, trained on Bibles and Shakespeare",
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
        near = "".join(f"; did you mean {name}?" for name in get_close_matches(str(name_or_path), BUNDLED, 1))
        raise GemmaError(f"{path}: no such folder or file (a hub id looks like google/gemma-2-2b-it){near}")
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

    def __repr__(self) -> str:
        """Return one line; the weights would be a megabyte of numbers."""
        count = sum(self.config.parameter_count().values())
        where = f", from {self.source}" if self.source else ""
        return f"<Gemma: {self.config.model_type}, {count:,} parameters, {self.config.num_hidden_layers} layers{where}>"

    def logits(self, ids: ArrayLike, tape: Tape = no_tape) -> np.ndarray:
        """Return the logits of the next token at each position; a tape sees, and may replace, every intermediate.

        ids [..., T] -> [..., T, V]
        """
        return lm_head(transformer(ids, self.weights, self.config, tape=tape), self.weights, self.config, tape)

    def trace(self, ids: ArrayLike, only: str = "*", tape: Tape = no_tape) -> dict[str, np.ndarray]:
        """Return the intermediates of ids [..., T] by name, in the order of execution, as a tape leaves them.

        only: a pattern of names, such as "layers.*.self_attn.probs"; others are not kept. `gemma_np.model.records` has
        the table of names and shapes.

        Raises GemmaError when no name matches the pattern.
        """
        record = Record()

        def keep(name: str, value: np.ndarray) -> np.ndarray:
            value = tape(name, value)
            return record(name, value) if fnmatchcase(name, only) else value

        self.logits(ids, keep)
        if not record:
            raise GemmaError(f"only: {only!r} matches no record, expected a pattern of names as in gemma-np records")
        return record

    @overload
    def generate(
        self, prompt: str | Sequence[int], max_new_tokens: int = 128, *, logprobs: None = None, **options: Any
    ) -> str: ...

    @overload
    def generate(
        self, prompt: str | Sequence[int], max_new_tokens: int = 128, *, logprobs: int, **options: Any
    ) -> Completion: ...

    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], max_new_tokens: int = 128, *, logprobs: None = None, **options: Any
    ) -> list[str]: ...

    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], max_new_tokens: int = 128, *, logprobs: int, **options: Any
    ) -> list[Completion]: ...

    def generate(
        self, prompt: Any, max_new_tokens: int = 128, *, logprobs: int | None = None, **options: Any
    ) -> str | Completion | list[str] | list[Completion]:
        """Generate text after a prompt, which is a text or token ids, or after each prompt of a list, side by side.

        The options are those of `stream` and `stream_ids`; for a list, of `stream` and `generate_batch_ids`. With
        `logprobs` the result is a `Completion`: the text, the log-probability of each of its tokens, and the `logprobs`
        most likely tokens in its place.

        Raises GemmaError for an empty prompt, and when there is no tokenizer.
        """
        if not isinstance(prompt, str) and any(isinstance(part, Sequence | np.ndarray) for part in prompt):
            _check_options("generate() with several prompts", options, Gemma.stream, Gemma.generate_batch_ids)
            return self._generate_batch(prompt, max_new_tokens, logprobs, **options)
        _check_options("generate()", options)
        if logprobs is None:
            return "".join(self.stream(prompt, max_new_tokens, **options))
        tokenizer, tokens = self.require_tokenizer(), list[TokenLogprob]()

        def on_token(id: int, logits: np.ndarray) -> None:
            tokens.append(token_logprob(id, logits, logprobs, tokenizer))

        return Completion("".join(self.stream(prompt, max_new_tokens, on_token=on_token, **options)), tokens)

    def _generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int,
        logprobs: int | None,
        *,
        stop: str | Sequence[str] = (),
        echo: bool = False,
        **options: Any,
    ) -> list[str] | list[Completion]:
        """Generate what `generate` does after each prompt."""
        tokenizer, stop, tokens = self.require_tokenizer(), stop_strings(stop), [list[TokenLogprob]() for _ in prompts]

        def on_token(number: int, id: int, logits: np.ndarray) -> None:
            if logprobs is not None:
                tokens[number].append(token_logprob(id, logits, logprobs, tokenizer))

        def complete(ids: Sequence[int]) -> bool:
            return any(string in tokenizer.decode(ids) for string in stop)

        prompt_ids = [self._prompt_ids(prompt) for prompt in prompts]
        written = self.generate_batch_ids(prompt_ids, max_new_tokens, on_token=on_token, complete=complete, **options)
        texts = ["".join(before_stop([tokenizer.decode(ids)], stop)) for ids in written]
        if echo:
            texts = [self._prompt_text(prompt) + text for prompt, text in zip(prompts, texts, strict=True)]
        return texts if logprobs is None else list(map(Completion, texts, tokens))

    def stream(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 128,
        *,
        stop: str | Sequence[str] = (),
        echo: bool = False,
        **options: Any,
    ) -> Iterator[str]:
        """Yield the text of `generate` piece by piece; the options are those of `stream_ids`.

        stop: end before the first of these texts, also where it begins or ends within a token. echo: the prompt comes
        first.

        Raises GemmaError, when called, as `generate` does, and for a stop text that is empty.
        """
        _check_options("stream()", options)
        ids = self.stream_ids(self._prompt_ids(prompt), max_new_tokens, **options)
        pieces = before_stop(self.require_tokenizer().decode_stream(ids), stop_strings(stop))
        return chain([self._prompt_text(prompt)], pieces) if echo else pieces

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        tokenizer = self.require_tokenizer()
        if not isinstance(prompt, str):
            return list(prompt)
        if not prompt:
            raise GemmaError("prompt: empty, expected some text")
        return tokenizer.encode(prompt)

    def _prompt_text(self, prompt: str | Sequence[int]) -> str:
        return prompt if isinstance(prompt, str) else self.require_tokenizer().decode(prompt)

    def stream_ids(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        ignore_eos: bool = False,
        int8_cache: bool = False,
        on_token: OnToken | None = None,
        tape: Tape = no_tape,
        draft: "Draft | None" = None,
        draft_tokens: int | None = None,
        acceptance: Acceptance | None = None,
    ) -> Iterator[int]:
        """Generate token ids after those of the prompt; this needs no tokenizer.

        `Sampling` explains temperature, top_k, top_p, min_p and repetition_penalty; the same seed gives the same
        tokens. ignore_eos: go on after `<eos>` and `<end_of_turn>`. `generate_ids` explains int8_cache, on_token, tape.

        draft: decode speculatively, from the same distribution: a `Draft` proposes `draft_tokens` tokens at once (see
        `speculation.py`); acceptance: counts those that are accepted.

        Raises GemmaError, when called, as `generate_ids` does, for a draft of another vocabulary, and for a tape beside
        a draft.
        """
        prompt, stop = list(prompt), self.tokenizer.ends if self.tokenizer and not ignore_eos else ()
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        if draft is None:
            return generate_ids(
                prompt,
                self.weights,
                self.config,
                sampling.chooser(prompt, seed),
                max_new_tokens,
                stop=stop,
                int8_cache=int8_cache,
                on_token=on_token,
                tape=tape,
            )
        if tape is not no_tape:
            raise GemmaError("tape: given beside a draft, expected one of the two")
        return speculative_ids(
            prompt,
            self.weights,
            self.config,
            self.resolve_draft(draft),
            max_new_tokens,
            sampling=sampling,
            generator=np.random.default_rng(seed),
            draft_tokens=draft_tokens,
            stop=stop,
            int8_cache=int8_cache,
            on_token=on_token,
            acceptance=acceptance,
        )

    def generate_batch_ids(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        ignore_eos: bool = False,
        int8_cache: bool = False,
        on_token: Callable[[int, int, np.ndarray], None] | None = None,
        complete: Callable[[Sequence[int]], bool] | None = None,
    ) -> list[list[int]]:
        """Generate token ids after those of each prompt, as `stream_ids` does after it alone with the same options.

        The prompts may have any lengths. In float64 the ids are those of each prompt alone; in float32 the logits
        differ from them by rounding. `generate_batch` explains on_token and complete.

        Raises GemmaError as `stream_ids` does.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        return generate_batch(
            prompts,
            self.weights,
            self.config,
            [sampling.chooser(prompt, seed) for prompt in prompts],
            max_new_tokens,
            stop=self.tokenizer.ends if self.tokenizer and not ignore_eos else (),
            int8_cache=int8_cache,
            on_token=on_token,
            complete=complete,
        )

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> str:
        """Generate the model's answer to a conversation: [{"role": "user", "content": "Hello"}, ...].

        `chat_ids` describes the messages, `stream` and `stream_ids` the options. By default the answer has at most 512
        tokens, or as many as the context has room for.
        """
        _check_options("chat()", options)
        return "".join(self.stream_chat(messages, max_new_tokens, **options))

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Yield the answer of `chat` piece by piece."""
        _check_options("stream_chat()", options)
        ids = chat_ids(messages, self.require_tokenizer())
        if max_new_tokens is None:
            max_new_tokens = max(1, min(512, self.config.max_position_embeddings - len(ids)))
        return self.stream(ids, max_new_tokens, **options)

    def perplexity(self, text: str) -> float:
        """Return exp of the mean negative log-likelihood per token of a text; see `text_loss`."""
        return self.text_loss(text).perplexity

    def text_loss(
        self, text: str, context: int | None = None, stride: int | None = None, ranks: Ranks | None = None
    ) -> TextLoss:
        """Measure the loss on a text, as perplexity, bits per token and bits per byte.

        A text longer than `context` tokens is read through windows that move by `stride` (see `sliding_losses`); ranks
        share them.
        Raises GemmaError for an empty text, and when the loss is not finite.
        """
        tokenizer = self.require_tokenizer()
        ids = tokenizer.encode(text, bos=False)
        if not ids:
            raise GemmaError("text: empty, expected at least one token")
        losses = sliding_losses(
            ids, tokenizer.bos, self.weights, self.config, context=context, stride=stride, ranks=ranks
        )
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


def _check_options(caller: str, options: Mapping[str, Any], *takers: Callable[..., Any]) -> None:
    """Raise TypeError, in the name of the function that was called, for an option that none of these functions has.

    takers: by default those that take the options of one text.
    """
    takers = takers or (Gemma.stream, Gemma.stream_ids)
    parameters = [parameter for taker in takers for parameter in signature(taker).parameters.values()]
    known = [parameter.name for parameter in parameters if parameter.kind is Parameter.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            near = "".join(f"; did you mean {other!r}?" for other in get_close_matches(name, known, 1))
            raise TypeError(f"Gemma.{caller} got an unexpected keyword argument {name!r}{near}")
