"""What a trace cannot show is said beforehand: what is listed passes when planted, what is not listed is seen."""

import dataclasses
import json
import shlex

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from gemma_np import Gemma, GemmaError, load
from gemma_np.cli import main
from gemma_np.compression.quantization import Scheme
from gemma_np.compression.quantize_model import quantize_model
from gemma_np.config import RELEASED
from gemma_np.oracle import trace_review
from gemma_np.oracle.comparison import compare
from gemma_np.oracle.diagnosis import diagnose
from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.files import compare_files, plan_passes
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes
from gemma_np.oracle.noise import rounding_tape
from gemma_np.oracle.trace import Reference
from gemma_np.oracle.trace_review import DTYPES, TraceReview, describe_review, is_quick, review_trace
from tests.support import tiny
from tests.support.strategies import configs, random_ids, random_weights, seeds

BY_ID = {mistake.id: mistake for mistake in CATALOGUE}


def hidden(model, passes, pattern="*"):
    """Return what a trace hides, without looking for proposals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_review, "_candidates", lambda *_: iter(()))
        return review_trace(model, passes, pattern=pattern).blind_spots


@given(configs("gemma2") | configs("gemma3_text"), st.integers(1, 9), seeds)
def test_a_text_longer_than_the_window_shows_its_mistakes(config, tokens, seed):
    model = Gemma(config, random_weights(config, seed), None)
    spots = hidden(model, [random_ids(config, seed, tokens)])["float32"]
    for known in ("window-off-by-one", "window-ignored", "window-all-layers"):
        assert (known in spots) == (tokens <= config.sliding_window)
        assert known not in spots or f"the window {config.sliding_window}; use at least" in spots[known]


@given(configs("gemma2"), st.sampled_from(["D / H", "h", "both", "none"]), seeds)
def test_query_scales_that_differ_show(config, equal, seed):
    H, h = config.num_attention_heads, config.head_dim
    hidden_size = H * h if equal == "both" else config.hidden_size  # otherwise H * 5 or H * 7; h is even
    scalar = {"D / H": hidden_size // H, "h": h, "both": h, "none": 3}[equal]
    config = dataclasses.replace(config, hidden_size=hidden_size, query_pre_attn_scalar=scalar)
    spots = hidden(Gemma(config, random_weights(config, seed), None), [random_ids(config, seed, 5)])["float32"]
    assert ("qscale-hidden-over-heads" in spots) == (equal in ("D / H", "both"))
    assert ("qscale-head-dim" in spots) == (equal in ("h", "both"))


def test_only_later_passes_show_mistakes_of_the_cache():
    model = tiny.gemma()
    cached = {"decode-positions", "decode-mask-index", "ring-positions"}
    assert cached <= hidden(model, [[2, 5, 9, 40, 7, 31, 8, 11]])["float32"].keys()
    assert cached.isdisjoint(hidden(model, [[2, 5, 9, 40, 7, 31], [8], [11]])["float32"])


@settings(max_examples=10)
@given(
    configs(),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.sampled_from(["*", "*.resid_post", "*logits*", "layers.1.*"]),
    st.sampled_from(DTYPES),
    seeds,
)
def test_what_is_listed_passes_and_what_is_not_is_seen(config, lengths, pattern, dtype, seed):
    """The mistakes are planted in the code, not in the records, and every value is rounded to the dtype."""
    ids = np.split(random_ids(config, seed, sum(lengths)), np.cumsum(lengths)[:-1])
    reference = Reference(Gemma(config, random_weights(config, seed, np.float64), None), ids)
    spots = hidden(reference.model, ids, pattern)[dtype]
    keys = [own.key for own in reference.matching(pattern)]
    for mistake in CATALOGUE:
        if config.model_type not in mistake.models:
            continue
        with inject_mistakes([mistake], config, lengths), np.errstate(all="ignore"):
            records = reference.records(rounding_tape(dtype))
        theirs = Alignment(reference, {key: records[key] for key in keys}, {})
        rows = compare(theirs, dtype, isolate=True)
        assert any(row.differs for row in rows) == (mistake.id not in spots), mistake.id
        if mistake.id in spots:
            assert not any(row.differs for row in compare(theirs, dtype)), mistake.id
            assert not diagnose(theirs, dtype).wrong, mistake.id


def test_a_mistake_that_no_record_depends_on():
    spots = hidden(tiny.gemma(), [[2, 5, 9, 40, 7]], "embedding")["float32"]
    assert spots["silu"] == "no record here depends on it; keep more records"
    assert "embed-scale-absent" not in spots


@pytest.mark.parametrize("name", ["shakespeare-1m", "shakespeare-gemma1", "shakespeare-gemma3"])
def test_proposals_show_what_they_promise(name, tmp_path, monkeypatch):
    """Each is written by the command that the options say, and hides what was said of it; what it shows, it shows."""
    monkeypatch.chdir(tmp_path)
    assert main(["conformance", "-o", "kit"]) == 0
    model = load(name)
    review = review_trace(model, [[2, 5, 9]], pattern="logits")
    assert len(review.proposals) == 2
    before = review.blind_spots["float32"].keys()
    for proposal in review.proposals:
        before_them = ["trace", "--model", name, "--filter", "logits", "--force", "-o", "ref.safetensors"]
        words = [*before_them, *shlex.split(proposal.options)]
        assert main(words) == 0
        with safe_open("ref.safetensors", "numpy") as file:
            metadata = file.metadata()
        passes, other = json.loads(metadata["passes"]), load(metadata["model"])
        assert hidden(other, passes) == proposal.blind_spots
        for known in before - proposal.blind_spots["float32"].keys():
            with inject_mistakes([BY_ID[known]], other.config, [len(ids) for ids in passes]):
                records = Reference(other, passes).records()
            save_file({key: np.ascontiguousarray(record) for key, record in records.items()}, "theirs.safetensors")
            rows = compare_files("ref.safetensors", "theirs.safetensors")
            assert any(row.differs for row in rows), known
        before &= proposal.blind_spots["float32"].keys()
    assert before <= {"qscale-head-dim"}  # in Gemma 1 query_pre_attn_scalar is head_dim


def test_a_proposal_shows_something_new():
    """Each one shows something that neither the trace nor an earlier one shows, and none is made when all is shown."""
    config = tiny.config()
    config = dataclasses.replace(config, head_dim=6, query_pre_attn_scalar=5)
    model = Gemma(config, random_weights(config, 0), None)
    review = review_trace(model, plan_passes(model, [2, 5, 9, 40, 7, 31, 8, 11], decode=4))
    assert review.blind_spots["float32"] == {}
    seen = set(review.blind_spots["bfloat16"])
    for proposal in review.proposals:
        assert seen - proposal.blind_spots["bfloat16"].keys()
        seen &= proposal.blind_spots["bfloat16"].keys()
    twice = [("--decode 4", model, plan_passes(model, [2, 5, 9], decode=4))] * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_review, "_candidates", lambda *_: iter(twice))
        assert len(review_trace(model, [[2]]).proposals) == 1


def test_quantized_models():
    """The reference has the weights that they stand for."""
    model = tiny.gemma(hidden_size=16)
    model = dataclasses.replace(model, weights=dict(quantize_model(model, Scheme("int8"), "round")))
    ids = [[2, 5, 9, 40]]
    assert hidden(model, ids) == hidden(model.dequantized(), ids)


def test_a_longer_text_is_proposed_where_it_fits():
    """Not beyond the context, and not where it would take much longer than the trace."""
    short = tiny.gemma(max_position_embeddings=11)
    assert len(review_trace(short, [[2, 5]]).proposals) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_review, "_QUICK", 0)
        assert len(review_trace(tiny.gemma(), [[2, 5]]).proposals) == 1
    assert len(review_trace(tiny.gemma(max_position_embeddings=12), [[2, 5]]).proposals) == 2


@pytest.mark.parametrize(("pattern", "most"), [("*", 60), ("logits", 160), ("embedding", 160)])
def test_the_number_of_forward_passes_is_limited(pattern, most, monkeypatch):
    count, run = [], Reference.run
    monkeypatch.setattr(Reference, "run", lambda self, tape: (count.append(1), run(self, tape)))
    hidden(tiny.gemma("gemma2"), [[2, 5, 9, 40, 7]], pattern)
    assert 20 < len(count) <= most


def test_the_report():
    assert describe_review(TraceReview({"float32": {}, "bfloat16": {}}, [])) == [
        "This trace shows every known mistake, in float32 and bfloat16."
    ]
    spots = {"float32": {"silu": "for A"}, "bfloat16": {"silu": "for A", "gelu-exact": "for B"}}
    proposal = trace_review.Proposal("--ids 2-9", {"float32": {}, "bfloat16": {"gelu-exact": "for B"}})
    assert describe_review(TraceReview(spots, [proposal])) == [
        "This trace cannot show these known mistakes:",
        "  silu: for A",
        "  gelu-exact in bfloat16: for B",
        "With --ids 2-9 it shows:",
        "  silu",
        "No other trace that was tried shows:",
        "  gelu-exact in bfloat16",
    ]


def test_the_command_reviews_what_is_quick(tmp_path, monkeypatch, capsys):
    tiny.gemma().save(tmp_path / "model")
    words = ["trace", "--model", str(tmp_path / "model"), "--ids", "2,5-8", "-o", str(tmp_path / "a.safetensors")]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert "records of 5 tokens" in err
    assert "This trace cannot show these known mistakes:\n" in err
    monkeypatch.setattr(trace_review, "_QUICK", 0)
    assert main([*words, "--force"]) == 0
    err = capsys.readouterr().err
    assert "cannot show these" not in err
    assert "--blind-spots says which known mistakes it cannot show" in err
    assert main([*words, "--force", "--blind-spots"]) == 0
    assert "This trace cannot show these known mistakes:\n" in capsys.readouterr().err
    assert main([*words, "--force", "--blind-spots", "--gradients"]) == 2
    assert "--blind-spots: given with --gradients" in capsys.readouterr().err


def test_large_models_are_not_quick():
    assert is_quick(load().config, [[2, 5, 9]])
    assert not is_quick(load().config, [range(200)])
    assert not is_quick(RELEASED["gemma-2-2b"], [[2, 5, 9]])


def test_a_pattern_that_matches_nothing():
    with pytest.raises(GemmaError, match="matches no record"):
        review_trace(tiny.gemma(), [[2, 5]], pattern="nothing")


@pytest.mark.parametrize("ids", ["8-5", "2-", "2-x", "0-99999999999", "--5", "1-2-3"])
def test_ids_that_are_no_range(ids, tmp_path, capsys):
    assert main(["trace", "--ids", f"2,{ids}", "-o", str(tmp_path / "a.safetensors")]) == 2
    assert "expected whole numbers separated by commas" in capsys.readouterr().err
