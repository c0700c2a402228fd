"""Say what a dump cannot show: plant each known mistake in the reference, and see whether the dump's records notice."""

from collections.abc import Mapping

import numpy as np

from gemma_np.oracle.isolation import Plan, isolated_run
from gemma_np.oracle.noise import Records, relative_errors
from gemma_np.oracle.search import known_plans
from gemma_np.oracle.trace import Reference

_NOTHING = 1e-12


def blind_spots(reference: Reference, theirs: Records, thresholds: Mapping[str, float], dtype: str) -> dict[str, str]:
    """Return the known mistakes that would not show in these records, and why: id -> reason.

    thresholds: of each record compared with what the reference computes from the other records.
    """
    from tqdm import tqdm

    plans = known_plans(reference, isolated_run(reference, {}).inputs)
    found = {}
    for known, plan in tqdm(plans.items(), desc="what could show", unit=" mistakes", delay=2, leave=False):
        errors = _errors(reference, theirs, plan)
        if all(error <= thresholds[key] for key, error in errors.items()):
            is_nothing = max(errors.values(), default=0.0) <= _NOTHING
            found[known] = _no_difference(known, reference) if is_nothing else f"smaller than the rounding of {dtype}"
    return found


def _errors(reference: Reference, theirs: Records, plan: Plan) -> dict[str, float]:
    """Return the errors of the records that an implementation with this mistake would have, given its own inputs."""
    mistaken = isolated_run(reference, {}, plan).inputs
    records = {key: reference.slices[key].select(mistaken[reference.slices[key].name]) for key in theirs}
    expected = isolated_run(reference, records).expected
    errors = relative_errors(reference, records, expected)
    return {key: error if np.isfinite(error) else np.inf for key, (error, _) in errors.items()}


def _no_difference(known: str, reference: Reference) -> str:
    """Return why a mistake changes nothing."""
    tokens, window = len(reference.ids), reference.config.sliding_window
    if "window" in known and window and tokens <= window:
        return f"the text has {tokens} tokens, the window {window}"
    if known.startswith(("decode-", "ring-")) and len(reference.passes) == 1:
        return "there is only one pass"
    if known.startswith("ring-") and window and tokens <= window:
        return f"the text has {tokens} tokens, the window {window}"
    if known.startswith("qscale-"):
        return f"it is query_pre_attn_scalar={reference.config.query_pre_attn_scalar:g} in this config"
    return "it makes no difference in this config and text"
