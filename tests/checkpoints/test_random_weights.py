"""Random checkpoints in the true shapes."""

import numpy as np
import pytest

import gemma_np
from gemma_np import GemmaError
from gemma_np.checkpoints.random_weights import KINDS, random_weights, save_sparse_folder
from gemma_np.checkpoints.saving import save_folder
from gemma_np.config import gemma2_config
from gemma_np.weights.formats import dequantize

CONFIG = gemma2_config(300, 64, 2, 4, 2, 32, 128, 64, 32, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_have_the_spread_of_fresh_ones(kind):
    for name, weight in random_weights(CONFIG, kind):
        wide = dequantize(weight)
        assert wide.shape == dict(CONFIG.weight_shapes())[name]
        if wide.ndim == 2:
            assert 0.8 < wide.std() * np.sqrt(wide.shape[1]) < 1.25, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_writes_tokens(kind, tmp_path):
    save_folder(tmp_path / "model", CONFIG, random_weights(CONFIG, kind), None)
    model = gemma_np.load(tmp_path / "model", "stored")
    assert len(list(model.stream_ids([2, 5], max_new_tokens=3))) == 3


def test_a_sparse_checkpoint_takes_no_room_and_is_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("gemma_np.checkpoints.random_weights._SPARSE_SHARD", 30_000)
    save_sparse_folder(tmp_path / "model", CONFIG)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 1
    assert sum(file.stat().st_blocks * 512 for file in files) < sum(file.stat().st_size for file in files)
    assert (gemma_np.load(tmp_path / "model", "stored").logits([2, 5]) == 0).all()
    with pytest.raises(GemmaError, match="exists, expected a new folder"):
        save_sparse_folder(tmp_path / "model", CONFIG)
