"""How often the oracle is right: faults in the framework, by someone who had not read it, and dumps without any.

    python -m tests.benchmarks.oracle
    python -m tests.benchmarks.oracle faults --dtype bfloat16 --held-out
    python -m tests.benchmarks.oracle faults --only logits

A cause is right if it explains the dump and concerns the operation in which the fault was made; it is misnamed if the
dump is explained by others alone. Some faults cannot be told apart from others by logits alone.
"""

import argparse
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import partial, partialmethod
from itertools import product
from multiprocessing import get_context

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tqdm import tqdm

from gemma_np.oracle.diagnosis import Diagnosis, diagnose
from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.noise import Records
from gemma_np.oracle.trace import Reference
from tests.integrations.test_transformers import captured, pair_of
from tests.support import goldens
from tests.support.more_framework_faults import EVERY, FAULTS, Fault, planted
from tests.support.strategies import configs, random_ids, random_weights, seeds, splits

DTYPES = ("float32", "bfloat16", "float16")
KEPT = {
    "every record": ("",),
    "residual stream and logits": ("resid_post", "logits", "logits_capped"),
    "logits": ("logits", "logits_capped"),
}
VERDICTS = ("right", "in part", "unknown", "misnamed", "unseen")
LENGTHS = [8, 1, 1, 1, 1]
PAIRS, CORRECT_RUNS = 60, 500

BY_ID = {fault.id: fault for fault in FAULTS}

Case = tuple[tuple[str, ...], str]
"""The ids of faults planted together, and the model type."""


_SAME_AS = {
    "cap-before-scale": "layers.*.self_attn.scores_capped",
    "down-doubled": "layers.*.mlp.hidden",
    "final-norm-missing": "logits",
    "finalcap-before-head": "logits_capped",
    "gate-up-weights-exchanged": "layers.*.mlp.hidden",
    "heads-interleaved": "layers.*.self_attn.o",
    "last-layer-unused": "layers.*.resid_post",
    "layer-0-twice": "layers.*.resid_post",
    "layers-exchanged": "layers.*.resid_post",
    "layers-reversed": "layers.*.resid_post",
    "norm-eps-too-large": "*norm",
    "norms-of-llama": "layers.*.resid_mid",
    "post-attention-norm-local-missing": "layers.*.resid_mid",
    "post-ff-norm-missing-once": "layers.*.resid_post",
    "pre-ff-norm-missing": "layers.*.mlp.*",
    "rope-not-on-k": "layers.*.self_attn.scores",
    "skip-attention-scaled": "layers.*.resid_post",
    "softmax-base-2": "layers.*.self_attn.scores",
}
"""Faults of which the same can be said of another record: without a norm, what follows reads the norm's input. An
eps of all norms may show in some of them."""


def kinds(found: Diagnosis) -> set[str]:
    """Return the records that are explained, with `*` for the layer."""
    names = (key.split(".", 2)[-1] if key.startswith("pass.") else key for cause in found.causes for key in cause.keys)
    return {_without_layer(name) for name in names}


def _without_layer(name: str) -> str:
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def verdict(faults: Sequence[Fault], found: Diagnosis) -> str:
    """Return right (each fault is found), in part (rounding hides another), unknown, misnamed (all causes are in other
    places) or unseen."""
    if not found.wrong:
        return "unseen"
    if found.unexplained:
        return "unknown"
    places = [(_without_layer(fault.kind), _SAME_AS.get(fault.id, "")) for fault in faults]
    is_found = [any(fnmatchcase(kind, place) for kind in kinds(found) for place in either) for either in places]
    return "right" if all(is_found) else "in part" if any(is_found) else "misnamed"


_IN_ATTENTION = {"q_rope", "k_rope", "scores", "scores_capped", "probs", "context"}
"""What one function of the framework computes: of two faults there, one would replace the other."""


def framework_run(faults: Sequence[Fault], model_type: str, dtype: str) -> tuple[Reference, Records]:
    """Return the reference, and the records of the framework's model with these faults."""
    config, weights, _ = goldens.load(model_type)
    model, theirs = pair_of(config, weights, dtype)
    in_passes = not faults or any(fault.passes for fault in faults)
    lengths = LENGTHS if in_passes else [sum(LENGTHS)]
    ids = np.split(random_ids(config, 3, sum(LENGTHS)), np.cumsum(lengths)[:-1])
    reference = Reference(model, ids)
    with ExitStack() as stack, torch.no_grad():
        for fault in faults:
            stack.enter_context(planted(fault.id, theirs, config))
        return reference, captured(theirs, reference)


def kept_of(records: Records, kept: str) -> Records:
    """Return the records that a dump keeps."""
    return {key: record for key, record in records.items() if key.endswith(KEPT[kept])}


def judged(case: Case, dtype: str, only: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return what is kept, the verdict and what was said, of one case."""
    ids, model_type = case
    faults = [BY_ID[id] for id in ids]
    reference, records = framework_run(faults, model_type, dtype)
    rows = []
    for kept in only:
        found = diagnose(Alignment(reference, kept_of(records, kept), {}), dtype)
        said = "; ".join(cause.says for cause in found.causes)
        rows.append((kept, verdict(faults, found), said))
    return rows


def score(title: str, cases: Sequence[Case], dtype: str, only: Sequence[str]) -> None:
    """Print a table of the verdicts, after the cases that are not right."""
    counts: dict[str, Counter[str]] = {kept: Counter() for kept in only}
    for (ids, model_type), rows in zip(cases, run(partial(judged, dtype=dtype, only=only), cases), strict=True):
        for kept, found, said in rows:
            counts[kept][found] += 1
            if found != "right":
                names = " and ".join(f"{id} in {BY_ID[id].kind}" for id in ids)
                print(f"  {kept}: {found}: {names} ({model_type}): {said}")
    print(f"\n{title}, {dtype}: {len(cases)} cases\n{'':28}" + "".join(f"{name:>10}" for name in VERDICTS))
    for kept, count in counts.items():
        print(f"{kept:28}" + "".join(f"{count[name]:10}" for name in VERDICTS), flush=True)


def run(function: Callable, cases: Sequence) -> Iterator:
    """Yield the results of all cases, in order, with a process for each core."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork"), initializer=_be_quiet) as pool:
        yield from tqdm(pool.map(function, cases), total=len(cases), unit=" cases", leave=False)


def _be_quiet() -> None:
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def single_cases(*, held_out: bool) -> list[Case]:
    """Return each fault in each model that may have it."""
    faults = [fault for fault in FAULTS if fault.held_out == held_out]
    return [((fault.id,), model_type) for fault in faults for model_type in fault.model_types]


def pair_cases(*, held_out: bool) -> list[Case]:
    """Return random pairs of faults in different operations."""
    generator = np.random.default_rng(0)
    cases: list[Case] = []
    while len(cases) < PAIRS:
        model_type = str(generator.choice(EVERY))
        faults = [fault for fault in FAULTS if fault.held_out == held_out and model_type in fault.model_types]
        one, other = (faults[place] for place in generator.choice(len(faults), 2, replace=False))
        parts = {fault.kind.split(".")[-1] for fault in (one, other)}
        if len(parts) == 2 and not parts <= _IN_ATTENTION:
            cases.append(((one.id, other.id), model_type))
    return cases


def false_alarms() -> None:
    """Print how many of the framework's correct runs are called wrong, over random configs, dtypes and passes."""
    runs, alarms = Counter[str](), Counter[str]()

    without_limits = {"deadline": None, "suppress_health_check": list(HealthCheck)}

    @settings(max_examples=CORRECT_RUNS, database=None, derandomize=True, phases=[Phase.generate], **without_limits)
    @given(st.data(), configs(), st.integers(2, 12), seeds, st.sampled_from(DTYPES))
    def diagnosed(data: st.DataObject, config, T: int, seed: int, dtype: str) -> None:
        model, theirs = pair_of(config, random_weights(config, seed), dtype)
        ids = np.split(random_ids(config, seed, T), np.cumsum(data.draw(splits(T)))[:-1])
        reference = Reference(model, ids)
        found = diagnose(Alignment(reference, captured(theirs, reference), {}), dtype)
        runs[dtype] += 1
        alarms[dtype] += bool(found.wrong)

    diagnosed()
    print("\ncorrect runs of the framework")
    for dtype in DTYPES:
        print(f"{dtype:28}{runs[dtype]:6} runs {alarms[dtype]:6} false alarms")


def nonsense() -> None:
    """Print how many dumps of random and of shuffled numbers are explained."""
    cases = list(product(EVERY, DTYPES, KEPT, ("random", "shuffled")))
    explained = Counter(what for case, what in zip(cases, run(explains, cases), strict=True))
    print(f"\nrandom and shuffled dumps: {len(cases)}, {explained[True]} explained")


def explains(case: tuple[str, str, str, str]) -> bool:
    """Return whether a dump of random or shuffled numbers is explained, or called right."""
    model_type, dtype, kept, numbers = case
    generator = np.random.default_rng(0)
    reference, records = framework_run((), model_type, dtype)
    records = {
        key: generator.normal(0, np.std(record[np.isfinite(record)]), record.shape)
        if numbers == "random"
        else generator.permutation(record.ravel()).reshape(record.shape)
        for key, record in kept_of(records, kept).items()
    }
    found = diagnose(Alignment(reference, records, {}), dtype)
    return not (found.unexplained or found.silent)


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = ("faults", "pairs", "correct", "nonsense")
    parser.add_argument("tables", nargs="*", choices=[*tables, []], help=f"of {', '.join(tables)} (all)")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="of faults and pairs (all)")
    parser.add_argument("--only", choices=KEPT, action="append", help="what the dumps keep (all)")
    parser.add_argument("--held-out", action="store_true", help="the third that the oracle was not developed with")
    options = parser.parse_args(arguments)
    chosen = options.tables or tables
    for dtype in options.dtype or DTYPES:
        if "faults" in chosen:
            score("one fault", single_cases(held_out=options.held_out), dtype, options.only or list(KEPT))
        if "pairs" in chosen:
            score("two faults", pair_cases(held_out=options.held_out), dtype, options.only or list(KEPT))
    if "correct" in chosen:
        false_alarms()
    if "nonsense" in chosen:
        nonsense()


if __name__ == "__main__":
    main()
