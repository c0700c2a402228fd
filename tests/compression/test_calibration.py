"""Statistics of inputs."""

import numpy as np

from gemma_np.compression.calibration import INPUTS, channel_importance
from tests.support import tiny
from tests.support.strategies import random_ids


def test_the_power_of_an_input_is_its_mean_square():
    model = tiny.gemma()
    ids = random_ids(model.config, 0, 3, 10)
    traces = [model.trace(text) for text in ids]
    powers = channel_importance(model, ids)
    assert len(powers) == 7 * model.config.num_hidden_layers
    for number in range(model.config.num_hidden_layers):
        for matrix, record in INPUTS.items():
            inputs = np.concatenate([trace[f"layers.{number}.{record}"] for trace in traces])
            found = powers[f"model.layers.{number}.{matrix}"]
            assert found.shape == model.weights[f"model.layers.{number}.{matrix}"].shape[1:]
            np.testing.assert_allclose(found, np.square(inputs.astype(float)).mean(axis=0), rtol=1e-6)
