"""What the cards of the bundled models show: samples, the loss on a held-out play, and the curve of the training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from plots import save

from gemma_np import Gemma
from gemma_np.training.losses import reverse_kl
from gemma_np.training.run_log import read_log

Curves = dict[str, list[list[tuple[int, float]]]]
"""kind -> for each run: pairs of tokens and loss."""

PROMPT = "To be, or not to be"
REPLY_TOKENS = 96
LINES = (
    "Good morrow, my lord.",
    "Who is there?",
    "What news from the battle?",
    "Do you love me?",
    "I am weary of this world.",
    "Where is the king?",
    "Give me thy hand, and swear it.",
    "Thou art a villain!",
    "Hello, how are you today?",
    "What is the capital of France?",
)


def continuations(model: Gemma) -> str:
    """Return ten continuations of one prompt, with the seeds 1 to 10, for a card."""
    texts = [model.generate(PROMPT, 60, temperature=0.7, seed=seed) for seed in range(1, 11)]
    return "\n".join(f"Seed {seed}:\n\n```\n{PROMPT}{text}\n```\n" for seed, text in enumerate(texts, start=1))


def replies(model: Gemma) -> str:
    """Return the replies to ten lines, with the seeds 1 to 10, for a card."""
    texts = [
        model.chat([{"role": "user", "content": line}], temperature=0.7, seed=seed)
        for seed, line in enumerate(LINES, start=1)
    ]
    return "\n".join(f"```\n> {line}\n{text}\n```\n" for line, text in zip(LINES, texts, strict=True))


def own_replies_measured(model: Gemma, teacher: Gemma, prompts: Sequence[list[int]]) -> str:
    """Return how far a model is from its teacher on its own replies to prompts, and how many end, for a card."""
    divergences, ended = [], 0
    for seed, prompt in enumerate(prompts):
        reply = list(model.stream_ids(prompt, REPLY_TOKENS, temperature=1.0, seed=seed))
        ended += len(reply) < REPLY_TOKENS
        ids = np.array(prompt + reply)
        losses, _ = reverse_kl(model.logits(ids)[len(prompt) - 1 :], teacher.logits(ids)[len(prompt) - 1 :])
        divergences.append(losses)
    mean = np.concatenate(divergences).mean()
    return f"reverse KL {mean:.3f} nats per token, {ended} of {len(prompts)} replies end within {REPLY_TOKENS} tokens"


def loss_on(model: Gemma, play: str) -> str:
    """Return the loss on a play, for a card."""
    loss = model.text_loss(play)
    return f"{np.log(loss.perplexity):.3f} nats per token, {loss.bits_per_byte:.3f} bits per byte"


def curves(kinds: Mapping[str, Sequence[Path]], tokens_per_step: int) -> Curves:
    """Return the losses on held-out plays that the logs of runs have, over the tokens of training."""
    return {
        kind: [
            [(entry["step"] * tokens_per_step, entry["val_loss"]) for entry in read_log(folder) if "val_loss" in entry]
            for folder in folders
        ]
        for kind, folders in kinds.items()
    }


def plot_curves(kinds: Curves, path: Path) -> None:
    """Plot losses over tokens, a line for each run, a colour for each kind."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (kind, runs) in enumerate(kinds.items()):
        for run in runs:
            tokens, losses = np.array(run).T
            label = kind if run is runs[0] else None
            axes.plot(tokens / 1e6, losses, "o-", markersize=3, color=f"C{number}", label=label)
    axes.set(xlabel="tokens of training (millions)", ylabel="loss on unread plays (nats per token)")
    axes.legend(frameon=False)
    save(figure, axes, path)
