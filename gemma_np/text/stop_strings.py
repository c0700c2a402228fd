"""End a text before the first stop string, wherever the borders of its tokens are."""

from collections.abc import Iterable, Iterator, Sequence

from gemma_np.errors import GemmaError


def stop_strings(stop: str | Sequence[str]) -> list[str]:
    """Return one stop string, or several, as a list. Raises GemmaError when one is empty or no text."""
    strings = [stop] if isinstance(stop, str) else list(stop)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise GemmaError(f"stop: {string!r}, expected a text that is not empty")
    return strings


def before_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield the pieces of a text up to the first stop string; an end that may be the start of one is held back."""
    held = ""
    for piece in pieces:
        held += piece
        found = [held.index(string) for string in stop if string in held]
        if found:
            yield held[: min(found)]
            return
        safe = len(held) - max((_start_at_end(held, string) for string in stop), default=0)
        yield held[:safe]
        held = held[safe:]
    if held:
        yield held


def _start_at_end(text: str, string: str) -> int:
    """Return how many characters at the end of a text are the start of a string."""
    return next(n for n in range(min(len(text), len(string)), -1, -1) if text.endswith(string[:n]))
