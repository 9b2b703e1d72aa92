"""Whether the figures of plans may stand side by side: their protocol, their disturbances and their constraints."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from autotune.comparison.cell import Reason
from autotune.comparison.same_model import SameModels
from autotune.database.rows import StudyRow
from autotune.measure.flags import explain
from autotune.records.canonical import canonical
from autotune.records.identity import objective_content
from autotune.records.plan import Plan
from autotune.study.identity import measuring

EARLIER = "earlier protocol"
DISTURBED = {"busy_host": "busy host", "shared_device": "shared device", "canary_drift": "unsteady device"}
"""The flags of finals whose figures say more about the moment than about the device."""

Group = tuple[str, str, str]
"""Structure, constraints and serving format of a plan: figures of two groups answer different questions."""


def group_of(plan: Plan, same: SameModels) -> Group:
    """Return the group whose plans may be put side by side; ``same`` joins several graphs of one model."""
    constraints = {key: value for key, value in objective_content(plan.objective).items() if key != "name"}
    return same.get(plan.structure, plan.structure), canonical(constraints), plan.serve_as


def own_reasons(plan: Plan, studies: Mapping[str, StudyRow]) -> Iterator[Reason]:
    """Yield the reasons why a plan's figures stand apart, whatever the other plans are.

    ``studies`` are those of the database by uid.
    """
    row = studies.get(plan.evidence.study or "")
    if row is None:
        text = "the study that found it is not in this database, so its protocol is unknown; tune again to compare"
        yield Reason(name=EARLIER, text=text)
    elif row.conditions is None or row.conditions.measuring != measuring(plan.device):
        text = "it was timed by the rules of another version of autotune; tune again to compare"
        yield Reason(name=EARLIER, text=text)
    for flag in plan.flags:
        if flag in DISTURBED:
            yield Reason(name=DISTURBED[flag], text=explain(flag))
    low, high = plan.interval_ms
    if not low <= plan.latency_ms <= high:
        yield Reason(name="no interval", text="its latency lies outside of its interval; tune again to compare")


def group_to_compare(plans: Sequence[Plan], same: SameModels) -> Group | None:
    """Return the group that most device classes have a plan of; of equal ones that of the newest plan."""
    if not plans:
        return None
    classes = Counter(group for group, _ in {(group_of(plan, same), plan.device.device_class) for plan in plans})
    newest = {group_of(plan, same): plan.created for plan in sorted(plans, key=lambda plan: plan.created)}
    return max(classes, key=lambda group: (classes[group], newest[group], group))


def other_group(plan: Plan, group: Group | None, same: SameModels) -> Iterator[Reason]:
    """Yield the parts in which a plan is of another group than the compared one."""
    if group is None:
        return
    names = ("other structure", "other constraints", "other serving format")
    texts = (
        "its model has another structure, so it is another model of the same name",
        "it was found under other constraints of accuracy",
        f"it is served as {plan.serve_as}, the others as {group[2]}",
    )
    for name, text, own, theirs in zip(names, texts, group_of(plan, same), group, strict=True):
        if own != theirs:
            yield Reason(name=name, text=text)
