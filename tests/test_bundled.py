"""The bundled models: they load, write Shakespeare, reply, and are small."""

import io
from importlib import resources

import numpy as np
import pytest

import gemma_np
from gemma_np.cli import main
from gemma_np.gemma import BUNDLED, BUNDLED_MODELS, DEFAULT, DEFAULT_CHAT

SCENE = """ROMEO.
But soft! what light through yonder window breaks?
It is the east, and Juliet is the sun!--
Arise, fair sun, and kill the envious moon,
Who is already sick and pale with grief,
That thou her maid art far more fair than she:
Be not her maid, since she is envious;
Her vestal livery is but sick and green,
And none but fools do wear it; cast it off.--
It is my lady; O, it is my love!
O, that she knew she were!--
She speaks, yet she says nothing: what of that?
Her eye discourses, I will answer it.--
I am too bold, 'tis not to me she speaks:
Two of the fairest stars in all the heaven,
Having some business, do entreat her eyes
To twinkle in their spheres till they return.
What if her eyes were there, they in her head?
The brightness of her cheek would shame those stars,
As daylight doth a lamp; her eyes in heaven
Would through the airy region stream so bright
That birds would sing and think it were not night.--
See how she leans her cheek upon her hand!
O that I were a glove upon that hand,
That I might touch that cheek!
"""

ACT = "\n".join(SCENE.splitlines()[:3]) + "\n"

GEMMA_2 = [name for name in BUNDLED if not name.endswith(("gemma1", "gemma3"))]
PERPLEXITY = 120  # of ACT, out of 2,048


@pytest.mark.parametrize("name", GEMMA_2)
def test_a_bundled_gemma_2_has_every_feature_of_its_generation(name):
    model = gemma_np.load(name)
    config = model.config
    assert config.model_type == "gemma2"
    assert {config.window(0), config.window(1)} == {64, None}
    assert config.window(0) < config.max_position_embeddings / 2
    assert config.num_key_value_heads < config.num_attention_heads
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50.0, 30.0)
    assert config.vocab_size == len(model.tokenizer)


def test_the_bundled_gemma_3_has_every_feature_of_its_generation():
    model = gemma_np.load("shakespeare-gemma3")
    config = model.config
    assert config.model_type == "gemma3_text"
    assert [config.window(layer) for layer in range(config.num_hidden_layers)] == [64] * 5 + [None]
    assert (config.rope_local_base_freq, config.rope_theta) == (10_000.0, 1_000_000.0)
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (None, None)
    assert not np.allclose(model.weights["model.layers.0.self_attn.q_norm.weight"], 0, atol=0.1)


def test_the_bundled_gemma_1_has_every_feature_of_its_generation():
    model = gemma_np.load("shakespeare-gemma1")
    config = model.config
    assert config.model_type == "gemma"
    assert {config.window(layer) for layer in range(config.num_hidden_layers)} == {None}
    assert config.num_key_value_heads == 1
    assert not any("pre_feedforward" in name for name in model.weights)


@pytest.mark.parametrize("name", BUNDLED)
def test_held_out_shakespeare_is_more_likely_than_shuffled_words(name):
    """The play was held out of training."""
    model, words = gemma_np.load(name), ACT.split()
    shuffled = " ".join(words[i] for i in np.random.default_rng(0).permutation(len(words)))
    assert model.perplexity(ACT) < PERPLEXITY
    assert model.perplexity(shuffled) > 3 * model.perplexity(ACT)


def test_the_student_is_better_than_its_twin_and_the_teacher_than_both():
    teacher, student, twin = (
        gemma_np.load(name).text_loss(SCENE).bits_per_byte
        for name in ("shakespeare-4m", "shakespeare-1m", "shakespeare-1m-scratch")
    )
    assert teacher < student < twin


def test_generate_uses_the_bundled_model_by_default(capsys):
    assert main(["generate", "To be", "--max-new-tokens", "30"]) == 0
    text = capsys.readouterr().out
    assert len(text.split()) > 10
    assert sum(word.strip(".,;:!?'").isalpha() for word in text.split()) > 8
    assert gemma_np.load().generate("To be", max_new_tokens=30) + "\n" == text


def test_chat_replies_by_default(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Who is there?\nWhere is the king?\n"))
    assert main(["chat", "--seed", "1"]) == 0
    captured = capsys.readouterr()
    replies = captured.out.strip().splitlines()
    assert len(replies) >= 2
    model, lines = gemma_np.load(DEFAULT_CHAT), [{"role": "user", "content": "Who is there?"}]
    assert captured.out.startswith(model.chat(lines, temperature=0.7, seed=1))
    assert "google/gemma-2-2b-it" in captured.err


def test_most_replies_end_their_turn():
    model = gemma_np.load(DEFAULT_CHAT)
    ids = model.tokenizer.encode("<start_of_turn>user\nWhat news from the battle?<end_of_turn>\n<start_of_turn>model\n")
    assert sum(len(list(model.stream_ids(ids, 96, temperature=1.0, seed=seed))) < 96 for seed in range(20)) >= 15


def test_the_assets_are_small_and_packaged():
    folder = resources.files("gemma_np") / "assets"
    assert sum(file.stat().st_size for name in BUNDLED for file in (folder / name).iterdir()) < 16e6
    expected = {"README.md", "config.json", "model.safetensors", "tokenizer.model"}
    expected |= {"tokenizer_config.json", "special_tokens_map.json", "generation_config.json"}
    for name in (*BUNDLED, DEFAULT, DEFAULT_CHAT):
        files = {file.name for file in (folder / name).iterdir()}
        assert files - {"curve.svg"} == expected


def test_models_describes_every_bundled_model(capsys):
    assert set(BUNDLED_MODELS) == set(BUNDLED)
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in BUNDLED)
