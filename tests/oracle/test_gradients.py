"""The gradients of a training step: right ones pass, planted mistakes are named, others are never misnamed."""

from fnmatch import fnmatchcase

import numpy as np
import pytest

from gemma_np import Gemma
from gemma_np.cli import main
from gemma_np.compression.quantization import Scheme
from gemma_np.compression.quantize_model import quantize_model
from gemma_np.errors import GemmaError
from gemma_np.oracle.gradient_diagnosis import describe_gradients, diagnose_gradients
from gemma_np.oracle.gradient_files import compare_gradient_files, diagnose_gradient_file, step_of, write_gradients
from gemma_np.oracle.gradients import batch_of, gradients
from gemma_np.oracle.mistakes import inject_mistakes
from gemma_np.oracle.mistakes.training import TRAINING_CATALOGUE
from gemma_np.training.task import next_token
from gemma_np.training.trainer import loss_and_gradients
from tests.support import tiny
from tests.support.strategies import random_weights
from tests.support.tolerances import assert_close

TEXTS = [[2, 17, 40, 17, 101, 9, 40, 17, 250], [2, 31, 17, 8, 77], [2, 9, 9, 120, 33, 64, 9]]
MODELS = ("gemma", "gemma2", "gemma3_text")


def model_of(model_type="gemma2"):
    config = tiny.config(model_type)
    return Gemma(config, random_weights(config, 0, np.float64), tiny.tokenizer())


def step(model_type="gemma2"):
    return step_of(model_of(model_type), TEXTS)


def with_mistake(a_step, *mistakes):
    with inject_mistakes(mistakes, a_step.model.config, [1]):
        return gradients(a_step)


def only_weights(found):
    return {name: gradient for name, gradient in found.items() if name.startswith("model.")}


@pytest.mark.parametrize("model_type", MODELS)
def test_they_are_those_of_the_trainer(model_type):
    a_step = step(model_type)
    loss, right, _ = loss_and_gradients(a_step.model.weights, a_step.model.config, a_step.batch, next_token)
    found = gradients(a_step)
    assert found["loss"] == pytest.approx(loss)
    assert only_weights(found).keys() == right.keys()
    for name, gradient in right.items():
        assert_close(found[name], gradient, "model", name)


@pytest.mark.parametrize("model_type", MODELS)
def test_their_shapes_are_known_in_advance(model_type):
    a_step = step(model_type)
    assert a_step.shapes == {name: gradient.shape for name, gradient in gradients(a_step).items()}


def test_padding_changes_no_gradient():
    model = model_of()
    together = gradients(step_of(model, TEXTS))
    counts = np.array([len(text) - 1 for text in TEXTS])
    alone = [gradients(step_of(model, [text])) for text in TEXTS]
    for name in only_weights(together):
        mean = sum(count * found[name] for count, found in zip(counts, alone, strict=True)) / counts.sum()
        assert_close(together[name], mean.astype(together[name].dtype), "model", name)


def test_a_quantized_model_is_refused():
    quantized = dict(quantize_model(tiny.gemma(), Scheme("int8")))
    with pytest.raises(GemmaError, match=r"stored as .*, expected floats"):
        step_of(Gemma(tiny.config(), quantized, tiny.tokenizer()), TEXTS)


def test_texts_are_padded_on_the_right():
    batch = batch_of([[5, 6, 7], [8, 9]])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.loss_mask.tolist() == [[True, True], [True, False]]


CASES = [
    (model_type, mistake) for model_type in MODELS for mistake in TRAINING_CATALOGUE if model_type in mistake.models
]


@pytest.mark.parametrize("kept", ["everything", "weights"])
@pytest.mark.parametrize(("model_type", "mistake"), CASES, ids=lambda case: getattr(case, "id", case))
def test_a_planted_mistake_is_named(model_type, mistake, kept):
    a_step = step(model_type)
    theirs = with_mistake(a_step, mistake)
    theirs = theirs if kept == "everything" else only_weights(theirs)
    found = diagnose_gradients(
        a_step, {name: gradient.astype(np.float32) for name, gradient in theirs.items()}, "float32"
    )
    if mistake.instead in found.blind_spots:
        assert not found.excess
    else:
        assert [cause.split(". To fix it")[0] for cause in found.causes] == [mistake.instead]
        if kept == "everything":
            assert any(fnmatchcase(next(iter(found.excess)), pattern) for pattern in mistake.shows)


def test_right_gradients_pass_in_every_precision():
    a_step = step()
    right = gradients(a_step)
    for dtype in ("float64", "float32"):
        found = diagnose_gradients(a_step, {name: gradient.astype(dtype) for name, gradient in right.items()}, dtype)
        assert not found.excess
        assert describe_gradients(found) == [f"All {len(right)} gradients are right up to rounding."]


@pytest.mark.parametrize(
    ("factor", "says"), [(18.0, "the sum over the 18 targets"), (-1.0, "the other sign"), (0.7, "0.7 times")]
)
def test_a_common_factor_is_solved(factor, says):
    a_step = step()
    found = diagnose_gradients(
        a_step, {name: factor * gradient for name, gradient in only_weights(gradients(a_step)).items()}, "float64"
    )
    assert len(found.causes) == 1
    assert says in found.causes[0]


def test_a_pair_is_named():
    a_step = step()
    pair = [mistake for mistake in TRAINING_CATALOGUE if mistake.id in ("group-averaged", "lookup-gradient-missing")]
    found = diagnose_gradients(a_step, only_weights(with_mistake(a_step, *pair)), "float64")
    assert len(found.causes) == 1
    assert all(mistake.instead in found.causes[0] for mistake in pair)


def test_random_gradients_are_never_explained():
    a_step, generator = step(), np.random.default_rng(0)
    right = only_weights(gradients(a_step))
    for theirs in (
        {name: generator.standard_normal(gradient.shape) for name, gradient in right.items()},
        {name: generator.permutation(gradient.ravel()).reshape(gradient.shape) for name, gradient in right.items()},
    ):
        found = diagnose_gradients(a_step, theirs, "float64")
        assert found.excess.keys() == right.keys()
        assert not found.causes


def test_clues_say_how_a_gradient_relates_to_the_right_ones():
    a_step = step()
    right = gradients(a_step)
    names = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer, part in ((0, "q"), (1, "k"), (2, "v"))]
    swapped = {names[2]: right[names[1]], names[1]: 0 * right[names[1]], names[0]: 3 * right[names[0]]}
    clues = diagnose_gradients(a_step, right | swapped, "float64").clues
    assert clues == {
        names[2]: f"that of {names[1]}",
        names[1]: "zero: frozen, or detached from the loss",
        names[0]: "3 times the right one",
    }


def test_a_mistake_that_these_texts_cannot_show_is_listed():
    a_step = step_of(model_of(), [[2, 17, 40], [2, 9, 31]])  # of one length, so that nothing is padded
    blind = diagnose_gradients(a_step, gradients(a_step), "float64").blind_spots
    assert any("counts padding" in mistake for mistake in blind)
    assert any("averaged within each text" in mistake for mistake in blind)
    assert not any("rotates forward" in mistake for mistake in blind)


def test_files_say_which_texts_they_have(tmp_path, capsys):
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    model = model_of()
    model.save(tmp_path / "model")
    source = str(tmp_path / "model")
    assert write_gradients(model, TEXTS, ours, source) == len(gradients(step_of(model, TEXTS)))
    (mistake,) = (mistake for mistake in TRAINING_CATALOGUE if mistake.id == "loss-over-padding")
    with inject_mistakes([mistake], model.config, [1]):
        write_gradients(model, TEXTS, theirs, source)
    rows = compare_gradient_files(ours, theirs)
    assert [row.key for row in rows if row.differs] == [
        "loss",
        "grad.logits_capped",
    ]  # the rest follows from the second
    assert not any(row.differs for row in compare_gradient_files(ours, ours))
    assert "counts padding" in diagnose_gradient_file(theirs).causes[0]
    with pytest.raises(GemmaError, match="gradients of other texts"):
        diagnose_gradient_file(theirs, texts=[[2, 3]])
    with pytest.raises(GemmaError, match="expected 2 or more"):
        write_gradients(model, [[2]], ours)
    assert main(["compare", str(ours), str(theirs)]) == 1
    assert main(["diagnose", "--model", source, str(theirs)]) == 1
    assert "The loss counts padding" in capsys.readouterr().out
    model_of("gemma").save(tmp_path / "other")
    with pytest.raises(GemmaError, match="from a model with model_type=gemma2, expected gemma as in"):
        diagnose_gradient_file(theirs, model=tmp_path / "other")
    ids = [option for text in TEXTS for option in ("--ids", ",".join(map(str, text)))]
    command = ["trace", "--gradients", "--model", source, *ids, "--dtype", "float64", "--force", "-o", str(theirs)]
    assert main(command) == 0
    assert main(["compare", str(ours), str(theirs)]) == 0
    assert main([*command, "--decode", "2"]) == 2
    assert "--decode: given with --gradients" in capsys.readouterr().err
    assert main(["trace", "--model", source, *ids, "-o", str(tmp_path / "trace.safetensors")]) == 2
    assert "several are for --gradients" in capsys.readouterr().err


@pytest.mark.framework
class TestTorch:
    """Gradients of transformers, right and with mistakes that are made in its own code."""

    @pytest.mark.parametrize("model_type", MODELS)
    def test_right_ones_pass(self, model_type):
        from tests.support.gradient_faults import gradients_of

        a_step = step(model_type)
        theirs = gradients_of(a_step.model.config, a_step.model.weights, a_step.batch)
        assert not diagnose_gradients(a_step, theirs, "float32").excess

    def test_mistakes_are_named(self):
        from tests.support.gradient_faults import BACKWARD, LOSSES, gradients_of

        catalogue = {mistake.id: mistake.instead for mistake in TRAINING_CATALOGUE}
        factors = {"sum": "the sum over the 18 targets", "divided-by-all-positions": "divided by 24"}
        for model_type in MODELS:
            a_step = step(model_type)
            for fault in BACKWARD | LOSSES:
                if "cap-" in fault and model_type != "gemma2":
                    continue
                theirs = gradients_of(a_step.model.config, a_step.model.weights, a_step.batch, fault)
                found = diagnose_gradients(a_step, theirs, "float32")
                assert len(found.causes) == 1, (model_type, fault, found)
                assert (catalogue.get(fault) or factors[fault]) in found.causes[0], (model_type, fault, found.causes)

    def test_others_are_not_misnamed(self):
        from tests.support.gradient_faults import UNKNOWN, gradients_of

        a_step = step()
        for fault in UNKNOWN:
            theirs = gradients_of(a_step.model.config, a_step.model.weights, a_step.batch, fault)
            found = diagnose_gradients(a_step, theirs, "float32")
            assert found.excess, fault
            assert not found.causes, (fault, found.causes)
