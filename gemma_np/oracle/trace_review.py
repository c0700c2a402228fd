"""Review a trace before anyone works with it: which known mistakes it could not show, and which other trace could.

Nothing is estimated: the mistakes are planted in the records of the trace, and in those of each proposal. A review of
one of them takes some 40 forward passes over its tokens if it has all records, and at most 160.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.gemma import Gemma
from gemma_np.oracle.conformance_kit import CONFIGS, kit_model
from gemma_np.oracle.diagnosis import ranges
from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.files import plan_passes
from gemma_np.oracle.mistakes import CATALOGUE
from gemma_np.oracle.power import blind_spots
from gemma_np.oracle.trace import Passes, Reference

DTYPES = ("float32", "bfloat16")
"""The dtypes of the implementations that a trace is reviewed for."""

_QUICK = 2e8  # multiply-adds of a forward pass
_DECODED = 4
_FEWEST = 8  # tokens of a proposal; it has at least two more than the window
_KIT_IDS = range(2, 14)

BlindSpots = Mapping[str, Mapping[str, str]]
"""Dtype -> known mistakes that would not show, and why: id -> reason."""


class Proposal(NamedTuple):
    """A trace that shows more."""

    options: str  # of gemma-np trace
    blind_spots: BlindSpots


class TraceReview(NamedTuple):
    """What a trace cannot show, and traces that show some of it."""

    blind_spots: BlindSpots
    proposals: list[Proposal]


def is_quick(config: GemmaConfig, passes: Passes) -> bool:
    """Return whether `review_trace` takes a few seconds at most: a pass has no more than 2e8 multiply-adds."""
    return _cost(config, sum(map(len, passes))) <= _QUICK


def _cost(config: GemmaConfig, tokens: int) -> float:
    """Return the multiply-adds of a forward pass: those with weights, and those of scores and contexts."""
    queries = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return tokens * (sum(config.parameter_count().values()) + 2 * tokens * queries)


def review_trace(model: Gemma, passes: Passes, *, pattern: str = "*") -> TraceReview:
    """Return what a trace of these passes cannot show, and what other traces can.

    pattern: as for `write_trace`. The proposals are a longer text with cached decoding for the same model, unless it
    would take much longer than the trace, and a model of the conformance kit. Each shows something that neither the
    trace nor the proposals before it show. Weights are copied to float64.

    Raises GemmaError when the pattern matches no record.
    """
    own = _blind_spots(model, passes, pattern)
    hidden, proposals = _pairs(own), []
    for options, other, other_passes in _candidates(model, passes, pattern):
        if not hidden:
            break
        proposal = Proposal(options, _blind_spots(other, other_passes, "*"))
        if hidden - _pairs(proposal.blind_spots):
            hidden &= _pairs(proposal.blind_spots)
            proposals.append(proposal)
    return TraceReview(own, proposals)


def _blind_spots(model: Gemma, passes: Passes, pattern: str) -> BlindSpots:
    exact = {name: np.asarray(weight, np.float64) for name, weight in model.dequantized().weights.items()}
    reference = Reference(replace(model, weights=exact), passes)
    every_record = reference.records()
    records = {own.key: every_record[own.key] for own in reference.matching(pattern)}
    return {dtype: blind_spots(Alignment(reference, records, {}), dtype) for dtype in DTYPES}


def _pairs(spots: BlindSpots) -> set[tuple[str, str]]:
    """Return what is hidden as pairs of a mistake and a dtype."""
    return {(known, dtype) for dtype, hidden in spots.items() for known in hidden}


def _candidates(model: Gemma, passes: Passes, pattern: str) -> Iterator[tuple[str, Gemma, Passes]]:
    """Yield traces of all records that may show more: options, model and passes."""
    ids = [token for one in passes for token in one]
    longer = _lengthened(ids, model.config)
    tokens = len(longer) + _DECODED
    every_record = "" if pattern == "*" else " --filter '*'"
    fits = tokens <= model.config.max_position_embeddings
    if fits and _cost(model.config, tokens) <= max(_QUICK, 2 * _cost(model.config, len(ids))):
        options = f"--ids {ranges(longer)} --decode {_DECODED}{every_record}"
        yield options, model, plan_passes(model, longer, decode=_DECODED)
    name = next(name for name, config in CONFIGS.items() if config.model_type == model.config.model_type)
    options = f"--model kit/models/{name} --ids {ranges(_KIT_IDS)} --decode {_DECODED}{every_record}"
    yield options, kit_model(name), plan_passes(kit_model(name), _KIT_IDS, decode=_DECODED)


def _lengthened(ids: Sequence[int], config: GemmaConfig) -> list[int]:
    """Return token ids with others after them, until there are two more than the window."""
    first = config.vocab_size // 4  # past control tokens and bytes
    missing = max(_FEWEST, (config.sliding_window or 0) + 2) - len(ids)
    return [*ids, *(first + place % (config.vocab_size - first) for place in range(missing))]


def describe_review(review: TraceReview) -> list[str]:
    """Return the lines of a report: what the trace cannot show and why, what shows it, and what nothing shows."""
    hidden = _pairs(review.blind_spots)
    if not hidden:
        return [f"This trace shows every known mistake, in {' and '.join(DTYPES)}."]
    by_reason: dict[str, set[tuple[str, str]]] = {}
    for dtype, spots in review.blind_spots.items():
        for known, reason in spots.items():
            by_reason.setdefault(reason, set()).add((known, dtype))
    lines = ["This trace cannot show these known mistakes:"]
    lines += [f"  {_listed(pairs)}: {reason}" for reason, pairs in by_reason.items()]
    for proposal in review.proposals:
        shown = hidden - _pairs(proposal.blind_spots)
        hidden -= shown
        after = " (after gemma-np conformance -o kit)" if "--model kit/" in proposal.options else ""
        lines += [f"With {proposal.options}{after} it shows:", f"  {_listed(shown)}"]
    if hidden:
        lines += ["No other trace that was tried shows:", f"  {_listed(hidden)}"]
    return lines


def _listed(pairs: set[tuple[str, str]]) -> str:
    """Return mistakes and dtypes in words: "silu, gelu-exact; rope-bf16 in bfloat16"."""
    by_dtypes: dict[tuple[str, ...], list[str]] = {}
    for mistake in CATALOGUE:
        dtypes = tuple(dtype for dtype in DTYPES if (mistake.id, dtype) in pairs)
        by_dtypes.setdefault(dtypes, []).append(mistake.id)
    by_dtypes.pop((), None)
    both, single = ", ".join(by_dtypes.pop(DTYPES, [])), sorted(by_dtypes.items())
    return "; ".join([both] * bool(both) + [f"{', '.join(ids)} in {dtypes[0]}" for dtypes, ids in single])
