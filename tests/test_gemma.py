"""`load`, and the model that it returns."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import gemma_np
from gemma_np import GemmaError
from gemma_np.text.generation import generate_ids
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES
from tests.support.tolerances import assert_close


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma") / "tiny"
    tiny.gemma().save(folder)
    return folder


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_saved_and_loaded_is_the_same_model(model_type, tmp_path):
    model = tiny.gemma(model_type)
    model.save(tmp_path / "saved")
    loaded = gemma_np.load(tmp_path / "saved")
    assert loaded.config == model.config
    assert loaded.tokenizer.model == model.tokenizer.model
    ids = model.tokenizer.encode("The lamp was lit")
    assert (loaded.logits(ids) == model.logits(ids)).all()


def test_float32_is_close_to_float64(folder):
    ids = [2, 5, 300, 17, 21, 22, 23]
    single, exact = gemma_np.load(folder).logits(ids), gemma_np.load(folder, dtype="float64").logits(ids)
    assert exact.dtype == np.float64
    assert_close(single, exact, "precision")


def test_logits_of_ids_and_of_a_batch():
    model = tiny.gemma()
    assert model.logits([2, 5, 7]).shape == (3, model.config.vocab_size)
    assert model.logits([[2, 5, 7], [2, 8, 9]]).shape == (2, 3, model.config.vocab_size)


def test_the_trace_ends_with_the_logits():
    model = tiny.gemma()
    trace = model.trace([2, 5, 7])
    assert next(iter(trace)) == "embedding"
    assert (trace["logits_capped"] == model.logits([2, 5, 7])).all()


def test_a_prompt_is_a_text_or_token_ids():
    model = tiny.gemma()
    assert model.generate("The sea", max_new_tokens=6) == model.generate(
        model.tokenizer.encode("The sea"), max_new_tokens=6
    )
    assert "".join(model.stream("The sea", max_new_tokens=6)) == model.generate("The sea", max_new_tokens=6)


def test_the_same_seed_gives_the_same_text():
    model = tiny.gemma()
    texts = [model.generate("The", max_new_tokens=20, temperature=2, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_perplexity_from_the_logits():
    model = tiny.gemma()
    ids = model.tokenizer.encode(text := "The lamp was lit in the night.")
    logits = model.logits(ids)[:-1].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = np.exp(-log_probs[np.arange(len(ids) - 1), ids[1:]].mean())
    assert model.perplexity(text) == pytest.approx(expected, rel=1e-5)


def test_perplexity_of_a_text_longer_than_the_context():
    """A `<bos>` and 63 tokens fill the 64 positions: 126 tokens are two independent windows."""
    model = tiny.gemma()
    ids = model.tokenizer.encode(tiny.TEXT, bos=False)[:126]
    whole, halves = tiny.tokenizer().decode(ids), [ids[:63], ids[63:]]
    assert model.tokenizer.encode(whole, bos=False) == ids
    parts = [np.log(model.perplexity(model.tokenizer.decode(half))) for half in halves]
    assert np.log(model.perplexity(whole)) == pytest.approx(np.mean(parts), rel=1e-6)


def test_the_repr_is_one_short_line(folder):
    assert repr(tiny.gemma()) == "<Gemma: gemma2, 8,316 parameters, 4 layers>"
    assert repr(gemma_np.load(folder)) == f"<Gemma: gemma2, 8,316 parameters, 4 layers, from {folder}>"


def test_echo_puts_the_prompt_first():
    model = tiny.gemma()
    text = model.generate("The sea", 6)
    assert model.generate("The sea", 6, echo=True) == "The sea" + text
    assert model.generate(model.tokenizer.encode("The sea"), 6, echo=True) == "The sea" + text
    assert next(model.stream("The sea", 6, echo=True)) == "The sea"


def test_the_end_of_a_text_can_be_ignored(monkeypatch):
    model = tiny.gemma()
    script = [
        *model.tokenizer.encode_verbatim("the sea"),
        *model.tokenizer.ends,
        *model.tokenizer.encode_verbatim(" a"),
    ]
    for ignore, expected in ((False, "the sea"), (True, "the sea a")):
        tokens = iter(script)
        monkeypatch.setattr("gemma_np.text.sampling.Sampling.choose", lambda *_, tokens=tokens: next(tokens))
        assert model.generate("x", len(script), ignore_eos=ignore) == expected


# The tape


def test_a_trace_keeps_only_what_matches():
    model, ids = tiny.gemma(), [2, 5, 7]
    every = model.trace(ids)
    probs = model.trace(ids, only="layers.*.self_attn.probs")
    assert list(probs) == [f"layers.{layer}.self_attn.probs" for layer in range(4)]
    assert all((value == every[name]).all() for name, value in probs.items())
    with pytest.raises(GemmaError, match=r"only: 'layer\.0' matches no record"):
        model.trace(ids, only="layer.0")


def test_a_tape_replaces_what_the_model_continues_with():
    """With the residual stream of another text at one layer, all after it is that of the other text."""
    model, ids, other = tiny.gemma(), [2, 5, 7], [2, 8, 9]
    clean = model.trace(other)

    def patch(name, value):
        return clean[name] if name == "layers.2.resid_post" else value

    assert (model.logits(ids, patch) == model.logits(other)).all()
    patched = model.trace(ids, tape=patch)
    assert (patched["layers.3.mlp.hidden"] == clean["layers.3.mlp.hidden"]).all()
    assert (patched["layers.1.mlp.hidden"] == model.trace(ids)["layers.1.mlp.hidden"]).all()


def test_a_tape_steers_every_token_of_a_generation():
    model = tiny.gemma()

    def steer(name, value):
        names.append(name)
        return np.roll(value, 1, axis=-1) if name == "logits_capped" else value

    names = []
    ids = list(model.stream_ids([2, 5, 7], 6, tape=steer, ignore_eos=True))
    expected = [2, 5, 7]
    for _ in range(6):
        expected.append((int(model.logits(expected)[-1].argmax()) + 1) % model.config.vocab_size)
    assert ids == expected[3:]
    assert names == 6 * list(model.trace([2]))


# Bad input


@pytest.mark.parametrize("call", ["generate", "stream", "chat", "stream_chat"])
def test_a_misspelt_option_names_the_function_that_was_called(call):
    given = [{"role": "user", "content": "The sea"}] if "chat" in call else "The sea"
    expected = rf"Gemma\.{call}\(\) got an unexpected keyword argument 'temprature'; did you mean 'temperature'"
    with pytest.raises(TypeError, match=expected):
        getattr(tiny.gemma(), call)(given, temprature=1.0)
    with pytest.raises(TypeError, match=rf"Gemma\.{call}\(\) got an unexpected keyword argument 'x'$"):
        getattr(tiny.gemma(), call)(given, x=1)


@pytest.mark.parametrize("name", ["no-such-folder", "./no/such/folder", "no-such-file.gguf"])
def test_a_missing_checkpoint_is_refused(name):
    with pytest.raises(GemmaError, match="no such folder or file"):
        gemma_np.load(name)


def test_a_misspelt_name_is_corrected():
    with pytest.raises(GemmaError, match=r"shakespear-1m: no such folder or file .*; did you mean shakespeare-1m\?"):
        gemma_np.load("shakespear-1m")


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"pickle?")
    with pytest.raises(GemmaError, match=r"model\.bin: a file, expected a \.gguf file"):
        gemma_np.load(tmp_path / "model.bin")


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(GemmaError, match="dtype: 'float16', expected one of auto, stored, float32, float64"):
        gemma_np.load(folder, dtype="float16")


def test_a_tokenizer_of_another_size_than_the_embedding_is_refused(tmp_path):
    model = tiny.gemma(vocab_size=401)
    model.save(tmp_path / "other")
    with pytest.raises(GemmaError, match="tokenizer of 400 pieces, expected vocab_size=401"):
        gemma_np.load(tmp_path / "other")


def test_the_64_image_rows_of_a_multimodal_checkpoint_are_accepted(tmp_path):
    tiny.gemma("gemma3_text", vocab_size=464).save(tmp_path / "images")
    assert gemma_np.load(tmp_path / "images").generate("The", max_new_tokens=1) is not None


def test_a_damaged_tokenizer_is_refused(tmp_path):
    tiny.gemma().save(tmp_path / "damaged")
    (tmp_path / "damaged" / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(GemmaError, match="tokenizer: 11 bytes, expected a sentencepiece model"):
        gemma_np.load(tmp_path / "damaged")


def test_without_a_tokenizer_token_ids_still_work(tmp_path):
    tiny.gemma().save(tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.model").unlink()
    model = gemma_np.load(tmp_path / "bare")
    assert model.logits([2, 5]).shape == (2, 400)
    with pytest.raises(GemmaError, match=r"tokenizer\.model: missing"):
        model.generate("The")


@pytest.mark.parametrize(
    ("prompt", "message"), [("", "prompt: empty"), ([], "token ids"), ([2, 400], "token ids: 400")]
)
def test_an_empty_or_invalid_prompt_is_refused(prompt, message):
    with pytest.raises(GemmaError, match=message):
        tiny.gemma().generate(prompt)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (lambda model: generate_ids([], model.weights, model.config, np.argmax, 5), "token ids"),
        (lambda model: generate_ids([2], model.weights, model.config, np.argmax, 0), "max_new_tokens: 0"),
        (lambda model: generate_ids([2], model.weights, model.config, np.argmax, 64), "65, expected at most 64"),
        (lambda model: model.stream_ids([2, 400]), "token ids: 400"),
        (lambda model: model.stream_ids([2], temperature=-1), "temperature: -1"),
        (lambda model: model.stream(""), "prompt: empty"),
        (lambda model: model.stream("The", 64), "expected at most 64"),
        (lambda model: model.stream("The", top_p=1.5), "top_p: 1.5"),
        (lambda model: dataclasses.replace(model, tokenizer=None).stream("The"), r"tokenizer\.model: missing"),
        (lambda model: model.stream_chat([]), "messages: none"),
        (lambda model: model.stream_chat([{"role": "user", "content": "The sea"}], 64), "expected at most 64"),
        (
            lambda model: dataclasses.replace(model, tokenizer=None).stream_chat([{"role": "user", "content": "The"}]),
            r"tokenizer\.model: missing",
        ),
    ],
)
def test_generation_raises_when_it_is_called(start, message):
    """Not at the first `next()`, which here is never called."""
    with pytest.raises(GemmaError, match=message):
        start(tiny.gemma())


def test_an_empty_text_has_no_perplexity():
    with pytest.raises(GemmaError, match="text: empty"):
        tiny.gemma().perplexity("")


def test_the_import_loads_no_heavy_package():
    code = "import sys, gemma_np; print([name for name in sys.argv[1:] if name in sys.modules])"
    heavy = ["torch", "transformers", "gguf", "huggingface_hub", "tqdm", "safetensors", "matplotlib"]
    printed = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"
