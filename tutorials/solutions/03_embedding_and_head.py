"""Solutions of tutorial 3."""

import math

import numpy as np


def look_up(ids: np.ndarray, E: np.ndarray) -> np.ndarray:
    return E[ids] * math.sqrt(E.shape[1])


def score_all(x: np.ndarray, E: np.ndarray) -> np.ndarray:
    return x @ E.T
