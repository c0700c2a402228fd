"""Train, fine-tune and distill Gemma: the public functions, most of them from `gemma_np.training.runs`."""

from gemma_np.mpi import mpi_ranks
from gemma_np.training.initial_model import new_model
from gemma_np.training.merging import merge
from gemma_np.training.runs import TrainingRun, cache_teacher, distill, distill_from_cache, fine_tune, train
from gemma_np.training.training_state import TrainingConfig

__all__ = [
    "TrainingConfig",
    "TrainingRun",
    "cache_teacher",
    "distill",
    "distill_from_cache",
    "fine_tune",
    "merge",
    "mpi_ranks",
    "new_model",
    "train",
]
