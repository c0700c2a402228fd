"""Distillation: the student learns from all that its teacher finds possible, not from the one token that came.

The teacher answers live (`from_teacher`), or answered before and was stored (`targets.py`). The texts are given ones,
or the student's own (`on_policy`), where it learns what to make of its own mistakes.

Source: Gemma 2 report, section 3 (Knowledge Distillation), tables 6 and 7, and section 4 for the student's own texts;
Hinton et al., arXiv 1503.02531; Agarwal et al., arXiv 2306.13649 (on-policy).
"""

import zlib
from collections.abc import Callable, Mapping

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.training.data import draw_ids
from gemma_np.training.losses import distillation
from gemma_np.training.task import Batch, Loss
from gemma_np.training.training_state import Recipe, State

Divergence = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(student's logits, teacher's logits) [..., T, V] -> losses [..., T] and dlogits [..., T, V]."""


def from_teacher(teacher: Gemma, divergence: Divergence = distillation) -> Loss:
    """The loss towards a live teacher: it reads the same texts as the student, and -sum P_T log P_S is minimised.

    A `Task` with it in place of `next_token`: that is all there is to distillation.
    """

    def loss(logits: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        return divergence(logits, teacher.logits(batch.ids[:, :-1]))

    return loss


def on_policy(tokens: np.ndarray, config: GemmaConfig, recipe: Recipe, prompt: int) -> Callable[[State], Batch]:
    """Draw texts that begin with `prompt` tokens of a token file [N] and go on in the student's own words. The loss
    counts where the student wrote.

    Raises GemmaError for a prompt that is not shorter than the recipe's texts.
    """
    if not 0 < prompt <= recipe.length:
        raise GemmaError(f"prompt: {prompt} tokens, expected 1 to the length of {recipe.length}")

    def draw(state: State) -> Batch:
        prompts = draw_ids(tokens, recipe.batch, prompt, state.generator)
        ids = sample_continuations(prompts, recipe.length + 1, state.weights, config, state.generator)
        written = np.arange(1, recipe.length + 1) >= prompt  # of each position, whether its target was written
        return Batch(ids, np.broadcast_to(written, ids[:, 1:].shape))

    return draw


def sample_continuations(
    prompts: np.ndarray,
    length: int,
    weights: Mapping[str, np.ndarray],
    config: GemmaConfig,
    generator: np.random.Generator,
) -> np.ndarray:
    """Continue all prompts at once, each token drawn from the model's distribution as it is.

    prompts [B, P] -> ids [B, length]
    """
    cache = KVCache(config, length - 1, prompts.shape[:-1], weights["model.norm.weight"].dtype)
    ids = unread = prompts
    while ids.shape[-1] < length:
        last = transformer(unread, weights, config, cache)[:, -1]
        logits = lm_head(last, weights, config)  # [B, V]
        # The largest of logits plus Gumbel noise is a draw from their softmax.
        unread = (logits + generator.gumbel(size=logits.shape)).argmax(axis=-1)[:, None]
        ids = np.concatenate([ids, unread], axis=-1)
    return ids


def weights_digest(teacher: Gemma) -> int:
    """A number that tells one teacher from another: of its final norm, which every step of training changes."""
    return zlib.crc32(teacher.weights["model.norm.weight"].tobytes())


def check_vocabularies(teacher: Gemma, student: Gemma) -> None:
    """Raise a GemmaError unless both read the same tokens: a distribution over other ones would teach nothing."""
    models = [gemma.tokenizer.model if gemma.tokenizer else b"" for gemma in (teacher, student)]
    if models[0] != models[1]:
        raise GemmaError("teacher: its tokenizer.model is another than the student's, expected the same vocabulary")
    if teacher.config.vocab_size != student.config.vocab_size:
        raise GemmaError(
            f"teacher: vocab_size={teacher.config.vocab_size}, expected {student.config.vocab_size} as the student's"
        )
