"""The bundled models: they load, write Shakespeare, and are small."""

import io
from importlib import resources

import numpy as np
import pytest

import gemma_np
from gemma_np.cli import main
from gemma_np.gemma import BUNDLED, DEFAULT

ACT = """ROMEO.
But, soft! what light through yonder window breaks?
It is the east, and Juliet is the sun!
"""


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_has_every_feature_of_gemma_2(name):
    model = gemma_np.load(name)
    config = model.config
    assert config.model_type == "gemma2"
    assert {config.window(0), config.window(1)} == {64, None}
    assert config.window(0) < config.max_position_embeddings / 2
    assert config.num_key_value_heads < config.num_attention_heads
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50.0, 30.0)
    assert config.vocab_size == len(model.tokenizer)


def test_held_out_shakespeare_is_more_likely_than_shuffled_words():
    """The play was held out of training."""
    model, words = gemma_np.load(), ACT.split()
    shuffled = " ".join(words[i] for i in np.random.default_rng(0).permutation(len(words)))
    assert model.perplexity(ACT) < 150  # of 2,048
    assert model.perplexity(shuffled) > 3 * model.perplexity(ACT)


def test_the_teacher_has_the_lower_perplexity():
    assert gemma_np.load("shakespeare-4m").perplexity(ACT) < gemma_np.load("shakespeare-1m").perplexity(ACT)


def test_generate_uses_the_bundled_model_by_default(capsys):
    assert main(["generate", "To be", "--max-new-tokens", "30"]) == 0
    text = capsys.readouterr().out
    assert len(text.split()) > 10
    assert sum(word.strip(".,;:!?'").isalpha() for word in text.split()) > 8
    assert gemma_np.load().generate("To be", max_new_tokens=30) + "\n" == text


def test_chat_fits_the_context(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["chat"]) == 0
    model = gemma_np.load()
    assert isinstance(model.chat([{"role": "user", "content": "Who is there?"}], temperature=1.0, seed=1), str)


def test_the_assets_are_small_and_packaged():
    folder = resources.files("gemma_np") / "assets"
    sizes = [file.stat().st_size for name in BUNDLED for file in (folder / name).iterdir()]
    assert sum(sizes) < 12e6
    for name in (*BUNDLED, DEFAULT):
        assert {"README.md", "config.json", "model.safetensors", "tokenizer.model"} == {
            file.name for file in (folder / name).iterdir()
        }
