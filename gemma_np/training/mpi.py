"""Several processes that train one model: each learns from its share of every batch, and their gradients are added up.

Started by MPI, on one machine or on many: `mpiexec -n 4 gemma-np train ...`. All ranks hold the same weights and draw
the same batches, so that nothing but gradients and losses ever travels. Only rank 0 writes files.
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
    """The processes of this run: an MPI communicator, or none for a process that is alone."""

    def __init__(self, communicator: Any = None) -> None:
        self.communicator = communicator
        self.rank: int = communicator.rank if communicator else 0
        self.size: int = communicator.size if communicator else 1

    def all_reduce(self, array: np.ndarray) -> None:
        """Replace the array [...], in place, by its sum over all ranks."""
        if self.communicator:
            from mpi4py import MPI

            self.communicator.Allreduce(MPI.IN_PLACE, array)

    def barrier(self) -> None:
        """Go on when every rank has come here."""
        if self.communicator:
            self.communicator.Barrier()


@contextmanager
def mpi_ranks() -> Iterator[Ranks]:
    """The ranks that `mpiexec` started, or one process alone.

    Each gets its share of the cores: two ranks of one BLAS thread are faster than one of two. A rank that fails says
    why and ends the others, which would wait for it for ever.

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
        time.sleep(3 if ranks.rank else 0)  # what all ranks find wrong, rank 0 alone shall say
        what = str(error) if isinstance(error, GemmaError) else traceback.format_exc()
        print(f"gemma-np: rank {ranks.rank} of {ranks.size}: {what}", file=sys.stderr, flush=True)
        time.sleep(1)  # mpiexec passes the line on, but not after the end
        MPI.COMM_WORLD.Abort(2)
