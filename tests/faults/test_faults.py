"""Faults of the disk and killed processes: some operations of every command (all of them: python -m tests.faults)."""

import sys

import pytest

if sys.platform != "linux":
    pytest.skip("the faults are injected by Linux's means", allow_module_level=True)

from tests.faults.checks import Case
from tests.faults.commands import COMMANDS
from tests.faults.injection import FAULTS


@pytest.fixture(scope="module", params=COMMANDS)
def case(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("faults"))  # and back afterwards
        yield Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("fault", FAULTS)
def test_an_operation_that_fails(case, fault):
    count = len(case.operations)
    for number in sorted({1, count // 3 or 1, 2 * count // 3 or 1, count}):
        case.check_fault(fault, number)


def test_a_full_disk(case):
    for size in (1000, 3000, 100_000):
        case.check_full_disk(size)


def test_random_kills(case):
    case.check_random_kills(4, seed=0)
