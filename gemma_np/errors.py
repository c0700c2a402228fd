"""The one exception of this package."""


class GemmaError(ValueError):
    """Bad input, in one line: the thing, what was found, what was expected."""
