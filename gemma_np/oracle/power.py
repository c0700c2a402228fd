"""Say what a dump cannot show: plant each known mistake in the reference, and see whether the dump's records notice."""

from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.groups import known_plans
from gemma_np.oracle.isolation import Plan, isolated, isolated_run
from gemma_np.oracle.mistakes import CATALOGUE
from gemma_np.oracle.noise import Records, noise_thresholds, relative_errors
from gemma_np.oracle.trace import Reference

_NOTHING = 1e-12


def blind_spots(alignment: Alignment, dtype: str) -> dict[str, str]:
    """Return the known mistakes that would not show in the records of a dump, and why: id -> reason.

    dtype: that of their computation.
    """
    from tqdm import tqdm

    reference, theirs, _ = alignment
    thresholds = noise_thresholds(reference, theirs, dtype, isolated)
    plans = known_plans(reference, isolated_run(reference, {}))
    mistakes = [mistake.id for mistake in CATALOGUE if reference.config.model_type in mistake.models]
    found = {}
    for known in tqdm(mistakes, desc="what could show", unit=" mistakes", delay=2, leave=False):
        if known not in plans:  # the same in this text and config
            found[known] = _no_difference(known, reference)
            continue
        errors = _errors(reference, theirs, plans[known])
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
    return {key: error for key, (error, _) in errors.items()}


def _no_difference(known: str, reference: Reference) -> str:
    """Return why a mistake changes nothing, and what would show it."""
    tokens, window = len(reference.ids), reference.config.sliding_window
    if known.startswith(("decode-", "ring-")) and len(reference.passes) == 1:
        return "there is only one pass; decode some tokens, too"
    if known.startswith(("window-", "ring-")) and window and tokens <= window + 1:
        return f"the text has {tokens} tokens, the window {window}; use at least {window + 2} tokens"
    if known.startswith("qscale-"):
        scalar = reference.config.query_pre_attn_scalar
        return f"it is query_pre_attn_scalar={scalar:g} in this config; use another config"
    return "it makes no difference in this config and text"
