"""Data-parallel training with MPI: each rank computes the gradients of its share of a batch; they are then summed.

`mpiexec -n 4 gemma-np train ...` starts a run on one machine or on several. All ranks hold the same weights and draw
the same batches, so only gradients and losses are exchanged. Rank 0 writes the files of the run.
"""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gemma_np.errors import GemmaError

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

    def barrier(self) -> None:
        """Wait until every rank has reached this point."""
        if self.communicator:
            self.communicator.Barrier()


@contextmanager
def mpi_ranks() -> Iterator[Ranks]:
    """Yield the ranks that `mpiexec` started, or a single process.

    Each rank gets its share of the cores: two ranks with one BLAS thread each are faster than one rank with two. A rank
    that fails prints the reason and aborts the others, which would otherwise wait for it forever.

    Raises GemmaError when mpi4py is missing.
    """
    if not any(int(os.environ.get(name, 1)) > 1 for name in _SIZE_VARIABLES):
        yield Ranks()
        return
    try:
        from mpi4py import MPI
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise GemmaError(f"{error}; to train on several ranks, pip install 'gemma-np[mpi]'") from None
    ranks = Ranks(MPI.COMM_WORLD)
    neighbours = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED).size
    try:
        with threadpool_limits(max(1, (os.cpu_count() or 1) // neighbours)):
            yield ranks
    except BaseException as error:
        time.sleep(3 if ranks.rank else 0)  # an error on all ranks is printed by rank 0 alone
        what = str(error) if isinstance(error, GemmaError) else traceback.format_exc()
        print(f"gemma-np: rank {ranks.rank} of {ranks.size}: {what}", file=sys.stderr, flush=True)
        time.sleep(1)  # mpiexec forwards the line only while the rank is alive
        MPI.COMM_WORLD.Abort(2)
