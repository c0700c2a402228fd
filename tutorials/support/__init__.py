"""What the tutorials need beside the package: exercises and a file that are checked, lines of the source, and plots."""

from support.check_file import check_file
from support.exercise import check
from support.source import lines

__all__ = ["check", "check_file", "lines"]
