"""Training from Python, on paths and on arrays: the same run as from the command line, resumed and refused alike."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

import gemma_np
from gemma_np import GemmaError, training
from gemma_np.cli import main
from gemma_np.compression.pruning import keep_fraction, prune_weights
from gemma_np.compression.quantization import Scheme
from gemma_np.compression.quantize_model import quantize_model
from gemma_np.training import trainer
from gemma_np.training.distillation import weights_digest
from gemma_np.training.task import Batch, Task, next_token
from gemma_np.training.trainer import loss_and_gradients, run_task, train_step
from tests.support import tiny

SHAPE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
SHAPE |= {"intermediate_size": 8, "sliding_window": 4, "max_position_embeddings": 64}
SHAPE_OPTIONS = (
    "--hidden-size 8 --layers 2 --heads 2 --kv-heads 1 --head-dim 4 --intermediate-size 8 --sliding-window 4"
)
SHAPE_OPTIONS += " --context 64"
CONFIG = training.TrainingConfig(steps=6, batch_size=2, seq_len=16, learning_rate=0.01, warmup_steps=2, save_every=4)
CONFIG_OPTIONS = "--steps 6 --batch-size 2 --seq-len 16 --learning-rate 0.01 --warmup-steps 2 --save-every 4"
OPTIONS = [*SHAPE_OPTIONS.split(), *CONFIG_OPTIONS.split()]
TOKENS = np.array(tiny.tokenizer().encode(tiny.TEXT * 3))
TALK = [{"role": "user", "content": "How many?"}, {"role": "model", "content": "None."}]


def new_model():
    return training.new_model(tiny.tokenizer(), **SHAPE)


@pytest.fixture
def folder(tmp_path):
    """Texts, conversations, a tokenizer and a teacher."""
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text(tiny.TEXT, encoding="utf-8")
    (tmp_path / "chats.jsonl").write_text((json.dumps({"messages": TALK}) + "\n") * 4)
    (tmp_path / "tokenizer.model").write_bytes(tiny.vocabulary())
    tiny.gemma().save(tmp_path / "teacher")
    return tmp_path


def assert_complete(run, folder, config=CONFIG):
    """The log has an entry per step, and the folder holds the model that was returned."""
    assert [entry["step"] for entry in run.log] == list(range(1, config.steps + 1))
    assert all(entry.keys() >= {"loss", "grad_norm", "learning_rate", "tokens_per_second"} for entry in run.log)
    assert all(entry["tokens_per_second"] > 1 for entry in run.log)
    assert "val_loss" in run.log[-1]
    assert run.log == [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    saved = gemma_np.load(folder)
    assert saved.config == run.model.config
    assert saved.tokenizer.model == run.model.tokenizer.model
    assert saved.weights.keys() == run.model.weights.keys()
    assert all((saved.weights[name] == weight).all() for name, weight in run.model.weights.items())


def assert_same_weights(run, folder):
    """A run from Python ended bit-identical to the one in the folder."""
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == run.model.weights.keys()
    assert all(weights[name].tobytes() == weight.tobytes() for name, weight in run.model.weights.items())


@pytest.mark.parametrize(("generation", "model_type"), [(1, "gemma"), (2, "gemma2"), (3, "gemma3_text")])
def test_every_generation_can_be_trained_from_scratch(folder, tmp_path, generation, model_type):
    texts, tokenizer = folder / "texts", folder / "tokenizer.model"
    model = training.new_model(tokenizer, **SHAPE, generation=generation)
    assert model.config.model_type == model_type
    run = training.train(model, texts, tmp_path / "run", config=replace(CONFIG, steps=30))
    assert run.log[-1]["loss"] < run.log[0]["loss"] - 0.5
    assert gemma_np.load(tmp_path / "run").config == model.config
    arguments = [str(texts), "--tokenizer", str(tokenizer), "--generation", str(generation), *OPTIONS]
    assert main(["train", *arguments, "-o", str(tmp_path / "command")]) == 0
    assert gemma_np.load(tmp_path / "command").config == model.config


def test_an_unknown_generation_is_refused():
    with pytest.raises(GemmaError, match="generation: 4, expected 1, 2 or 3"):
        training.new_model(tiny.tokenizer(), generation=4)


def test_a_new_model_has_the_shape_that_was_asked_for(folder):
    model = training.new_model(folder / "tokenizer.model", **SHAPE, seed=3)
    assert {name: getattr(model.config, name) for name in SHAPE} == SHAPE
    assert model.config.query_pre_attn_scalar == SHAPE["head_dim"]
    assert model.config.vocab_size == len(model.tokenizer) == 400
    assert training.new_model(tiny.tokenizer(), **SHAPE, vocab_size=464).config.vocab_size == 464
    same, other = (training.new_model(tiny.tokenizer(), **SHAPE, seed=seed) for seed in (3, 4))
    name = "model.layers.1.mlp.up_proj.weight"
    assert (model.weights[name] == same.weights[name]).all()
    assert (model.weights[name] != other.weights[name]).any()
    with pytest.raises(GemmaError, match=r"no-such-file: No such file or directory, expected a tokenizer\.model file"):
        training.new_model(folder / "no-such-file")


# Each call on paths is what its command does


def test_train_on_paths_is_the_command(folder):
    out = folder / "python"
    run = training.train(new_model(), str(folder / "texts"), out, config=CONFIG)
    assert_complete(run, out)
    arguments = [str(folder / "texts"), "--tokenizer", str(folder / "tokenizer.model"), *OPTIONS]
    assert main(["train", *arguments, "-o", str(folder / "command")]) == 0
    assert_same_weights(run, folder / "command")


def test_fine_tune_on_paths_is_the_command(folder):
    new_model().save(folder / "start")
    out, config = folder / "python", replace(CONFIG, seq_len=20)
    run = training.fine_tune(folder / "start", folder / "chats.jsonl", out, config=replace(config, val_fraction=0.25))
    assert_complete(run, out, config)
    arguments = [str(folder / "chats.jsonl"), "--model", str(folder / "start"), *OPTIONS]
    assert main(["train", *arguments, "--seq-len", "20", "--val-fraction", "0.25", "-o", str(folder / "command")]) == 0
    assert_same_weights(run, folder / "command")


@pytest.mark.parametrize("prompt_tokens", [None, 4])
def test_distill_on_paths_is_the_command(folder, prompt_tokens):
    texts, teacher = folder / "texts", folder / "teacher"
    choices = {"divergence": "jensen-shannon", "beta": 0.3, "prompt_tokens": prompt_tokens}
    run = training.distill(new_model(), texts, folder / "python", teacher=teacher, config=CONFIG, **choices)
    assert_complete(run, folder / "python")
    arguments = [str(texts), "--teacher", str(teacher), "--divergence", "jensen-shannon", "--beta", "0.3", *OPTIONS]
    arguments += ["--on-policy", "--prompt-tokens", str(prompt_tokens)] if prompt_tokens else []
    assert main(["distill", *arguments, "-o", str(folder / "command")]) == 0
    assert_same_weights(run, folder / "command")


@pytest.mark.parametrize("number", [1, 2])
def test_distill_from_cache_on_paths_is_the_command(folder, number):
    tiny.gemma(seed=1).save(folder / "other")
    texts, teachers = str(folder / "texts"), [str(folder / "teacher"), folder / "other"][:number]
    training.cache_teacher(teachers, texts, folder / "targets", top_k=8, seq_len=16)
    run = training.distill_from_cache(new_model(), folder / "targets", folder / "python", config=CONFIG)
    assert_complete(run, folder / "python")
    arguments = [texts, "--top-k", "8", "--seq-len", "16", "-o", str(folder / "cached")]
    arguments += [argument for teacher in teachers for argument in ("--teacher", str(teacher))]
    assert main(["cache-teacher", *arguments]) == 0
    assert main(["distill", "--targets", str(folder / "cached"), *OPTIONS, "-o", str(folder / "command")]) == 0
    assert_same_weights(run, folder / "command")


# The same calls on arrays, models and messages


@pytest.mark.parametrize("texts", [TOKENS, TOKENS.tolist()], ids=["array", "list"])
def test_train_on_token_ids(tmp_path, texts):
    run = training.train(new_model(), texts, tmp_path / "run", config=replace(CONFIG, val_fraction=0.1))
    assert_complete(run, tmp_path / "run")
    parts = [np.load(tmp_path / "run" / "data" / f"{part}.npy") for part in ("train", "validation")]
    assert (np.concatenate(parts) == TOKENS).all()
    assert len(parts[1]) == round(0.1 * len(TOKENS))


def test_fine_tune_on_messages_is_fine_tune_on_their_file(folder):
    config = replace(CONFIG, seq_len=20)
    run = training.fine_tune(new_model(), [TALK] * 4, folder / "messages", config=replace(config, val_fraction=0.25))
    assert_complete(run, folder / "messages", config)
    training.fine_tune(new_model(), folder / "chats.jsonl", folder / "file", config=replace(config, val_fraction=0.25))
    assert_same_weights(run, folder / "file")


def test_distill_on_arrays(tmp_path):
    teacher = tiny.gemma()
    run = training.distill(
        new_model(), TOKENS, tmp_path / "run", teacher=teacher, config=replace(CONFIG, val_fraction=0.1)
    )
    assert_complete(run, tmp_path / "run")
    training.train(new_model(), TOKENS, tmp_path / "twin", config=replace(CONFIG, val_fraction=0.1))
    twin = load_file(tmp_path / "twin" / "model.safetensors")
    assert any((twin[name] != weight).any() for name, weight in run.model.weights.items())


def test_distill_from_the_cache_of_arrays(tmp_path):
    """The cache sets seq_len, also of the validation texts; that of the training config does not count."""
    training.cache_teacher(tiny.gemma(), TOKENS, tmp_path / "targets", top_k=399, seq_len=16, val_fraction=0.1)
    config = replace(CONFIG, seq_len=5)
    run = training.distill_from_cache(new_model(), tmp_path / "targets", tmp_path / "run", config=config)
    assert_complete(run, tmp_path / "run")
    expected = training.distill_from_cache(new_model(), tmp_path / "targets", tmp_path / "other", config=CONFIG)
    for entry, other in zip(run.log, expected.log, strict=True):
        assert entry | {"tokens_per_second": 0} == other | {"tokens_per_second": 0}


def test_held_out_tokens_of_a_cache_that_are_not_one_row_are_refused(tmp_path):
    training.cache_teacher(tiny.gemma(), TOKENS, tmp_path / "targets", top_k=399, seq_len=16, val_fraction=0.1)
    path = tmp_path / "targets" / "data" / "validation.npy"
    np.save(path, np.load(path)[:, None])
    with pytest.raises(GemmaError, match=r"data: uint32 of shape \(\d+, 1\), expected integers in one row"):
        training.distill_from_cache(new_model(), tmp_path / "targets", tmp_path / "run", config=CONFIG)


# Resuming


def test_an_interrupted_run_resumes_to_the_same_weights(folder, monkeypatch):
    from gemma_np.training import trainer

    def stop_at_6(state, *rest, original=trainer.train_step):
        if state.step == 5:
            raise KeyboardInterrupt
        return original(state, *rest)

    texts, teacher = folder / "texts", folder / "teacher"
    whole = training.distill(new_model(), texts, folder / "whole", teacher=teacher, config=CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", stop_at_6)
        with pytest.raises(KeyboardInterrupt):
            training.distill(new_model(), texts, folder / "stopped", teacher=teacher, config=CONFIG)
    assert len((folder / "stopped" / "log.jsonl").read_text().splitlines()) == 5
    run = training.distill(new_model(), texts, folder / "stopped", teacher=teacher, config=CONFIG, resume=True)
    assert_complete(run, folder / "stopped")
    assert_same_weights(whole, folder / "stopped")


def test_a_run_is_not_started_over_another(folder):
    training.train(new_model(), TOKENS, folder / "run", config=replace(CONFIG, val_fraction=0.1))
    for start in (training.train, training.fine_tune):
        with pytest.raises(GemmaError, match="holds a run already"):
            start(new_model(), folder / "texts", folder / "run", config=CONFIG)


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    training.train(new_model(), TOKENS, tmp_path / "run", config=replace(CONFIG, val_fraction=0.1))
    with pytest.raises(GemmaError, match=r"made with ids=\d+, but this run asks for \d+"):
        training.train(
            new_model(), TOKENS[::-1], tmp_path / "run", config=replace(CONFIG, val_fraction=0.1), resume=True
        )
    config = replace(CONFIG, seq_len=20)
    training.fine_tune(new_model(), [TALK] * 4, tmp_path / "tuned", config=config)
    with pytest.raises(GemmaError, match=r"made with conversations=\d+, but this run asks for \d+"):
        training.fine_tune(new_model(), [TALK] * 5, tmp_path / "tuned", config=config, resume=True)


# Another teacher


def one_tensor_changed(teacher):
    name = "model.layers.2.mlp.down_proj.weight"
    return replace(teacher, weights={**teacher.weights, name: teacher.weights[name] * 1.01})


def pruned(teacher):
    return replace(teacher, weights=dict(prune_weights(teacher, keep_fraction(0.5), "magnitude")))


def quantized(teacher):
    return replace(teacher, weights=dict(quantize_model(teacher, Scheme("int8"), "round")))


OTHERS = {"one tensor changed": one_tensor_changed, "pruned": pruned, "quantized": quantized}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_the_digest_tells_teachers_with_one_final_norm_apart(change):
    teacher = tiny.gemma()
    other = change(teacher)
    assert (other.weights["model.norm.weight"] == teacher.weights["model.norm.weight"]).all()
    assert weights_digest(other) != weights_digest(teacher)


def test_the_digest_depends_on_every_number():
    teacher = tiny.gemma()
    name = "model.embed_tokens.weight"
    for row in range(0, teacher.config.vocab_size, 7):
        embedding = teacher.weights[name].copy()
        embedding[row, row % embedding.shape[1]] += 1
        other = replace(teacher, weights={**teacher.weights, name: embedding})
        assert weights_digest(other) != weights_digest(teacher)


def test_the_digest_of_the_same_weights_is_the_same(tmp_path):
    teacher = tiny.gemma()
    for number, model in enumerate((teacher, quantized(teacher))):
        model.save(tmp_path / str(number))
        assert weights_digest(gemma_np.load(tmp_path / str(number))) == weights_digest(model)
    reordered = replace(teacher, weights=dict(reversed(teacher.weights.items())))
    assert weights_digest(reordered) == weights_digest(teacher)
    assert weights_digest(replace(teacher, config=replace(teacher.config, rope_theta=9.0))) != weights_digest(teacher)


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_a_run_is_not_resumed_with_another_teacher(folder, change, capsys):
    change(gemma_np.load(folder / "teacher")).save(folder / "other")
    arguments = ["distill", str(folder / "texts"), *OPTIONS, "-o", str(folder / "run"), "--teacher"]
    assert main([*arguments, str(folder / "teacher")]) == 0
    assert main([*arguments, str(folder / "other"), "--resume"]) == 2
    assert "was started with teacher=" in capsys.readouterr().err
    assert main([*arguments, str(folder / "teacher"), "--resume"]) == 0


# Quantized weights


def test_quantized_weights_are_not_trained(tmp_path):
    model = quantized(tiny.gemma())
    message = r"model\.embed_tokens\.weight: stored as BFloat16, expected floats \(model\.dequantized\(\)\)"
    batch = Batch(TOKENS[:9][None])
    with pytest.raises(GemmaError, match=message):
        loss_and_gradients(model.weights, model.config, batch, next_token)
    with pytest.raises(GemmaError, match=message):
        run_task(model, Task(lambda state: batch), CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    model.save(tmp_path / "quantized")
    assert training.train(tmp_path / "quantized", TOKENS, tmp_path / "from-path", config=replace(CONFIG, steps=1)).log


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (False, "student: stopped before the first checkpoint; repeat the command to start again"),
        (True, "student: stopped; add --resume to go on after step 4, that of the last checkpoint"),
    ],
)
def test_ctrl_c_says_how_to_go_on(folder, capsys, monkeypatch, saved, message):
    steps = []

    def step(*arguments):
        if len(steps) == (5 if saved else 3):
            raise KeyboardInterrupt
        steps.append(train_step(*arguments))
        return steps[-1]

    monkeypatch.setattr(trainer, "train_step", step)
    run = ["train", str(folder / "texts"), "--tokenizer", str(folder / "tokenizer.model"), *OPTIONS]
    assert main([*run, "-o", str(folder / "student")]) == 130
    assert message in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*run, "-o", str(folder / "student"), *["--resume"] * saved]) == 0
    assert len(training.runs.read_log(folder / "student")) == 6
