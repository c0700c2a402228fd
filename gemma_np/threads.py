"""Work on all cores in threads: NumPy releases the interpreter lock while it computes."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any


def on_all_cores(work: Callable[[Any], object], parts: Sequence[Any]) -> None:
    """Call `work` on each part, in threads if there are several cores: NumPy releases the interpreter lock."""
    if len(parts) == 1 or os.cpu_count() in (1, None):
        for part in parts:
            work(part)
    else:
        others = [_threads().submit(work, part) for part in parts[1:]]
        work(parts[0])
        for other in others:
            other.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="gemma_np")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a forked process has none of the threads


def even_parts(count: int, parts: int) -> list[slice]:
    """Split a range into parts that differ by one at most; none is empty."""
    parts = min(parts, count)
    return [slice(count * part // parts, count * (part + 1) // parts) for part in range(parts)]
