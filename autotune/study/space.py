"""The candidates that a study admits, and the choice of the trials that enter the finals."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from autotune import registry
from autotune.errors import RequestError, SpaceError
from autotune.model.file_kind import TORCH
from autotune.records.configuration import Configuration, Scalar
from autotune.records.search_space import Constraint, SearchSpace
from autotune.records.trial import Trial
from autotune.records.workload import Workload
from autotune.study.request import StudyRequest

log = logging.getLogger(__name__)

FINALISTS = 8

OUTCLASSED, IN_REACH = 2.0, 1.5
"""Latencies in screening, as multiples of the best, above which a candidate does not enter the finals.

A default that is slower than OUTCLASSED times the best has certainly lost; any other candidate has to be within
IN_REACH. In ten finals on an H200 the ratio of two candidates differed by 19% or more between two processes in a tenth
of the pairs. Loading a third of the finalists took longer than timing them.
"""


CARRIED = 4.0
"""The same for a plan that is carried from another device class. A slower one would use up the time of the finals."""


def is_todays(configuration: Configuration, request: StudyRequest, *, stand_in: bool = False) -> bool:
    """Return true if a configuration is the model as its user runs it today (on a CPU: at some thread count).

    With ``stand_in``, return true if it is the model's captured graph in eager mode, which takes its place if the
    user's own module fails.
    """
    if request.model_format != TORCH:
        return registry.is_own_way(configuration, request.device, request.model_format)
    has_factory = request.has_module and not stand_in
    return registry.is_baseline(configuration, has_factory=has_factory)


def is_baseline(configuration: Configuration, request: StudyRequest, *, stand_in: bool = False) -> bool:
    """Return true if every speedup is measured against a configuration: today's way to run the model.

    In a study for a serving format that is the format's plainest file. Today's way takes part beside it, but cannot be
    the plan: :func:`is_unserved`.
    """
    if request.serve_as == "any":
        return is_todays(configuration, request, stand_in=stand_in)
    return registry.is_plain_export(configuration, request.serve_as, request.device)


def is_unserved(configuration: Configuration, request: StudyRequest) -> bool:
    """Return true if a configuration is not in the study's serving format, and so can be no plan."""
    return request.serve_as != "any" and not registry.is_served(configuration, request.serve_as, request.device)


def stand_ins(tried: Sequence[Trial], request: StudyRequest) -> list[Configuration]:
    """Return the captured graph for each way of today that was tried, if all of them have failed; else nothing.

    A module may fail for reasons of its own, such as a factory that works only on the machine of its author.
    """
    own = [trial for trial in tried if is_todays(trial.configuration, request)]
    if not request.has_module or not own or any(trial.state != "failed" for trial in own):
        return []
    return [
        Configuration.of(trial.configuration.backend, {**dict(trial.configuration.values), "form": "graph"})
        for trial in own
    ]


def search_spaces(request: StudyRequest, workload: Workload | None) -> list[SearchSpace]:
    """Return the spaces of the backends that take part, limited to the study's precisions; the baseline's is the first.

    Raises RequestError for a backend that was requested and does not work here, SpaceError if no candidate besides the
    baseline is left.
    """
    admitted = _admitted_backends(request)
    spaces = []
    for name in _fitting_backends(request):
        backend = registry.backend(name)
        availability = backend.probe(request.device)
        if not availability.works:
            if request.backends is not None and name in request.backends:
                raise RequestError(
                    f"backend {name} was asked for and does not work on {request.device.name}",
                    found=availability.reason, expected="an installed backend", run=availability.remedy,
                )  # fmt: skip
            log.info("backend %s takes no part: %s", name, availability.reason)
            continue
        space = backend.space(request.device, workload, has_factory=request.has_module)
        space = _narrow(space, request, whole=name in admitted)
        if space.defaults or any(True for _ in space):
            spaces.append(space)
    # The search tries first defaults in this order, and without the baseline's trial nothing can be compared.
    spaces.sort(key=lambda space: not any(is_baseline(default, request) for default in space.defaults))
    candidates = (configuration for space in spaces for configuration in space)
    if not any(_may_win(one, request, admitted) for one in candidates):
        precision = "any precision" if request.precisions is None else f"precision {', '.join(request.precisions)}"
        backends = ", ".join(sorted(admitted or request.backends or ()))
        raise SpaceError(
            f"the search space of {request.name} leaves no candidate on {request.device.name}",
            found=f"a model in {request.model_format}; backends {backends or 'none'}; {precision}; "
            f"serve_as {request.serve_as}",
            expected="at least one candidate besides the baseline",
            run="the study with a wider space (more backends or precisions)",
        )
    return spaces


def _may_win(configuration: Configuration, request: StudyRequest, admitted: Collection[str]) -> bool:
    """Return true if a search for a configuration is worth it: for a serving format its plainest file is, too."""
    if request.serve_as != "any":
        return configuration.backend in admitted and not is_unserved(configuration, request)
    return not is_baseline(configuration, request)


def participants(request: StudyRequest) -> list[str]:
    """Return the names of the backends that a study admits and that work here."""
    admitted, device = _admitted_backends(request), request.device
    return [name for name in registry.names() if name in admitted and registry.backend(name).probe(device).works]


def untried(request: StudyRequest, trials: Sequence[Trial]) -> tuple[str, ...]:
    """Return the names of the backends that work here and offer a configuration to the study, and have no trial."""
    tried = {trial.configuration.backend for trial in trials}
    admitted = _admitted_backends(request)
    left = []
    for name in participants(request):
        if name not in tried:
            space = registry.backend(name).space(request.device, None, has_factory=request.has_module)
            if any(True for _ in _narrow(space, request, whole=name in admitted)):
                left.append(name)
    return tuple(left)


def choose_finalists(
    complete: Sequence[Trial],
    baselines: Iterable[str],
    defaults: Sequence[Configuration],
    disturbed: Collection[str] = frozenset(),
    carried: Collection[str] = frozenset(),
    unserved: Collection[str] = frozenset(),
) -> list[Trial]:
    """Return the trials that enter the finals, fastest first.

    These enter: baselines that are in reach of the fastest baseline, defaults that are not outclassed, the best of
    every backend, and the best in full precision. Then the best overall that are in reach of the first fill up to eight
    finalists besides the baselines; there are more if more must enter.

    ``disturbed`` are the uids of trials during whose whole screening other processes used the device. Their latency is
    unknown, so all baselines and defaults among them enter. ``carried`` are the uids of trials of carried plans, which
    enter unless they are slower than :data:`CARRIED` times the best. Of the ``unserved``, which can be no plan, the
    fastest enters, to be compared with.
    """
    ranked = [trial for trial in complete if trial.ranked_by is not None]
    ranked.sort(key=lambda trial: (trial.ranked_by, trial.uid))
    beside = [trial for trial in ranked if trial.uid in set(unserved)][:1]
    ranked = [trial for trial in ranked if trial.uid not in set(unserved)]
    own = [trial for trial in ranked if trial.uid in set(baselines)]
    base = {trial.uid for trial in _within(own, IN_REACH)} | {trial.uid for trial in own if trial.uid in disturbed}
    ranked = [trial for trial in ranked if trial.uid in base or trial.uid not in set(baselines)]
    default_digests = {configuration.digest for configuration in defaults}
    in_class = {trial.uid for trial in _within(ranked, OUTCLASSED)} | set(disturbed)
    default_trials = [trial for trial in ranked if trial.configuration.digest in default_digests]
    must = base | {trial.uid for trial in default_trials if trial.uid in in_class}
    must |= {trial.uid for trial in _within(ranked, CARRIED) if trial.uid in set(carried)}
    for precision in (None, "fp32"):
        seen: set[str] = set()
        for trial in ranked:
            fits = precision is None or trial.configuration.get("precision", "") == precision
            if fits and trial.configuration.backend not in seen:
                seen.add(trial.configuration.backend)
                if precision is None or len(seen) == 1:
                    must.add(trial.uid)
    for trial in _within(ranked, IN_REACH):
        if len(must - base) >= FINALISTS:
            break
        must.add(trial.uid)
    return [*(trial for trial in ranked if trial.uid in must), *beside]


def _within(ranked: Sequence[Trial], factor: float) -> list[Trial]:
    """Return those of the trials (fastest first) that take at most ``factor`` times as long as the first."""
    return [trial for trial in ranked if (trial.ranked_by or 0.0) <= factor * (ranked[0].ranked_by or 0.0)]


def baseline_backends(request: StudyRequest) -> tuple[str, ...]:
    """Return the names of the backends that may run a model as it is run today."""
    return registry.baselines() if request.model_format == TORCH else registry.building_from(request.model_format)


def _fitting_backends(request: StudyRequest) -> tuple[str, ...]:
    """Return the names of the backends that take models of the request's format."""
    return registry.names() if request.model_format == TORCH else registry.building_from(request.model_format)


def _admitted_backends(request: StudyRequest) -> set[str]:
    installed, fitting = set(registry.names()), set(_fitting_backends(request))
    requested = fitting if request.backends is None else set(request.backends)
    if unknown := sorted(requested - installed):
        raise RequestError(f"unknown backend {', '.join(unknown)}", expected=f"one of {', '.join(sorted(installed))}")
    if unfit := sorted(requested - fitting):
        raise RequestError(
            f"backend {', '.join(unfit)} was asked for, for a model in {request.model_format}",
            found="a backend that builds from graphs of torch",
            expected=f"some of {', '.join(sorted(fitting))}, or the model as a torch module",
        )
    return requested if request.serve_as == "any" else requested & set(registry.serving_formats()[request.serve_as])


def _narrow(space: SearchSpace, request: StudyRequest, *, whole: bool) -> SearchSpace:
    """Limit a space to the baseline, today's way and, if it is ``whole``, what the study admits."""
    backend = space.backend

    def baseline(values: Mapping[str, Scalar]) -> bool:
        configuration = Configuration.of(backend, values)
        return is_baseline(configuration, request) or is_todays(configuration, request)

    constraints = list(space.constraints)
    if whole and request.serve_as != "any":
        constraints.append(
            Constraint(
                reason=f"a server of {request.serve_as} files does not run it as it would be timed",
                holds=lambda values: not is_unserved(Configuration.of(backend, values), request) or baseline(values),
            )
        )
    if not whole:
        constraints.append(Constraint(reason=f"{backend} takes part as the baseline only", holds=baseline))
    elif request.precisions is not None:
        accepted = frozenset(request.precisions)
        constraints.append(
            Constraint(
                reason=f"precision is limited to {', '.join(sorted(accepted))}",
                holds=lambda values: values["precision"] in accepted or baseline(values),
            )
        )
    narrowed = replace(space, constraints=tuple(constraints), defaults=(), hints=())
    plainest = () if request.serve_as == "any" else tuple(one for one in narrowed if is_baseline(one, request))
    return replace(
        narrowed,
        defaults=tuple(
            dict.fromkeys(default for default in (*plainest, *space.defaults) if narrowed.refusal(default) is None)
        ),
        hints=tuple(hint for hint in space.hints if narrowed.refusal(hint) is None),
    )
