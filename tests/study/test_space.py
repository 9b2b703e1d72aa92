from dataclasses import replace

import pytest

from autotune import registry
from autotune.backend import Availability
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.trial import Trial
from autotune.runtime import discovery
from autotune.study.request import StudyRequest
from autotune.study.space import FINALISTS, choose_finalists, is_baseline, is_unserved, search_spaces, untried

H200 = Device(kind="cuda", name="NVIDIA H200", uuid="gpu-test", capability=(9, 0), cores=16)


def trial(number: int, latency_ms: float, backend: str = "a", precision: str = "fp32") -> Trial:
    configuration = Configuration.of(backend, {"n": number, "precision": precision})
    return Trial(
        uid=f"t{number:02d}", number=number, configuration=configuration, state="complete", latency_ms=latency_ms
    )


def chosen(trials, baselines=(), defaults=()):
    return [t.number for t in choose_finalists(trials, baselines, defaults)]


def test_the_best_few_come_in_order_and_the_baseline_comes_on_top():
    trials = [trial(n, 1.0 + n / 50) for n in range(20)] + [trial(20, 3.0)]
    assert chosen(trials, ["t20"]) == [*range(FINALISTS), 20]


def test_what_is_out_of_reach_fills_no_place():
    assert chosen([trial(0, 1.0), trial(1, 1.5), trial(2, 1.51), trial(3, 9.0, "base")], ["t03"]) == [0, 1, 3]


def test_every_backends_best_every_default_and_the_best_in_full_precision_are_in():
    fast = [trial(n, 1.0 + n / 100, "a", "fp16") for n in range(20)]
    slow = [trial(30, 50.0, "b", "fp16"), trial(31, 60.0, "c"), trial(32, 1.9, "a", "fp16"), trial(33, 5.0, "a")]
    numbers = chosen([*fast, *slow], defaults=[slow[2].configuration])
    assert {0, 30, 31, 32, 33} <= set(numbers)


def test_a_default_that_is_outclassed_stays_out():
    trials = [trial(0, 1.0, "a", "fp16"), trial(1, 1.8), trial(2, 2.0), trial(3, 2.1), trial(4, 9.0, "base")]
    trials += [trial(n, 1.1 + n / 1000, "a", "fp16") for n in range(5, 15)]
    everything = [t.configuration for t in trials[:4]]
    assert {0, 1, 2, 4} <= set(chosen(trials, ["t04"], everything)) and 3 not in chosen(trials, ["t04"], everything)


def test_a_baseline_that_cannot_be_the_fastest_stays_out():
    trials = [trial(0, 100.0, "eager"), trial(1, 140.0, "eager"), trial(2, 160.0, "eager"), trial(3, 10.0)]
    everything = [t.configuration for t in trials]
    assert chosen(trials, ["t00", "t01", "t02"], everything) == [3, 0, 1]


def test_baselines_and_defaults_that_others_disturbed_all_the_while_stay_in():
    trials = [trial(0, 1.0), trial(1, 90.0, "a"), trial(2, 6.0, "base"), trial(3, 75.0, "base"), trial(4, 80.0, "b")]
    disturbed, defaults = {"t01", "t03", "t04"}, [trials[1].configuration]
    assert [t.number for t in choose_finalists(trials, ["t02", "t03"], defaults, disturbed)] == [0, 2, 3, 4, 1]
    assert [t.number for t in choose_finalists(trials, ["t02", "t03"], defaults)] == [0, 2, 4]


def test_backends_without_a_trial_are_named_only_if_they_offer_the_study_something():
    backends = ("eager", "torchscript")
    request = StudyRequest(name="a", batch=1, device=discovery.cpu(), factory="m.py:f", backends=backends)
    assert untried(request, []) == backends
    tried = [trial(0, 1.0, "eager")]
    assert untried(request, tried) == ("torchscript",)
    assert "torchscript" not in untried(replace(request, precisions=("fp16",)), tried), "it offers no fp16 on a CPU"


def test_one_that_is_not_served_is_compared_with_and_outclasses_nobody():
    trials = [trial(0, 1.0, "eager"), trial(1, 1.5, "eager"), trial(2, 8.0), trial(3, 9.0), trial(4, 10.0, "base")]
    found = choose_finalists(trials, ["t04"], [], unserved={"t00", "t01"})
    assert [t.number for t in found] == [2, 3, 4, 0]


@pytest.mark.parametrize(
    ("serve_as", "owner"), [("torchscript", "torchscript"), ("aoti", "inductor"), ("onnx", "onnxruntime")]
)
@pytest.mark.parametrize("device", [discovery.cpu(), H200])
def test_a_study_for_a_format_has_its_files_the_plainest_first_and_todays_way_beside_them(
    serve_as, owner, device, monkeypatch
):
    for name in registry.names():  # whether its library is installed here or not
        monkeypatch.setattr(registry.backend(name), "probe", lambda device: Availability(works=True), raising=False)
    request = StudyRequest(name="a", batch=1, device=device, factory="m.py:f", serve_as=serve_as)
    spaces = {space.backend: list(space) for space in search_spaces(request, None)}
    defaults = {space.backend: space.defaults for space in search_spaces(request, None)}
    assert set(spaces) == {"eager", owner}
    served = [one for one in spaces[owner] if not is_unserved(one, request)]
    assert served == spaces[owner] and sum(is_baseline(one, request) for one in served) == 1
    assert is_baseline(defaults[owner][0], request)
    assert next(iter(defaults)) == owner, "of a study with one trial that is the baseline"
    assert all(is_unserved(one, request) and not is_baseline(one, request) for one in spaces["eager"])
    assert not any(one.get("cuda_graph", False) or one.get("optimize", False) for one in served)
    if device.kind == "cpu":
        assert {one["threads"] for one in served} == {device.cores}
