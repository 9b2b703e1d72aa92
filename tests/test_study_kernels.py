import threading
from types import SimpleNamespace

import pytest

from autotune import registry, study_kernels
from autotune.configuration import Configuration
from autotune.database.store import Store
from autotune.kernel import toolchain_of
from autotune.kernel_problem import GemmProblem
from tests.database import records

ONE, TWO = GemmProblem(m=8, n=16, k=32), GemmProblem(m=8, n=32, k=16)


def asked(fused, **values):
    return Configuration.of("native", {"kernels": "tuned", "norm": fused, **values})


@pytest.fixture
def study(monkeypatch):
    """A study whose graphs have one problem fused and two otherwise; it notes what is looked at, tuned and told."""
    notes = SimpleNamespace(looked=[], tuned=[], told=0)

    def problems(configuration):
        notes.looked.append(configuration["norm"])
        counts = {ONE: 3} if configuration["norm"] else {ONE: 1, TWO: 5}
        entries = [{"problem": problem.as_dict(), "count": count} for problem, count in counts.items()]
        return SimpleNamespace(failure=None, value={"problems": entries})

    def tuned(counts, *_, budget_s, **values):
        notes.tuned.append((dict(counts), budget_s))
        return SimpleNamespace(spans=())

    def told(*_):
        notes.told += 1

    monkeypatch.setattr(study_kernels, "tune_kernels", tuned)
    monkeypatch.setattr(study_kernels, "tell_kernels", told)
    monkeypatch.setattr(study_kernels.StudyKernels, "_known", lambda self, asking: None)
    bench = SimpleNamespace(problems=problems, server=None, split=SimpleNamespace(add=lambda spans: None), model=None)
    request = SimpleNamespace(device=SimpleNamespace(cores=4), seed=0, tune_kernels=True)
    on = SimpleNamespace(bench=bench, request=request, store=None, progress=None, stop=threading.Event())
    return study_kernels.StudyKernels(on), notes, on


def test_a_graph_is_looked_at_once_and_a_problem_tuned_once_for_all(study):
    kernels, notes, _ = study
    kernels.prepare([asked(True), asked(True, cuda_graph=False), asked(False)], 100.0)
    assert sorted(notes.looked) == [False, True]
    ((counts, budget_s),) = notes.tuned
    assert counts == {ONE: 3.0, TWO: 5.0} and 0 < budget_s <= study_kernels.SHARE * 100.0
    kernels.prepare([asked(True, threads=2)], 90.0)
    assert len(notes.tuned) == 1 and len(notes.looked) == 2 and notes.told == 2


def test_a_study_that_is_to_tune_none_takes_what_is_known(study):
    kernels, notes, on = study
    on.request.tune_kernels = False
    kernels.prepare([asked(True)], 100.0)
    assert not notes.tuned and notes.looked == [True] and notes.told == 1


def test_nothing_is_tuned_for_who_asks_for_nothing_or_is_stopped(study):
    kernels, notes, on = study
    kernels.prepare([Configuration.of("native", {"kernels": "torch", "norm": True})], 100.0)
    assert not notes.looked and notes.told == 0
    on.stop.set()
    kernels.prepare([asked(True)], 100.0)
    assert not notes.looked and not notes.tuned


def test_builds_are_told_the_best_kernel_the_best_call_and_those_of_ours_near_the_best(tmp_path):
    toolchain = toolchain_of(registry.kernels("native"), records.TOOLCHAIN).digest
    times_us = {"library": 10.0, "near": 10.9, "far": 11.1}
    kinds = {"library": "cublaslt"}
    made = {name: Configuration.of(kinds.get(name, "hopper_gemm"), {"name": name}) for name in times_us}
    with Store.open(str(tmp_path / "kernels.db")) as store:
        store.kernels.add(
            [
                records.kernel(
                    problem=ONE, toolchain=toolchain, configuration=made[name], samples_us=(us,),
                )
                for name, us in times_us.items()
            ]
        )  # fmt: skip
        row = SimpleNamespace(device_class=records.DEVICE.device_class)
        on = SimpleNamespace(store=store, row=row, toolchain=records.TOOLCHAIN)
        kernels = study_kernels.StudyKernels(on)
        kernels._of = lambda configuration: {ONE: 1.0, TWO: 1.0}
        known = kernels._known([asked(True)])
    assert known.best[ONE.digest].configuration == known.library[ONE.digest].configuration == made["library"]
    assert [each.configuration for each in known.near[ONE.digest]] == [made["near"]]
    assert not known.near[TWO.digest] and TWO.digest not in known.best
