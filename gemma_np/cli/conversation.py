"""The conversation of `gemma-np chat`: what was said, and the commands that change or save it."""

import json
from pathlib import Path

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.errors import GemmaError, quoted

HELP = "/system TEXT, /reset, /save FILE"


class Conversation:
    """A system message, and turns of the user and the model."""

    def __init__(self, system: str = "") -> None:
        self.system, self.turns = system, list[dict[str, str]]()

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return all messages, as `chat_ids` takes them."""
        return [{"role": "system", "content": self.system}, *self.turns] if self.system else self.turns

    def asked(self, text: str) -> list[dict[str, str]]:
        """Return all messages and a new turn of the user."""
        return [*self.messages, {"role": "user", "content": text}]

    def add(self, text: str, answer: str) -> None:
        """Add a turn of the user and the model's answer."""
        self.turns += [{"role": "user", "content": text}, {"role": "model", "content": answer}]

    def run(self, line: str) -> str:
        """Run a command of `HELP`, and return what it did. Raises GemmaError for another one, and as /save does."""
        command, _, argument = line.partition(" ")
        if command == "/system":
            self.system = argument.strip()
            return "system message: set" if self.system else "system message: none"
        if command == "/reset" and not argument:
            self.turns = []
            return "conversation: forgotten"
        if command == "/save" and argument:
            return self.save(Path(argument.strip()))
        raise GemmaError(f"{quoted(line)}: expected {HELP}; Ctrl-D ends the chat")

    def save(self, path: Path) -> str:
        """Write the messages to a .jsonl file that `gemma-np train` reads, and return what was done.

        Raises GemmaError when the file exists or cannot be written.
        """
        if path.exists():
            raise GemmaError(f"{path}: exists, expected a new file")
        line = json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n"
        atomic_write(path, lambda partial: partial.write_text(line, encoding="utf-8"))
        return f"{path}: {len(self.turns)} turns"
