"""What the tutorials need beside the package: checks of exercises and files, lines of the source, plots, diagrams."""

from support.check_file import check_file
from support.exercise import check
from support.source import lines

__all__ = ["check", "check_file", "lines"]
