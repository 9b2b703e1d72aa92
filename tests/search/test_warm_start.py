"""Hints from the finals of other studies: which they are, in which order, and what is left out."""

import pytest

from autotune.records.configuration import Configuration
from autotune.records.search_space import Constraint, Parameter, SearchSpace
from autotune.search.warm_start import MOST, PastFinals, adapted, warm_start

HERE, ELSEWHERE = "nvidia-h200/whole/700w", "nvidia-l4/whole/72w"


def space(backend: str, **choices: tuple[str | int | bool, ...]) -> SearchSpace:
    parameters = tuple(Parameter(name=name, choices=values) for name, values in choices.items())
    default = Configuration.of(backend, {name: values[0] for name, values in choices.items()})
    return SearchSpace(backend=backend, parameters=parameters, defaults=(default,))


NATIVE = space("native", precision=("fp32", "fp16", "bf16"), graph=(False, True))
INDUCTOR = space("inductor", precision=("fp32", "fp16"), freezing=(False, True))
SPACES = (INDUCTOR, NATIVE)


def native(precision: str = "fp16", graph: bool = True) -> Configuration:
    return Configuration.of("native", {"precision": precision, "graph": graph})


def inductor(precision: str = "fp16", freezing: bool = True) -> Configuration:
    return Configuration.of("inductor", {"precision": precision, "freezing": freezing})


def past(
    *finalists: tuple[Configuration, float], name: str = "bert", batch: int = 1, device_class: str = HERE
) -> PastFinals:
    return PastFinals(name=name, batch=batch, device_class=device_class, baseline=10.0, finalists=finalists)


def hints(*studies: PastFinals, name: str = "resnet", spaces: tuple[SearchSpace, ...] = SPACES) -> list[Configuration]:
    return [hint.configuration for hint in warm_start(studies, spaces, name=name, device_class=HERE)]


def test_an_empty_database_gives_no_hint() -> None:
    assert hints() == [] and hints(past()) == []


def test_only_configurations_within_three_percent_of_the_best_of_their_study_are_hints() -> None:
    assert hints(past((native(), 1.0), (inductor(), 1.029))) == [native(), inductor()]
    assert hints(past((native(), 1.0), (inductor(), 1.031))) == [native()]


def test_a_backend_proposes_the_configuration_that_was_as_good_as_the_best_in_most_studies() -> None:
    once = past((native("bf16"), 0.5), name="once")
    twice = [past((native("fp16"), 5.0), name=name) for name in ("a", "b")]
    (hint,) = warm_start([once, *twice], SPACES, name="resnet", device_class=HERE)
    assert hint.configuration == native("fp16") and hint.studies == tuple(twice)
    assert hint.gain == pytest.approx(2.0)


def test_the_gain_over_the_baseline_decides_between_as_many_studies() -> None:
    assert hints(past((native("bf16"), 4.0), name="a"), past((native("fp16"), 2.0), name="b")) == [native("fp16")]
    assert hints(past((inductor(), 4.0), name="a"), past((native(), 2.0), name="b")) == [native(), inductor()]


def test_the_nearest_studies_propose_first_and_once_for_a_backend() -> None:
    """The same model at another batch, another model here, then the same for other device classes."""
    far = past((native("bf16", False), 0.1), device_class=ELSEWHERE)
    same_model_elsewhere = past((inductor("fp32", True), 0.1), name="resnet", device_class=ELSEWHERE)
    other_model = past((native("bf16"), 0.100), (inductor(), 0.101))
    same_model = past((native(), 9.0), name="resnet", batch=32)
    assert hints(far, same_model_elsewhere, other_model, same_model) == [native(), inductor()]
    assert hints(far, same_model_elsewhere, other_model) == [native("bf16"), inductor()]
    assert hints(far, same_model_elsewhere) == [inductor("fp32", True), native("bf16", False)]


def test_a_default_is_no_hint_and_a_space_refuses_what_it_does_not_have() -> None:
    assert hints(past((native("fp32", False), 1.0))) == []
    assert hints(past((native("fp8"), 1.0))) == []
    assert hints(past((native(), 1.0)), spaces=(INDUCTOR,)) == []
    never = Constraint(reason="no graph", holds=lambda values: not values["graph"])
    limited = SearchSpace(backend="native", parameters=NATIVE.parameters, constraints=(never,))
    assert hints(past((native(), 1.0)), spaces=(limited,)) == []


def test_what_builds_for_long_is_no_hint() -> None:
    tuning = Parameter(name="max_autotune", choices=(False, True), build_cost=(1.0, 4.0))
    slow = SearchSpace(backend="inductor", parameters=(tuning,))
    on, off = (Configuration.of("inductor", {"max_autotune": value}) for value in (True, False))
    assert hints(past((on, 1.0)), spaces=(slow,)) == [] and hints(past((on, 1.0), (off, 1.02)), spaces=(slow,)) == [off]


def test_there_are_at_most_a_handful() -> None:
    spaces = tuple(space(f"backend{number}", precision=("fp32", "fp16")) for number in range(MOST + 3))
    best = [(Configuration.of(each.backend, {"precision": "fp16"}), 1.0) for each in spaces]
    assert len(hints(past(*best), spaces=spaces)) == MOST


def test_a_configuration_of_a_model_with_other_features_is_adapted_to_the_space() -> None:
    """A parameter that the space lacks is left out, one that only the space has gets its default."""
    wide = space("native", precision=("fp32", "fp16"), conv_bn=(True, False), graph=(False, True))
    assert adapted(native(), wide) == Configuration.of("native", {"precision": "fp16", "conv_bn": True, "graph": True})
    narrow = space("native", precision=("fp32", "fp16"))
    assert adapted(native(), narrow) == Configuration.of("native", {"precision": "fp16"})
    assert adapted(native("bf16"), narrow) is None


def test_results_of_one_study_that_become_the_same_point_count_as_one_study() -> None:
    narrow = space("native", precision=("fp32", "fp16"))
    finals = past((native(graph=True), 1.0), (native(graph=False), 1.02))
    (hint,) = warm_start([finals], (narrow,), name="resnet", device_class=HERE)
    assert hint.studies == (finals,) and hint.gain == pytest.approx(10.0)
