"""Groups of alternatives that are planted together: those of one known mistake, and those of which the same is said."""

from collections.abc import Iterator, Mapping

from gemma_np.oracle.alternatives import Alternative, Family, candidates, likely_members
from gemma_np.oracle.isolation import IsolatedRun, Plan
from gemma_np.oracle.noise import Records
from gemma_np.oracle.operation import Operation
from gemma_np.oracle.trace import Reference

Group = Mapping[str, Alternative | Family]
"""Name of a record -> what is planted there."""


def groups_of(
    reference: Reference, theirs: Records, run: IsolatedRun, before: Mapping[str, float]
) -> list[tuple[int, str, Group]]:
    """Return the groups of alternatives that are planted together, each with its rank and a title: 0: known mistakes,
    1: families with likely numbers, 2: families, 3: others, all of them for every record of which the same can be said;
    4 and 5: families and others for one kind of record."""
    ranked: dict[tuple[int, str], dict[str, Alternative | Family]] = {}

    def add(rank: int, title: str, name: str, member: Alternative | Family) -> None:
        ranked.setdefault((rank, title), {})[name] = member

    suspects = suspects_of(reference, theirs, before)
    for name in suspects:
        operation = Operation(name, reference, run.inputs, run.computed[name])
        for number, member in enumerate(candidates(operation)):
            if member.rare:
                continue
            if isinstance(member, Family):
                title = f"family {number} of {operation.part.split('.')[-1].removeprefix('q_').removeprefix('k_')}"
                add(2, title, name, member)
                add(4, f"{title} {operation.kind}", name, member)
            for single in likely_members(member, operation):
                add(1 if isinstance(member, Family) else 3, single.says, name, single)
                add(5, f"{single.says} {operation.kind}", name, single)
    groups: list[tuple[int, str, Group]] = [(0, known, plan) for known, plan in known_plans(reference, run).items()]
    groups += [(rank, title, group) for (rank, title), group in sorted(ranked.items(), key=lambda item: item[0][0])]
    unique: dict[frozenset[tuple[str, str]], tuple[int, str, Group]] = {}
    for rank, title, group in groups:
        if not group.keys().isdisjoint(suspects):
            key = frozenset((name, _title(member)) for name, member in group.items())
            unique.setdefault(key, (rank, f"{rank} {title}", group))
    return list(unique.values())


def _title(member: Alternative | Family) -> str:
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
