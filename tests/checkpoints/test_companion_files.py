"""The other files of a folder: with them transformers reads, continues and formats texts as we do."""

import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gemma_np
from gemma_np import GemmaError
from gemma_np.checkpoints.companion_files import generation_config, tokenizer_config, write_companion_files
from gemma_np.cli import main
from gemma_np.gemma import BUNDLED, DEFAULT_CHAT
from gemma_np.text.chat import chat_ids
from gemma_np.text.chat_template import CHAT_TEMPLATE
from gemma_np.text.tokenizer import CONTROL_PIECE
from tests.support import tiny

NEW_TOKENS = 40
PROMPTS = ["To be, or not to be", "ROMEO.\n\n  But soft! what light"]
CONVERSATION = [
    {"role": "user", "content": "  What news from the battle?\n"},
    {"role": "model", "content": "The king is dead."},
    {"role": "user", "content": "Who is there?"},
]


def turns(contents, model="model"):
    return [{"role": ("user", model)[n % 2], "content": content} for n, content in enumerate(contents)]


def names(folder):
    return {path.name for path in folder.iterdir()}


COMPANIONS = {"tokenizer_config.json", "special_tokens_map.json", "generation_config.json"}


# What is written


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_folders_have_what_we_write(name, tmp_path):
    write_companion_files(tmp_path, gemma_np.load(name).tokenizer, None)
    assert names(tmp_path) == COMPANIONS
    for file in COMPANIONS:
        assert (tmp_path / file).read_bytes() == (BUNDLED[name] / file).read_bytes()


def test_pieces_that_the_vocabulary_lacks_are_not_named():
    tokenizer = tiny.tokenizer_without_turns()
    values = tokenizer_config(tokenizer)
    assert "chat_template" not in values
    assert "pad_token" not in values
    assert values["additional_special_tokens"] == []
    assert generation_config(tokenizer) == {"bos_token_id": 2, "eos_token_id": [1]}
    assert tokenizer_config(tiny.tokenizer())["chat_template"] == CHAT_TEMPLATE
    assert generation_config(tiny.tokenizer()) == {"bos_token_id": 2, "eos_token_id": [1, 5], "pad_token_id": 0}


@pytest.mark.parametrize("tokenizer", [tiny.tokenizer(), gemma_np.load().tokenizer], ids=["tiny", "bundled"])
def test_the_user_defined_pieces_are_those_of_the_sentencepiece_model(tokenizer):
    from sentencepiece import sentencepiece_model_pb2

    pieces = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model).pieces
    expected = {piece.piece for piece in pieces if piece.type == piece.USER_DEFINED and len(piece.piece) > 1}
    assert tokenizer.user_defined == expected
    assert expected


def test_a_folder_without_a_vocabulary_has_no_files_about_it(tmp_path):
    gemma_np.Gemma(tiny.config(), tiny.gemma().weights, None).save(tmp_path / "model")
    assert names(tmp_path / "model") == {"config.json", "model.safetensors"}


# What is kept


KEPT = {
    "README.md": b"a card\r\n",
    "LICENSE": b"terms",
    "chat_template.jinja": b"{{ other }}",
    "generation_config.json": b'{"eos_token_id": 1, "top_k": 64}',
    "tokenizer.json": b"{}",
    "preprocessor_config.json": b"{}",
}
NOT_KEPT = [
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "model-00001-of-00002.safetensors", "optimizer.pt"),
    *("training.safetensors", "log.jsonl", "quantize_config.json", ".gitattributes", "other.gguf"),
]


@pytest.fixture
def source(tmp_path):
    """Return a folder with files beside the model."""
    folder = tmp_path / "source"
    tiny.gemma(max_position_embeddings=64).save(folder)
    (folder / "generation_config.json").unlink()
    (folder / "special_tokens_map.json").unlink()
    for name, content in KEPT.items():
        (folder / name).write_bytes(content)
    for name in NOT_KEPT:
        (folder / name).write_bytes(b"old")
    (folder / "data").mkdir()
    return folder


def test_the_files_of_the_source_are_kept(source, tmp_path):
    model = gemma_np.load(source)
    model.save(tmp_path / "copy")
    assert names(tmp_path / "copy") == {*KEPT, *COMPANIONS, "config.json", "model.safetensors", "tokenizer.model"}
    for name, content in KEPT.items():
        assert (tmp_path / "copy" / name).read_bytes() == content
    assert (tmp_path / "copy/model.safetensors").read_bytes() != b"old"


def test_the_source_does_not_stand_in_for_what_is_written(source, tmp_path):
    other = tiny.gemma("gemma", seed=1)
    gemma_np.Gemma(other.config, other.weights, other.tokenizer, source).save(tmp_path / "other")
    assert gemma_np.load(tmp_path / "other").config == other.config


def test_a_second_write_mends_the_files(source, tmp_path):
    """A run writes into the same folder again and again."""
    changed = {*COMPANIONS, "README.md"}
    for name in changed:
        (tmp_path / name).write_text("damaged")
    write_companion_files(tmp_path, tiny.tokenizer(), source)
    assert not {name for name in changed if (tmp_path / name).read_text() == "damaged"}


def test_a_source_that_is_gone_is_no_obstacle(source, tmp_path):
    model = gemma_np.load(source).dequantized()
    shutil.rmtree(source)
    model.save(tmp_path / "copy")
    assert names(tmp_path / "copy") == {*COMPANIONS, "config.json", "model.safetensors", "tokenizer.model"}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_is_named(source, tmp_path):
    (source / "LICENSE").chmod(0)
    with pytest.raises(GemmaError, match=r"LICENSE: .*expected a file of a checkpoint"):
        gemma_np.load(source).save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_gguf_file_has_no_files_to_keep(tmp_path):
    from gemma_np.compression.export_gguf import export_gguf

    (tmp_path / "README.md").write_text("of another model")
    export_gguf(gemma_np.load(), "q8_0", tmp_path / "model.gguf")
    gemma_np.load(tmp_path / "model.gguf").save(tmp_path / "folder")
    assert names(tmp_path / "folder") == {*COMPANIONS, "config.json", "model.safetensors", "tokenizer.model"}


SHORT_RUN = ["--steps", "2", "--batch-size", "2", "--seq-len", "16", "--save-every", "1"]
COMMANDS = {
    "train from scratch": ["train", "{texts}", "--tokenizer", "{model}/tokenizer.model", *SHORT_RUN],
    "train": ["train", "{texts}", "--model", "{model}", *SHORT_RUN],
    "distill": ["distill", "{texts}", "--model", "{model}", "--teacher", "{model}", *SHORT_RUN],
    "merge": ["merge", "{model}", "{model}"],
    "prune": ["prune", "--model", "{model}", "magnitude=0.2"],
    "prune layers": ["prune", "--model", "{model}", "drop-layers=1"],
    "quantize": ["quantize", "--model", "{model}", "--format", "int8"],
    "quantize int4": ["quantize", "--model", "{model}", "--format", "int4", "--group-size", "32"],
    "compress": ["compress", "{texts}", "--model", "{model}", "--prune", "magnitude=0.1", "--quantize", "int8"],
    "compress and heal": [
        *("compress", "{texts}", "--model", "{model}", "--prune", "magnitude=0.1", "--distill", "1"),
        *("--batch-size", "2", "--seq-len", "16"),
    ],
}
STEPS = {"compress": "quantized", "compress and heal": "healed"}


def made(command, model, tmp_path):
    """Run a command on a model, and return the folder that it made."""
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / f"texts/{number}.txt").write_text(tiny.TEXT[number:] * 8, encoding="utf-8")
    arguments = [word.format(texts=tmp_path / "texts", model=model) for word in COMMANDS[command]]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    return tmp_path / "out" / STEPS.get(command, "")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"train from scratch", "quantize int4"}))
def test_every_command_keeps_the_files_of_its_model(command, source, tmp_path):
    folder = made(command, source, tmp_path)
    assert names(folder) >= {*KEPT, *COMPANIONS}
    assert all((folder / name).read_bytes() == content for name, content in KEPT.items())
    assert not names(folder) & {"pytorch_model.bin", "optimizer.pt", "quantize_config.json"}


# What transformers makes of it


def auto_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return a function: name -> our tokenizer and that of transformers."""
    folder = tmp_path_factory.mktemp("tokenizers")

    def pair(name):
        if name == "tiny":
            if not (folder / name).exists():
                tiny.gemma().save(folder / name)
            return tiny.tokenizer(), auto_tokenizer(folder / name)
        return gemma_np.load(name).tokenizer, auto_tokenizer(BUNDLED[name])

    return pair


CHARACTERS = st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t\u2581<>/ab1")
FRAGMENTS = ["<table>", "</h1>", "<b", " ", "\n", "the", " the", "\u2581", "<0x0A>", "1847", "\n\n\n", "   ", "\r\n"]
TEXTS = (st.text(CHARACTERS, max_size=40) | st.lists(st.sampled_from(FRAGMENTS)).map("".join)).filter(
    lambda text: not CONTROL_PIECE.search(text)
)


@pytest.mark.framework
@pytest.mark.parametrize("name", ["tiny", DEFAULT_CHAT])
def test_transformers_encodes_every_text_as_we_do(name, pair):
    ours, theirs = pair(name)
    assert len(theirs) == len(ours)
    assert set(theirs.all_special_tokens) == {*ours.special.values(), "<start_of_turn>", "<end_of_turn>"}

    @given(TEXTS)
    @settings(max_examples=200)
    def check(text):
        assert theirs(text).input_ids == ours.encode(text)
        assert theirs.decode(ours.encode(text), skip_special_tokens=True) == ours.decode(ours.encode(text))

    check()


@pytest.mark.framework
@pytest.mark.parametrize("name", ["tiny", DEFAULT_CHAT])
def test_transformers_formats_every_conversation_as_we_do(name, pair):
    ours, theirs = pair(name)

    @given(st.lists(TEXTS, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2), st.booleans())
    @settings(max_examples=100)
    def check(contents, assistant):
        messages = turns(contents, "assistant" if assistant else "model")
        found = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert found == chat_ids(turns(contents), ours)
        without = theirs.apply_chat_template(messages, return_dict=False)
        assert [*without, *ours.encode("<start_of_turn>model\n", bos=False)] == found

    check()


@pytest.mark.framework
def test_a_system_message_stands_before_the_first_user_turn(pair):
    ours, theirs = pair("tiny")
    system = {"role": "system", "content": " Be brief. \n"}
    messages = turns([" Who is there? ", "I.", "Who?"])
    found = theirs.apply_chat_template([system, *messages], add_generation_prompt=True, return_dict=False)
    assert found == chat_ids([system, *messages], ours)


@pytest.mark.framework
def test_control_pieces_in_a_content_are_text_for_us_only(pair):
    """A template cannot say it; docs/commands.md says so."""
    ours, theirs = pair(DEFAULT_CHAT)
    messages = turns(["a<end_of_turn>b"])
    found = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert found.count(ours.id("<end_of_turn>")) == 2
    assert chat_ids(messages, ours).count(ours.id("<end_of_turn>")) == 1


@pytest.mark.framework
@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "model", "content": "x"}], "take turns"),
        (turns(["x", "y"])[:1] * 2, "take turns"),
        ([{"role": "tool", "content": "x"}], "take turns"),
        ([*turns(["x"]), {"role": "system", "content": "x"}], "take turns"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "expected text"),
    ],
)
def test_conversations_that_the_format_lacks(messages, says, pair):
    from jinja2 import TemplateError

    with pytest.raises(TemplateError, match=says):
        pair("tiny")[1].apply_chat_template(messages)


def continues_as_we_do(folder):
    """Check that transformers reads and continues texts and a conversation as we do; return its model and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    ours, theirs = gemma_np.load(folder), auto_tokenizer(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert network.generation_config.eos_token_id == sorted(ours.tokenizer.ends)
    chat = theirs.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=False)
    assert chat == chat_ids(CONVERSATION, ours.tokenizer)
    for ids in (*(theirs(prompt).input_ids for prompt in PROMPTS), chat):
        found = network.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW_TOKENS)[0].tolist()
        ended = found[-1] in ours.tokenizer.ends
        expected = list(ours.stream_ids(ids, NEW_TOKENS))
        assert found[len(ids) : len(found) - ended] == expected
        assert ended == (len(expected) < NEW_TOKENS)
    return network, theirs


@pytest.mark.framework
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BUNDLED)
def test_transformers_continues_and_replies_as_the_bundled_models_do(name):
    from transformers import pipeline

    network, theirs = continues_as_we_do(BUNDLED[name])
    ours = gemma_np.load(name)
    generate = pipeline("text-generation", model=network, tokenizer=theirs, do_sample=False, max_new_tokens=NEW_TOKENS)
    (output,) = generate(PROMPTS[0])
    assert output["generated_text"] == PROMPTS[0] + ours.generate(PROMPTS[0], NEW_TOKENS)
    (output,) = generate(CONVERSATION)
    assert output["generated_text"][-1]["content"] == ours.chat(CONVERSATION, NEW_TOKENS)


@pytest.mark.framework
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", COMMANDS)
def test_transformers_continues_as_the_folder_of_a_command_does(command, tmp_path):
    continues_as_we_do(made(command, BUNDLED[DEFAULT_CHAT], tmp_path))


@pytest.mark.framework
def test_transformers_continues_as_a_saved_gguf_file_does(tmp_path):
    from gemma_np.compression.export_gguf import export_gguf

    export_gguf(gemma_np.load(DEFAULT_CHAT), "f16", tmp_path / "model.gguf")
    gemma_np.load(tmp_path / "model.gguf").save(tmp_path / "saved")
    continues_as_we_do(tmp_path / "saved")
