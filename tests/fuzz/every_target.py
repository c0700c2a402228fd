"""All targets by name: the formats and the command line."""

from tests.fuzz.command_line import COMMAND_LINE
from tests.fuzz.targets import TARGETS

EVERY_TARGET = {target.name: target for target in [*TARGETS, COMMAND_LINE]}
