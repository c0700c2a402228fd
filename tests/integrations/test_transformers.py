"""The oracle against the framework: right models pass, and mistakes planted in the framework's own code are named."""

from contextlib import ExitStack
from itertools import combinations
from random import Random

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_np import Gemma
from gemma_np.oracle.comparison import compare
from gemma_np.oracle.diagnosis import diagnose
from gemma_np.oracle.dump import Alignment, Dump, align_dump
from gemma_np.oracle.mistakes import CATALOGUE
from gemma_np.oracle.trace import Reference
from tests.oracle.test_diagnose import CASES
from tests.support import goldens
from tests.support.strategies import configs, random_ids, random_weights, seeds, splits

pytestmark = pytest.mark.framework

NUMPY = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
HIDDEN_BY_BFLOAT16 = {"embed-scale-rounding", "norm-cast-early", "rope-bf16", "gelu-exact"}
"""What these do is as small as bfloat16's own rounding; the first is right there."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair_of(config, weights, dtype):
    """The reference's model and the framework's, of the same weights, which the dtype can hold."""
    import torch

    from tests.support.framework import framework_model

    rounded = {name: weight.astype(NUMPY[dtype]) for name, weight in weights.items()}
    model = Gemma(config, {name: weight.astype(np.float64) for name, weight in rounded.items()}, None)
    theirs = framework_model(config, {name: weight.astype(np.float32) for name, weight in rounded.items()})
    return model, theirs.to(getattr(torch, dtype))


def captured(theirs, reference):
    from transformers import DynamicCache

    from gemma_np.integrations.transformers import capture_transformers

    records = capture_transformers(theirs, reference.ids, lengths=reference.lengths, cache=DynamicCache())
    return align_dump(Dump("theirs", records, None, None, None), reference).records


@pytest.mark.parametrize("dtype", NUMPY)
@settings(max_examples=70)
@given(data=st.data(), config=configs(), T=st.integers(2, 9), seed=seeds)
def test_right_models_pass(dtype, data, config, T, seed):
    model, theirs = pair_of(config, random_weights(config, seed), dtype)
    ids = random_ids(config, seed, T)
    reference = Reference(model, np.split(ids, np.cumsum(data.draw(splits(T)))[:-1]))
    records = captured(theirs, reference)
    assert set(records) == set(reference.slices)
    for isolate in (False, True):
        rows = compare(Alignment(reference, records, {}), dtype, isolate=isolate)
        assert [row for row in rows if row.status != "OK"] == []


def test_the_frameworks_own_cache_drops_keys():
    from gemma_np.integrations.transformers import capture_transformers

    config, weights, _ = goldens.load("gemma2")
    model, theirs = pair_of(config, weights, "float32")
    ids = random_ids(config, 0, 9)
    reference = Reference(model, [ids[:7], ids[7:8], ids[8:]])
    records = capture_transformers(theirs, ids, lengths=[7, 1, 1])
    assert records["pass.2.layers.0.self_attn.probs"].shape[-1] == config.sliding_window
    rows = compare(align_dump(Dump("theirs", records, None, None, None), reference), "float32")
    assert {row.status for row in rows} == {"OK"}


def state_of(model):
    """Everything that its modules and its config hold, and whose objects these are."""
    modules = {
        name: {key: state_of_value(value) for key, value in vars(part).items()} for name, part in model.named_modules()
    }
    return modules, {key: state_of_value(value) for key, value in vars(model.config).items()}


def state_of_value(value):
    """Dictionaries, of hooks or submodules, by what is in them; everything else by its identity."""
    return {key: id(part) for key, part in value.items()} if isinstance(value, dict) else id(value)


@pytest.mark.parametrize(
    ("model_type", "implementation"), [("gemma", "sdpa"), ("gemma2", "eager"), ("gemma3_text", "sdpa")]
)
def test_the_model_is_left_as_it_was(model_type, implementation):
    from gemma_np.integrations.transformers import capture_transformers

    config, weights, _ = goldens.load(model_type)
    _, theirs = pair_of(config, weights, "float32")
    theirs.set_attn_implementation(implementation)
    before = state_of(theirs)
    capture_transformers(theirs, random_ids(config, 0, 5), lengths=[3, 1, 1])
    assert state_of(theirs) == before


@pytest.mark.parametrize("broken", ["hooks", "forward"])
def test_a_model_that_raises_is_left_as_it_was(broken):
    from gemma_np.integrations.transformers import capture_transformers

    config, weights, _ = goldens.load("gemma2")
    _, theirs = pair_of(config, weights, "float32")
    last = theirs.model.layers[-1].mlp
    if broken == "hooks":
        del last.up_proj
    else:
        last.up_proj.forward = None
    before = state_of(theirs)
    with pytest.raises((AttributeError, TypeError)):
        capture_transformers(theirs, random_ids(config, 0, 5))
    assert state_of(theirs) == before


def mistaken_capture(model_type, names, dtype):
    from tests.support.framework_faults import SOME_PASSES, planted_in_framework

    config, weights, _ = goldens.load(model_type)
    model, theirs = pair_of(config, weights, dtype)
    lengths = [8, 1, 1, 1, 1] if set(names) & set(SOME_PASSES) else [12]
    reference = Reference(model, np.split(random_ids(config, 3, 12), np.cumsum(lengths)[:-1]))
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(planted_in_framework(name, theirs, config))
        return reference, captured(theirs, reference)


@pytest.mark.parametrize(("model_type", "name"), CASES)
def test_a_mistake_in_the_frameworks_code_is_named(model_type, name):
    reference, records = mistaken_capture(model_type, [name], "float32")
    assert [mistake.id for mistake in diagnose(Alignment(reference, records, {}), "float32").mistakes] == [name]
    few = {key: record for key, record in records.items() if "logits" in key}
    assert [mistake.id for mistake in diagnose(Alignment(reference, few, {}), "float32").mistakes] == [name]


@pytest.mark.parametrize(("model_type", "name"), [case for case in CASES if case[1] not in HIDDEN_BY_BFLOAT16])
def test_a_mistake_in_bfloat16_is_named(model_type, name):
    reference, records = mistaken_capture(model_type, [name], "bfloat16")
    assert [mistake.id for mistake in diagnose(Alignment(reference, records, {}), "bfloat16").mistakes] == [name]


def test_two_mistakes_are_named_nine_times_of_ten():
    """Where one undoes or hides the other, naming the one that is left is right."""
    pairs = [(t, *pair) for t in ("gemma", "gemma2", "gemma3_text") for pair in combinations(ids_of(t), 2)]
    missed = []
    chosen = Random(0).sample(pairs, 60)
    for model_type, *pair in chosen:
        reference, records = mistaken_capture(model_type, pair, "float32")
        found = {mistake.id for mistake in diagnose(Alignment(reference, records, {}), "float32").mistakes}
        if not found or not found <= set(pair):
            missed.append((model_type, *pair, found))
    assert len(missed) <= len(chosen) / 10, missed


def ids_of(model_type):
    return [name for kind, name in CASES if kind == model_type]


def test_every_mistake_is_planted_in_the_framework():
    from tests.support.framework_faults import FAULTS

    assert set(FAULTS) == {mistake.id for mistake in CATALOGUE}
