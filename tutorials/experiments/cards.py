"""What the cards of the bundled models show: samples, the loss on a held-out play, and the curve of the training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from plots import save

from gemma_np import Gemma
from gemma_np.training.run_log import read_log

PROMPT = "To be, or not to be"
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


def loss_on(model: Gemma, play: str) -> str:
    """Return the loss on a play, for a card."""
    loss = model.text_loss(play)
    return f"{np.log(loss.perplexity):.3f} nats per token, {loss.bits_per_byte:.3f} bits per byte"


def plot_curve(kinds: dict[str, Sequence[Path]], tokens_per_step: int, path: Path) -> None:
    """Plot the loss on held-out plays over the tokens of training, a line for each run, a colour for each kind."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (kind, folders) in enumerate(kinds.items()):
        for folder in folders:
            measured = [(entry["step"], entry["val_loss"]) for entry in read_log(folder) if "val_loss" in entry]
            measured_steps, losses = np.array(measured).T
            label = kind if folder == folders[0] else None
            axes.plot(
                measured_steps * tokens_per_step / 1e6, losses, "o-", markersize=3, color=f"C{number}", label=label
            )
    axes.set(xlabel="tokens of training (millions)", ylabel="loss on unread plays (nats per token)")
    axes.legend(frameon=False)
    save(figure, axes, path)
