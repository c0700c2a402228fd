"""Work on all cores."""

import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.threads import even_parts, on_all_cores


@pytest.mark.parametrize("cores", [None, 1, 2])
def test_work_is_shared_by_the_cores_and_one_core_starts_no_thread(cores, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    on = {}
    on_all_cores(lambda part: on.setdefault(part, threading.current_thread()), range(9))
    assert list(on) == list(range(9)) or cores == 2
    assert sorted(on) == list(range(9))
    assert all((thread is threading.main_thread()) == (part == 0 or cores != 2) for part, thread in on.items())


@pytest.mark.parametrize("wrong", [0, 3])
def test_an_error_on_any_core_is_raised(wrong):
    def work(part):
        if part == wrong:
            raise ValueError(f"part {part}")

    with pytest.raises(ValueError, match=f"part {wrong}"):
        on_all_cores(work, range(5))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    on_all_cores(lambda _: time.sleep(0.01), range(4))
    child = os.fork()
    if child == 0:
        on_all_cores(lambda _: time.sleep(0.01), range(4))
        os._exit(7)
    ended = time.monotonic() + 20
    while not (status := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < ended:
        time.sleep(0.01)
    if not status[0]:
        os.kill(child, 9)
    assert os.waitstatus_to_exitcode(status[1]) == 7


@given(st.integers(0, 50), st.integers(1, 60))
def test_even_parts(count, parts):
    found = even_parts(count, parts)
    assert [number for part in found for number in range(part.start, part.stop)] == list(range(count))
    sizes = {part.stop - part.start for part in found}
    assert len(found) == min(parts, count)
    assert not sizes or max(sizes) - min(sizes) <= 1
