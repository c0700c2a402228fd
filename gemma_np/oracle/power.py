"""Say what a dump cannot show: plant each known mistake in the reference, and see whether the dump's records notice."""

from collections.abc import Mapping

from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.groups import known_plans
from gemma_np.oracle.isolation import IsolatedRun, Plan, isolated, isolated_run
from gemma_np.oracle.mistakes import CATALOGUE
from gemma_np.oracle.noise import Records, noise_thresholds, relative_error, relative_errors
from gemma_np.oracle.operation import Operation
from gemma_np.oracle.trace import Reference
from gemma_np.progress import progress_bar

_NOTHING = 1e-12


def blind_spots(alignment: Alignment, dtype: str) -> dict[str, str]:
    """Return the known mistakes that would not show in the records of a dump, and why: id -> reason.

    dtype: that of their computation. This takes some 10 forward passes, and two for each mistake that does not show in
    the first record that it changes.
    """
    reference, theirs, _ = alignment
    thresholds = noise_thresholds(reference, theirs, dtype, isolated)
    right = isolated_run(reference, {})
    plans = known_plans(reference, right)
    mistakes = [mistake.id for mistake in CATALOGUE if reference.config.model_type in mistake.models]
    found = {}
    for known in progress_bar(mistakes, desc="what could show", unit="mistakes"):
        if known not in plans:  # the same in this text and config
            found[known] = _no_difference(known, reference)
        elif not _shows_at_once(reference, thresholds, plans[known], right):
            mistaken = isolated_run(reference, {}, plans[known])
            errors = _errors(reference, theirs, mistaken)
            if all(error <= thresholds[key] for key, error in errors.items()):
                found[known] = _reason(known, reference, dtype, max(errors.values()), _differ(mistaken, right))
    return found


def _shows_at_once(reference: Reference, thresholds: Mapping[str, float], plan: Plan, right: IsolatedRun) -> bool:
    """Return whether a mistake shows in the first record that it changes, whose inputs are right."""
    name = next(name for name in reference.names if name in plan)
    value = plan[name].compute(Operation(name, reference, right.inputs, right.computed[name]))
    return any(
        relative_error(own.select(value), own.select(right.computed[name]), own.masked)[0] > thresholds[key]
        for key, own in reference.slices.items()
        if own.name == name and key in thresholds
    )


def _errors(reference: Reference, theirs: Records, mistaken: IsolatedRun) -> dict[str, float]:
    """Return the errors of the records that an implementation with a mistake would have, given its own inputs."""
    records = {key: reference.slices[key].select(mistaken.inputs[reference.slices[key].name]) for key in theirs}
    expected = isolated_run(reference, records).expected
    errors = relative_errors(reference, records, expected)
    return {key: error for key, (error, _) in errors.items()}


def _differ(mistaken: IsolatedRun, right: IsolatedRun) -> bool:
    """Return whether a mistake changes any record at all."""
    return any(relative_error(mistaken.inputs[name], value)[0] > _NOTHING for name, value in right.inputs.items())


def _reason(known: str, reference: Reference, dtype: str, error: float, differs: bool) -> str:
    """Return why a mistake that is planted does not show."""
    if error > _NOTHING:
        return f"smaller than the rounding of {dtype}"
    return "no record here depends on it; keep more records" if differs else _no_difference(known, reference)


def _no_difference(known: str, reference: Reference) -> str:
    """Return why a mistake changes nothing, and what would show it."""
    tokens, config = len(reference.ids), reference.config
    window, cap = config.sliding_window, config.attn_logit_softcapping
    if known.startswith(("decode-", "ring-")) and len(reference.passes) == 1:
        return "there is only one pass; decode some tokens, too"
    if known.startswith(("window-", "ring-")) and window and tokens <= window + 1:
        has = f"{tokens} token{'s' * (tokens > 1)}"
        return f"the text has {has}, the window {window}; use at least {window + 2} tokens"
    if known == "embed-scale-rounding":
        return f"sqrt(hidden_size) is {config.hidden_size**0.5:g}, exact in bfloat16; use another config"
    if known.startswith("qscale-"):
        return f"it is query_pre_attn_scalar={config.query_pre_attn_scalar:g} in this config; use another config"
    if known == "gqa-tile":
        heads = f"num_attention_heads={config.num_attention_heads}, num_key_value_heads={config.num_key_value_heads}"
        return f"there is one way to group heads with {heads}; use another config"
    if known.startswith("rope-scale-") and config.rope_scaling_factor == 1:
        return "rope_scaling_factor is 1 in this config; use another config"
    if tokens == 1:
        return "there is one token, at position 0, which sees only itself; use more tokens"
    if known == "attncap-after-mask":
        return (
            f"no masked key gets a probability for a score of {-cap if cap else 0:g}; use a config with a smaller cap"
        )
    return "it makes no difference in this config and text"
