"""Time functions in turn, so that what disturbs one of them disturbs all."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def fastest(works: Sequence[Callable[[], Any]], budget: float = 4.0) -> list[float]:
    """Return the shortest time of each function, in seconds; they are called in turn until the budget is spent."""
    times: list[list[float]] = [[] for _ in works]
    end = time.perf_counter() + budget
    while not times[0] or time.perf_counter() < end:
        for work, taken in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


def typical(works: Mapping[Any, Callable[[], Any]], budget: float) -> dict[Any, float]:
    """Return the median time of each function, in seconds of the processor, which other programs disturb little.

    They are called in turn until the budget is spent. Each is called once more before it is timed, so that what it
    reads is as close to the processor as it can be.
    """
    times: dict[Any, list[float]] = {name: [] for name in works}
    end = time.process_time() + budget
    while time.process_time() < end:
        for name, work in works.items():
            work()
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
    return {name: float(np.median(taken)) for name, taken in times.items()}
