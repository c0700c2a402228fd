"""Every past failure stays mended, and a short burst of each target finds no new one."""

import pytest

from tests.fuzz.corpus import read_corpus
from tests.fuzz.every_target import EVERY_TARGET
from tests.fuzz.worker import Worker


@pytest.mark.parametrize("name", EVERY_TARGET)
def test_past_failures_stay_mended_and_a_burst_finds_none(name):
    target = EVERY_TARGET[name]
    cases = read_corpus(name) | {f"input {number}": target.case(0, number) for number in range(target.burst // 10)}
    with Worker(name) as worker:
        outcomes = {case: worker.run(cases[case]) for case in cases}
    assert {case: outcome.message for case, outcome in outcomes.items() if outcome.kind == "failed"} == {}
