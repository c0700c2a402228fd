"""Random checkpoints in the true shapes."""

import numpy as np
import pytest

import gemma_np
from gemma_np import GemmaError
from gemma_np.checkpoints.random_weights import RANDOM_FORMATS, random_weights
from gemma_np.checkpoints.saving import save_folder, save_sparse_folder
from gemma_np.config import gemma2_config
from gemma_np.weights.formats import dequantize
from tests.support import tiny

CONFIG = gemma2_config(
    vocab_size=300,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=128,
    max_position_embeddings=64,
    query_pre_attn_scalar=32,
    sliding_window=16,
)


@pytest.mark.parametrize("format", RANDOM_FORMATS)
def test_matrices_have_the_spread_of_fresh_ones(format):
    for name, weight in random_weights(CONFIG, format):
        wide = dequantize(weight)
        assert wide.shape == dict(CONFIG.weight_shapes())[name]
        if wide.ndim == 2:
            assert 0.8 < wide.std() * np.sqrt(wide.shape[1]) < 1.25, name


@pytest.mark.parametrize("format", RANDOM_FORMATS)
def test_a_checkpoint_writes_tokens(format, tmp_path):
    save_folder(tmp_path / "model", CONFIG, random_weights(CONFIG, format), None)
    model = gemma_np.load(tmp_path / "model", "stored")
    assert len(list(model.stream_ids([2, 5], max_new_tokens=3))) == 3


def test_a_width_without_whole_groups_is_refused():
    model = tiny.config()
    assert dict(random_weights(model, "int8"))
    with pytest.raises(
        GemmaError, match=r"^model\.embed_tokens\.weight: 12 channels, expected a multiple of 64 for int4$"
    ):
        random_weights(model, "int4")


def test_a_sparse_checkpoint_takes_no_disk_space_and_is_a_model(tmp_path):
    save_sparse_folder(tmp_path / "model", CONFIG, shard_bytes=30_000)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 1
    assert sum(file.stat().st_blocks * 512 for file in files) < sum(file.stat().st_size for file in files)
    assert (gemma_np.load(tmp_path / "model", "stored").logits([2, 5]) == 0).all()
    with pytest.raises(GemmaError, match="exists, expected a new folder"):
        save_sparse_folder(tmp_path / "model", CONFIG)


def test_a_small_sparse_checkpoint_is_one_file(tmp_path):
    save_sparse_folder(tmp_path / "model", CONFIG)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
