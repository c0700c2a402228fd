"""Define a mistake (a faulty function, what it replaces, which records show it, how to fix it) and inject it."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pkgutil import resolve_name
from typing import Any, NamedTuple

from gemma_np.config import GemmaConfig


class Mistake(NamedTuple):
    """One entry of the catalogue."""

    id: str
    instead: str  # what the wrong code does
    fix: str  # how to fix it
    right: Callable[..., Any]  # the function of the model that does it right
    faulty: Callable[..., Any]  # the function that makes the mistake
    replaces: tuple[str, ...]  # what `faulty` replaces: paths below `gemma_np`
    shows: tuple[str, ...]  # patterns of the records that are wrong even from right inputs
    models: tuple[str, ...]  # the model types to which it applies


GEMMA_2_AND_3 = ("gemma2", "gemma3_text")


def mistake(
    *,
    fix: str,
    right: Callable[..., Any],
    replaces: str | tuple[str, ...],
    shows: str | tuple[str, ...],
    models: tuple[str, ...] = ("gemma", "gemma2", "gemma3_text"),
) -> Callable[[Callable[..., Any]], Mistake]:
    """Return a decorator that turns a faulty function into a `Mistake`. The arguments are fields of `Mistake`.

    The id is the name of the function, and the first paragraph of its docstring says what it does instead.

    The faulty function takes the arguments of the function that it replaces; if it replaces a field of the config, only
    the config. `inject_mistakes` fills in its keyword-only parameters, of which there are three:

        original: the function that it replaces
        config: the config of the model
        lengths: the number of tokens in each pass
    """

    def decorate(faulty: Callable[..., Any]) -> Mistake:
        id, instead = faulty.__name__.replace("_", "-"), " ".join((faulty.__doc__ or "").split("\n\n")[0].split())
        return Mistake(id, instead.rstrip("."), fix, right, faulty, _tuple(replaces), _tuple(shows), models)

    return decorate


def _tuple(one_or_more: str | tuple[str, ...]) -> tuple[str, ...]:
    return (one_or_more,) if isinstance(one_or_more, str) else one_or_more


@contextmanager
def inject_mistakes(mistakes: Sequence[Mistake], config: GemmaConfig, lengths: Sequence[int]) -> Iterator[None]:
    """Inject mistakes into the model for the duration of a `with` block.

    config: that of the model to run; lengths: the number of tokens in each pass. When two mistakes replace the same
    function, the `original` of the later one is the earlier one.
    """
    with ExitStack() as stack:
        for mistake in mistakes:
            for path in mistake.replaces:
                stack.enter_context(_replaced(path, mistake.faulty, config=config, lengths=lengths))
        yield


@contextmanager
def _replaced(path: str, faulty: Callable[..., Any], **context: Any) -> Iterator[None]:
    """Replace a function of a module, or a method or field of the config, by its path below `gemma_np`."""
    owner_path, name = path.rsplit(".", 1)
    owner = resolve_name(f"gemma_np.{owner_path}")
    is_there = name in vars(owner)  # a field without a default is not an attribute of its class
    original = vars(owner).get(name)
    context["original"] = original
    filled_in = {parameter: context[parameter] for parameter in inspect.getfullargspec(faulty).kwonlyargs}

    def replacement(*arguments: Any) -> Any:
        return faulty(*arguments, **filled_in)

    is_field = name in getattr(owner, "__dataclass_fields__", ())
    setattr(owner, name, property(replacement) if is_field else replacement)
    try:
        yield
    finally:
        if is_there:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
