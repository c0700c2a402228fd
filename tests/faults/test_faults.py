"""Faults of the disk and killed processes: some operations of every command (all of them: python -m tests.faults)."""

import itertools
import re
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("the faults are injected by Linux's means", allow_module_level=True)

from tests.faults.checks import Case
from tests.faults.commands import COMMANDS, CONTINUED
from tests.faults.injection import FAULTS


@pytest.fixture(scope="module", params=COMMANDS)
def case(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("faults"))  # and back afterwards
        yield Case(request.param, tmp_path_factory.mktemp(request.param))


def test_an_operation_that_fails(case):
    """The first operation of each kind on each file meets one of the faults; the last one meets all of them."""
    kinds = {}
    for number, operation in enumerate(case.operations, start=1):
        kinds.setdefault(re.sub(r"\.gemma_np\.\S+", "*", operation), number)
    faults = itertools.cycle(FAULTS)
    for number in kinds.values():
        case.check_fault(next(faults), number)
    for fault in FAULTS:
        case.check_fault(fault, len(case.operations))


def test_a_full_disk(case):
    for size in (0, 1000, 3000, case.largest - 100, case.largest):
        case.check_full_disk(size)


def test_random_kills(case):
    case.check_random_kills(4, seed=0)


@pytest.mark.parametrize("part", [0.7, 1])
@pytest.mark.parametrize("case", CONTINUED, indirect=True)
def test_a_flipped_bit(case, part):
    case.check_damage(12, seed=0, part=part)
