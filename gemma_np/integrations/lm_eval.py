"""An adapter for lm-evaluation-harness (pip install "gemma-np[evaluation]").

The harness knows a model by name once its module has been imported, which `gemma-np lm-eval` does:

    gemma-np lm-eval --model gemma_np --model_args pretrained=google/gemma-2-2b --tasks mmlu --num_fewshot 5

All arguments after `gemma-np lm-eval` are passed to `lm_eval`. Tokenization, windows and truncation follow the
harness's own `hf` model.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gemma_np.errors import GemmaError, GemmaWarning
from gemma_np.evaluation.likelihood import Ids, Pair, likelihoods, read_sharing
from gemma_np.gemma import load
from gemma_np.mpi import Ranks
from gemma_np.progress import progress_bar
from gemma_np.text.batch import Text, extend_all
from gemma_np.text.chat import as_turns
from gemma_np.text.sampling import Sampling
from gemma_np.text.stop_strings import before_stop
from gemma_np.text.tokenizer import BOS, CONTROL_PIECE, END_OF_TURN, EOS, START_OF_TURN

_SPLIT = "\ufdd0"
"""Where `tok_encode` splits a text: a character that Unicode reserves for such uses. The chat template puts it into the
control pieces of a turn's content, so that they are read as text, as `chat_ids` reads them."""


@register_model("gemma_np")
class GemmaHarness(TemplateLM):  # type: ignore[misc]
    """A model for the harness; `pretrained` and `dtype` are the arguments of `gemma_np.load`.

    Raises GemmaError for a model without a tokenizer.
    """

    ranks = Ranks()
    """The processes that share the work. Each of them runs the whole harness on all requests."""

    def __init__(
        self,
        pretrained: str,
        dtype: str = "float32",
        max_length: int | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
        **ignored: Any,
    ) -> None:
        """ignored: arguments that the harness passes to every model, such as the batch size and the device."""
        super().__init__()
        self.model = load(pretrained, dtype)
        self.tokenizer = self.model.require_tokenizer()
        self.max_length = max_length or self.model.config.max_position_embeddings
        self.max_gen_toks = max_gen_toks
        self.seed = seed

    @property
    def eot_token_id(self) -> int:
        """Return the id of `<eos>`."""
        return self.tokenizer.id(EOS)

    @property
    def prefix_token_id(self) -> int:
        """Return the id of `<bos>`, the context of a text that has none."""
        return self.tokenizer.bos

    @property
    def tokenizer_name(self) -> str:
        """Return the tokenizer name for the harness's request cache."""
        return "gemma_np"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **ignored: Any) -> list[int]:
        """Encode a text, with one `<bos>` first unless `add_special_tokens` is False and the text has none."""
        first, *others = string.split(_SPLIT)
        ids = self.tokenizer.encode(first, bos=add_special_tokens is not False or first.startswith(BOS))
        for part in others:
            ids += self.tokenizer.encode(part, bos=False)
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Format a conversation for the instruction-tuned models; `tok_encode` gives it the ids of `chat_ids`."""
        turns = (
            f"{START_OF_TURN}{turn['role']}\n{_SPLIT}{_as_text(turn['content'])}" for turn in as_turns(chat_history)
        )
        text = BOS + f"{END_OF_TURN}\n".join(turns)
        return f"{text}{END_OF_TURN}\n{START_OF_TURN}model\n" if add_generation_prompt else text

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the name of the chat template, for the harness's records."""
        return "gemma" if chat_template else ""

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations in nats, without the harness's bar for their tokenization, which is quick."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **ignored: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitting(context, continuation) for _, context, continuation in requests]
        results = likelihoods(pairs, self.model.weights, self.model.config, self.ranks)
        for (strings, _, _), likelihood in zip(requests, results, strict=True):
            if strings is not None:
                self.cache_hook.add_partial("loglikelihood", strings, tuple(likelihood))
        return [(likelihood.log_prob, likelihood.is_greedy) for likelihood in results]

    def _fitting(self, context: list[int], continuation: list[int]) -> Pair:
        """Return the pair, with its context truncated on the left when the pair is too long."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise GemmaError(f"{len(continuation)} tokens to score, expected at most {self.max_length}")
        if len(context) > room:
            _warn(f"a context of {len(context)} tokens: only the last {room} are read")
        return Pair(tuple(context[-room:]), tuple(continuation))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return log P of whole texts, in nats, read in windows without overlap."""
        windows: list[Any] = []
        texts: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                texts.append(number)
        totals = [0.0] * len(requests)
        for number, (log_prob, _) in zip(texts, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += log_prob
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate text after each context, up to a stop string; prefixes that contexts share are read once.

        Raises GemmaError when the context length has no room for the new tokens.
        """
        limits = [normalize_gen_kwargs(request.args[1], self.max_gen_toks) for request in requests]
        by_context: dict[Ids, list[int]] = {}
        for number, limit in enumerate(limits):
            room = self.max_length - limit["max_gen_toks"]
            if room < 1:
                raise GemmaError(
                    f"max_gen_toks: {limit['max_gen_toks']}, expected less than the context length of {self.max_length}"
                )
            ids = self.tok_encode(requests[number].args[0])
            if len(ids) > room:
                _warn(f"a context of {len(ids)} tokens: only the last {room} are read")
            by_context.setdefault(tuple(ids[-room:]), []).append(number)
        contexts = self.ranks.share(sorted(by_context))
        written: dict[int, str] = {}
        longest = max((len(ids) for ids in by_context), default=0) + max((n["max_gen_toks"] for n in limits), default=1)
        longest = min(longest, self.model.config.max_position_embeddings)
        reading = read_sharing(contexts, longest, self.model.weights, self.model.config)

        def finish(number: int, text: str) -> None:
            written[number] = text
            self.cache_hook.add_partial("generate_until", requests[number].args, text)
            progress.update()

        texts = (
            Text(x, cache.repeated(), self._extend(limits[number], number, partial(finish, number)))
            for context, (x, cache) in zip(contexts, reading, strict=True)
            for number in by_context[context]
        )
        total = sum(len(by_context[context]) for context in contexts)
        with progress_bar(total=total, desc="writing", unit="texts", hide=disable_tqdm) as progress:
            extend_all(texts, self.model.weights, self.model.config)
        everything = {number: text for part in self.ranks.all_gather(written) for number, text in part.items()}
        return [everything[number] for number in range(len(requests))]

    def _extend(
        self, limit: Mapping[str, Any], number: int, finish: Callable[[str], None]
    ) -> Callable[[np.ndarray], int | None]:
        """Return what extends a text until its limit, and then calls `finish` with what was written."""
        stops = handle_stop_sequences(limit.get("until"), eos=EOS)
        sampling = Sampling(limit.get("temperature", 0.0), limit.get("top_k"), limit.get("top_p"))
        generator = np.random.default_rng([self.seed, number])  # the text does not depend on those beside it
        ids = list[int]()

        def extend(logits: np.ndarray) -> int | None:
            token = sampling.choose(logits, generator)
            ended = token in self.tokenizer.ends
            if not ended:
                ids.append(token)
            text = self.tokenizer.decode(ids)
            stopped = any(stop in text for stop in stops)
            if ended or stopped or len(ids) == limit["max_gen_toks"]:
                finish("".join(before_stop([text], stops)))
                return None
            return token

        return extend


def _as_text(content: str) -> str:
    """Split each control piece after its first character, as `Tokenizer.encode_verbatim` does, and nowhere else."""
    text = content.replace(_SPLIT, "").strip()
    return CONTROL_PIECE.sub(lambda piece: piece[0][0] + _SPLIT + piece[0][1:], text)


def _warn(message: str) -> None:
    warnings.warn(message, GemmaWarning, stacklevel=2)
