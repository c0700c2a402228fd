"""Share work between the processes (ranks) that `mpiexec` starts, on one machine or on several.

Training is data-parallel: all ranks hold the same weights and draw the same batches, each computes the gradients of its
share, and these are summed. In evaluation, each rank reads its share of the texts. Rank 0 alone writes and prints.
"""

import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.progress import quiet

_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")  # MPICH and Intel, Open MPI, Hydra


class Ranks:
    """The processes of this run: an MPI communicator, or None for a single process."""

    def __init__(self, communicator: Any = None) -> None:
        self.communicator = communicator
        self.rank: int = communicator.rank if communicator else 0
        self.size: int = communicator.size if communicator else 1

    def all_reduce(self, array: np.ndarray) -> None:
        """Sum an array [...] over all ranks, in place."""
        if self.communicator:
            from mpi4py import MPI

            self.communicator.Allreduce(MPI.IN_PLACE, array)

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of ranks, on every rank."""
        return self.communicator.allgather(value) if self.communicator else [value]

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return this rank's part of the items; together, the parts of all ranks are the items in their order."""
        return items[len(items) * self.rank // self.size : len(items) * (self.rank + 1) // self.size]

    def barrier(self) -> None:
        """Wait until every rank has reached this point."""
        if self.communicator:
            self.communicator.Barrier()


@contextmanager
def mpi_ranks() -> Iterator[Ranks]:
    """Yield the ranks that `mpiexec` started, or a single process.

    Each rank gets its share of the cores: two ranks with one BLAS thread each are faster than one rank with two. Rank 0
    alone shows progress and warnings. A rank that fails or is interrupted prints the reason and aborts the others,
    which would otherwise wait for it forever.

    Raises GemmaError when mpi4py is missing.
    """
    if not any(int(os.environ.get(name, 1)) > 1 for name in _SIZE_VARIABLES):
        yield Ranks()
        return
    try:
        from mpi4py import MPI
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise GemmaError(f'{error}; to run on several ranks, pip install "gemma-np[mpi]"') from None
    ranks = Ranks(MPI.COMM_WORLD)
    neighbours = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED).size
    cores = max(1, (os.cpu_count() or 1) // neighbours)
    try:
        with threadpool_limits(cores), _silence() if ranks.rank else nullcontext():
            yield ranks
    except BaseException as error:
        time.sleep(3 if ranks.rank else 0)  # what happens to all ranks is printed by rank 0 alone
        print(f"gemma-np: rank {ranks.rank} of {ranks.size}: {_reason(error)}", file=sys.stderr, flush=True)
        time.sleep(1)  # mpiexec forwards the line only while the rank is alive
        status = 130 if isinstance(error, KeyboardInterrupt) else 2
        MPI.COMM_WORLD.Abort(status)
        sys.exit(status)  # Abort may return before the process is ended


@contextmanager
def _silence() -> Iterator[None]:
    with quiet(), warnings.catch_warnings(action="ignore"):
        yield


def _reason(error: BaseException) -> str:
    if isinstance(error, Exception) and not isinstance(error, GemmaError):
        return traceback.format_exc()
    return str(error) or "stopped"  # by Ctrl-C or a signal
