"""Groups of alternatives that are planted together: those of one known mistake, and those of which the same is said."""

from collections.abc import Iterator, Mapping

from gemma_np.oracle.alternatives import Alternative, Family, after_first_pass, candidates, likely_members
from gemma_np.oracle.isolation import IsolatedRun, Plan
from gemma_np.oracle.noise import Records
from gemma_np.oracle.operation import Operation
from gemma_np.oracle.trace import Reference

Group = Mapping[str, Alternative | Family]
"""Name of a record -> what is planted there."""


_BY_PASS = ("embedding", "q_rope", "k_rope", ".k", ".v", "scores", "scores_capped", "probs", "context")

Title = tuple[int, str]
"""The rank of a group, and what makes it one."""


def groups_of(
    reference: Reference, theirs: Records, run: IsolatedRun, before: Mapping[str, float]
) -> dict[Title, Group]:
    """Return the groups of alternatives that are planted together, each by its title, in the order of their ranks.

    Ranks: 0: known mistakes; 1: likely numbers, 2: others, 3: all numbers, each for every record of which the same can
    be said; 4 and 5: others and numbers for one kind of record; 6: for its local or its global layers; 7: for one
    record. If all records of the first pass are right, others than known mistakes are planted in the passes after it,
    in the embedding and in the parts of attention that can tell passes apart.
    """
    groups: dict[Title, dict[str, Alternative | Family]] = {}
    only_later = not any(excess > 1 for key, excess in before.items() if not key.startswith("pass."))

    def add(rank: int, title: str, name: str, member: Alternative | Family) -> None:
        groups.setdefault((rank, title), {})[name] = member

    suspects = dict.fromkeys(suspects_of(reference, theirs, before)).keys()
    for name in suspects:
        if only_later and not name.endswith(_BY_PASS):
            continue
        operation = Operation(name, reference, run.inputs, run.computed[name])
        part = operation.part.split(".")[-1].removeprefix("q_").removeprefix("k_")
        layer_type = "" if operation.layer is None else operation.config.layer_types[operation.layer]
        for number, candidate in enumerate(candidates(operation)):
            if candidate.rare:
                continue
            member = after_first_pass(candidate) if only_later else candidate
            if isinstance(member, Family):
                for title in member.together or (f"{number} of {part}",):
                    add(3, title, name, member)
                add(5, f"{number} of {operation.kind}", name, member)
            for single in likely_members(member, operation):
                for title in (single.says, *single.together):
                    add(1 if isinstance(member, Family) else 2, title, name, single)
                add(4, f"{operation.kind}: {single.says}", name, single)
                add(6, f"{operation.kind}: {single.says}: {layer_type}", name, single)
                add(7, f"{name}: {single.says}", name, single)
    known = {(0, known): plan for known, plan in known_plans(reference, run).items() if suspects & plan.keys()}
    return known | dict(sorted(groups.items(), key=lambda item: item[0][0]))


def distinct(groups: Mapping[Title, Group]) -> dict[Title, Group]:
    """Return the first of all groups that plant the same."""
    first: dict[frozenset[tuple[str, str]], tuple[Title, Group]] = {}
    for title, group in groups.items():
        key = frozenset((name, _says(member)) for name, member in group.items())
        first.setdefault(key, (title, group))
    return dict(first.values())


def _says(member: Alternative | Family) -> str:
    return member.says if isinstance(member, Alternative) else f"family {id(member)}"


def known_plans(reference: Reference, run: IsolatedRun) -> dict[str, Plan]:
    """Return the plan of each known mistake, by its id in the catalogue, for all records that it concerns.

    run: of the reference, on no records.
    """
    plans: dict[str, dict[str, Alternative]] = {}
    for operation, _, single in _likely_alternatives(reference, run):
        if single.known:
            plans.setdefault(single.known, {})[operation.name] = single
    return {known: plans[known] for known in plans if " " not in known}


def number_plans(reference: Reference, run: IsolatedRun) -> dict[str, Plan]:
    """Return the plan of each number that is mistaken for the right one, and of each wrong mask, by what it says, for
    all records of which the same can be said.

    run: of the reference, on no records.
    """
    plans: dict[str, dict[str, Alternative]] = {}
    for operation, member, single in _likely_alternatives(reference, run):
        if not member.rare and (isinstance(member, Family) or operation.part == "self_attn.probs"):
            plans.setdefault(single.says, {})[operation.name] = single
    return dict(plans)


def _likely_alternatives(
    reference: Reference, run: IsolatedRun
) -> Iterator[tuple[Operation, Alternative | Family, Alternative]]:
    for name in reference.names:
        operation = Operation(name, reference, run.inputs, run.computed[name])
        for member in candidates(operation):
            for single in likely_members(member, operation):
                yield operation, member, single


def suspects_of(reference: Reference, theirs: Records, before: Mapping[str, float]) -> list[str]:
    """Return the names of the records that a wrong one depends on, in the order of execution, back to the residual
    stream that the dump has."""
    names = reference.names
    given = {reference.slices[key].name for key in theirs}
    suspects = set[str]()
    for key, excess in before.items():
        if excess > 1:
            place = names.index(reference.slices[key].name)
            suspects.add(names[place])
            for name in reversed(names[:place]):
                if name in given and name.endswith(("resid_post", "embedding")):
                    break
                if name not in given:
                    suspects.add(name)
    return [name for name in names if name in suspects]
