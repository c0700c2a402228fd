"""Distillation: train a student to match a teacher's distribution instead of the next token alone.

The teacher runs live (`from_teacher`), or its distributions were cached earlier (`teacher_targets.py`). The texts are
those of a dataset, or the student's own continuations (`on_policy`), so that it learns from its own mistakes.

Source: Gemma 2 report, section 3 (Knowledge Distillation), section 4 (on-policy), tables 6 and 7; Hinton et al., arXiv
1503.02531; Agarwal et al., arXiv 2306.13649 (on-policy).
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from gemma_np.checkpoints.checksum import checksum
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.text.drafts import Draft
from gemma_np.text.sampling import Sampling
from gemma_np.text.speculation import speculative_ids
from gemma_np.training.data import random_windows
from gemma_np.training.losses import jensen_shannon, reverse_kl, soft_cross_entropy
from gemma_np.training.task import Batch, Loss
from gemma_np.training.training_state import State, TrainingConfig

Divergence = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(student's logits, teacher's logits) [..., T, V] -> losses [..., T] and dlogits [..., T, V]."""

DIVERGENCES = ("cross-entropy", "reverse-kl", "jensen-shannon")


def choose_divergence(name: str, *, temperature: float = 1.0, beta: float = 0.5) -> Divergence:
    """Return one of `DIVERGENCES`; temperature: of the cross-entropy; beta: weight of the teacher in Jensen-Shannon.

    "cross-entropy" is -sum P_T log P_S: the forward KL divergence plus the teacher's entropy, which has no gradient.

    Raises GemmaError for another name, and for values out of range.
    """
    if name not in DIVERGENCES:
        raise GemmaError(f"divergence: {name!r}, expected one of {', '.join(DIVERGENCES)}")
    if not 0 < temperature < np.inf:
        raise GemmaError(f"temperature: {temperature}, expected more than 0")
    if not 0 < beta < 1:
        raise GemmaError(f"beta: {beta}, expected more than 0 and less than 1")
    if name == "cross-entropy":
        return partial(soft_cross_entropy, temperature=temperature)
    if temperature != 1:
        raise GemmaError(f"temperature: {temperature}, expected 1 for the divergence {name}")
    return reverse_kl if name == "reverse-kl" else partial(jensen_shannon, beta=beta)


def from_teacher(teacher: Gemma, divergence: Divergence = soft_cross_entropy) -> Loss:
    """Return the loss against a live teacher, which reads the same texts as the student.

    Distillation is training on a `Task` with this loss in place of `next_token`.
    """

    def loss(logits: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        return divergence(logits, teacher.logits(batch.ids[:, :-1]))

    return loss


def on_policy(
    tokens: np.ndarray,
    config: GemmaConfig,
    training_config: TrainingConfig,
    prompt_tokens: int,
    make_draft: Callable[[Mapping[str, np.ndarray]], Draft] | None = None,
) -> Callable[[State], Batch]:
    """Return the `next_batch` of a task that trains on the student's own continuations.

    Each text begins with `prompt_tokens` consecutive tokens from tokens [N]; the loss counts on the tokens after them.
    make_draft: makes a draft from the student's weights, for `sample_continuations`.

    Raises GemmaError when the prompt is longer than the texts of the training config.
    """
    if not 0 < prompt_tokens <= training_config.seq_len:
        raise GemmaError(f"prompt_tokens: {prompt_tokens}, expected 1 to seq_len={training_config.seq_len}")

    def next_batch(state: State) -> Batch:
        prompts = random_windows(tokens, training_config.batch_size, prompt_tokens, state.generator)
        draft = make_draft(state.weights) if make_draft else None
        length = training_config.seq_len + 1
        ids = sample_continuations(prompts, length, state.weights, config, state.generator, draft=draft)
        is_sampled = np.arange(1, training_config.seq_len + 1) >= prompt_tokens  # of each target
        return Batch(ids, np.broadcast_to(is_sampled, ids[:, 1:].shape))

    return next_batch


def sample_continuations(
    prompts: np.ndarray,
    length: int,
    weights: Mapping[str, np.ndarray],
    config: GemmaConfig,
    generator: np.random.Generator,
    *,
    draft: Draft | None = None,
) -> np.ndarray:
    """Continue prompts, sampling each token from the model's distribution.

    prompts [B, P] -> ids [B, length]. All of them are one batch; with a draft (see `speculation.py`) each is alone.
    """
    if draft is not None:
        config = replace(config, max_position_embeddings=length)  # the last token, which is not read, may be one more
        new, sampling = length - prompts.shape[-1], Sampling(temperature=1.0)
        texts = (
            speculative_ids(prompt, weights, config, draft, new, sampling=sampling, generator=generator)
            for prompt in prompts.tolist()
        )
        return np.concatenate([prompts, [list(text) for text in texts]], axis=-1)
    cache = KVCache(config, length - 1, prompts.shape[:-1], weights["model.norm.weight"].dtype)
    ids = unread = prompts
    while ids.shape[-1] < length:
        last = transformer(unread, weights, config, cache)[:, -1]
        logits = lm_head(last, weights, config)  # [B, V]
        # The argmax of logits plus Gumbel noise is a sample from their softmax.
        unread = (logits + generator.gumbel(size=logits.shape)).argmax(axis=-1)[:, None]
        ids = np.concatenate([ids, unread], axis=-1)
    return ids


def weights_digest(model: Gemma) -> int:
    """Return a number that identifies a model: a checksum of its config and of every tensor."""
    digest = zlib.crc32(repr(model.config).encode())
    for name, weight in sorted(model.weights.items()):
        arrays = [weight] if isinstance(weight, np.ndarray) else vars(weight).values()
        for array in arrays:
            value = (array.shape, checksum(array)) if isinstance(array, np.ndarray) else array
            digest = zlib.crc32(f"{name} {value}".encode(), digest)
    return digest


def check_same_vocabulary(teacher: Gemma, student: Gemma, of: str = "the student") -> None:
    """Check that teacher and student have the same vocabulary. Raises GemmaError when they do not."""
    if (teacher.tokenizer_model or b"") != (student.tokenizer_model or b""):
        raise GemmaError(f"teacher: its tokenizer.model is not that of {of}, expected the same vocabulary")
    if teacher.config.vocab_size != student.config.vocab_size:
        raise GemmaError(
            f"teacher: vocab_size={teacher.config.vocab_size}, expected {student.config.vocab_size} as in {of}"
        )
