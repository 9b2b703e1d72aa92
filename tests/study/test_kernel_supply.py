import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from autotune import registry
from autotune.database.store import Store
from autotune.execute.answers import ProblemCount, ProblemsAnswer
from autotune.kernel import KernelToolchains, KnownKernel, KnownKernels
from autotune.records.configuration import Configuration
from autotune.records.kernel_final import KernelFinal, KernelFinalist
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure
from autotune.study.kernel_supply import KernelSupply
from tests.database import records

ONE, TWO = GemmProblem(m=8, n=16, k=32), GemmProblem(m=8, n=32, k=16)
TOOLCHAIN = KernelToolchains(registry.kernels("native"), records.TOOLCHAIN).digest
TIMES_US = {"library": 10.0, "near": 10.9, "far": 11.1}
MADE = {name: Configuration.of("cublaslt" if name == "library" else "hopper_gemm", {"name": name}) for name in TIMES_US}


def asked(fused=True, kernels="tuned", **values):
    return Configuration.of("native", {"kernels": kernels, "norm": fused, **values})


def trial(name, median_us=None, problem=ONE):
    return records.kernel(
        problem=problem, toolchain=TOOLCHAIN, configuration=MADE[name], samples_us=(median_us or TIMES_US[name],)
    )


class FakeExecutor:
    """A graph has one problem if it is fused and two otherwise."""

    def __init__(self):
        self.looked, self.failure = [], None

    def problems(self, configuration):
        self.looked.append(configuration["norm"])
        counts = {ONE: 3} if configuration["norm"] else {ONE: 1, TWO: 5}
        answer = ProblemsAnswer(problems=tuple(ProblemCount(problem=one, count=n) for one, n in counts.items()))
        return SimpleNamespace(failure=self.failure, value=None if self.failure else answer)


@pytest.fixture
def supplies(tmp_path):
    """Supplies from databases that hold the kernels that are given; each has its bench, its messages and its stop."""
    opened = []

    def supply(*kernels):
        store = Store.open(str(tmp_path / f"{len(opened)}.db"))
        opened.append(store)
        store.kernels.add([one for one in kernels if isinstance(one, KernelTrial)])
        for one in kernels:
            if isinstance(one, KernelFinal):
                store.kernel_finals.add(one)
        executor, told, stop = FakeExecutor(), [], threading.Event()
        made = KernelSupply(store, executor, records.DEVICE.device_class, records.TOOLCHAIN, told.append, stop)
        return SimpleNamespace(
            of=made.of, digest=made.digest, problems=made.problems, executor=executor, told=told, stop=stop
        )

    yield supply
    for store in opened:
        store.close()


def test_a_build_is_handed_the_best_kernel_the_best_call_and_those_of_ours_near_the_best(supplies):
    known = supplies(*(trial(name) for name in TIMES_US)).of(asked(fused=False))
    assert known.best[ONE.digest].configuration == known.library[ONE.digest].configuration == MADE["library"]
    assert [each.configuration for each in known.near[ONE.digest]] == [MADE["near"]]
    assert not known.near[TWO.digest] and TWO.digest not in known.best


def test_a_configuration_gets_the_kernels_of_its_own_graph_only(supplies):
    supply = supplies(trial("library"), trial("near", problem=TWO))
    assert set(supply.of(asked(fused=True)).best) == {ONE.digest}
    assert set(supply.of(asked(fused=False)).best) == {ONE.digest, TWO.digest}
    assert supply.of(asked(kernels="torch")) is None and supply.digest(asked(kernels="torch")) == ""


def test_a_graph_is_looked_at_once(supplies):
    supply = supplies()
    for configuration in (asked(), asked(threads=2), asked(cuda_graph=False), asked(fused=False)):
        supply.of(configuration)
    assert supply.executor.looked == [True, False]


def test_nothing_is_looked_at_nor_kept_after_a_stop(supplies):
    supply = supplies()
    supply.stop.set()
    assert supply.problems(asked()) == {} and supply.executor.looked == []
    supply.stop.clear()
    assert supply.problems(asked()) == {ONE: 3.0}


def test_a_graph_whose_problems_cannot_be_found_is_named_and_gets_no_kernel(supplies):
    supply = supplies(trial("library"))
    supply.executor.failure = Failure(stage="build", kind="crash", detail="signal 11", log_tail="the last line")
    known = supply.of(asked())
    assert known is not None and not known.best
    assert [text.splitlines()[-1].strip() for text in supply.told] == ["the last line"] and "crash" in supply.told[0]


def final(names_us, toolchain=None):
    """A final of kernels by their names, with their times in microseconds."""
    toolchains = KernelToolchains(registry.kernels("native"), records.TOOLCHAIN)
    finalists = (
        KernelFinalist(
            configuration=MADE[name], toolchain=toolchain or toolchains.of(MADE[name].backend),
            rounds_us=((us,), (us,)),
        )
        for name, us in names_us.items()
    )  # fmt: skip
    return KernelFinal(problem=ONE, device_class=records.DEVICE.device_class, finalists=tuple(finalists))


CLOSE_US = {"library": 10.3, "near": 10.0, "far": 11.1}


def test_a_build_is_handed_the_kernel_that_won_the_final(supplies):
    trials = [trial(name, us) for name, us in CLOSE_US.items()]
    by_search = supplies(*trials)
    assert by_search.of(asked()).best[ONE.digest] == KnownKernel(configuration=MADE["near"], median_us=10.0)
    by_final = supplies(*trials, final({"library": 5.0, "near": 5.2}))
    known = by_final.of(asked())
    assert known.best[ONE.digest] == known.library[ONE.digest]
    assert known.best[ONE.digest] == KnownKernel(configuration=MADE["library"], median_us=5.0)
    assert known.near[ONE.digest] == (KnownKernel(configuration=MADE["near"], median_us=5.2),)
    assert by_final.digest(asked()) != by_search.digest(asked())


def test_finalists_are_near_by_their_rounds_and_all_others_by_the_search(supplies):
    trials = [trial(name, us) for name, us in {**CLOSE_US, "far": 10.9}.items()]
    slow = supplies(*trials, final({"library": 500.0, "near": 560.0})).of(asked())
    assert [kernel.configuration for kernel in slow.near[ONE.digest]] == [MADE["far"]]
    close = supplies(*trials, final({"library": 500.0, "near": 540.0})).of(asked())
    assert [kernel.configuration for kernel in close.near[ONE.digest]] == [MADE["near"], MADE["far"]]


@pytest.mark.parametrize(
    "other",
    [
        final({"library": 5.0, "near": 5.2}, toolchain="older"),
        final({"library": 5.0, "far": 5.2}),
        replace(final({"library": 5.0, "near": 5.2}), device_class="other"),
        replace(final({"library": 5.0, "near": 5.2}), problem=TWO),
    ],
)
def test_a_final_of_others_changes_nothing(supplies, other):
    trials = [trial(name, us) for name, us in CLOSE_US.items()]
    assert supplies(*trials, other).of(asked()).as_dict() == supplies(*trials).of(asked()).as_dict()


def test_databases_that_know_the_same_give_the_same_digest_and_others_another(supplies):
    first = supplies(*(trial(name) for name in TIMES_US)).digest(asked())
    assert supplies(*(trial(name) for name in reversed(TIMES_US))).digest(asked()) == first
    assert supplies(*(trial(name, 2 * us) for name, us in TIMES_US.items())).digest(asked()) == first
    assert supplies(trial("library"), trial("near"), trial("far", 1.0)).digest(asked()) != first
    assert supplies(trial("library"), trial("near"), trial("far", 10.95)).digest(asked()) != first
    assert supplies(trial("near"), trial("far")).digest(asked()) != first
    assert supplies().digest(asked()) not in ("", first)


def test_the_order_of_kernels_and_their_toolchain_decide_the_digest_but_neither_times_nor_folder(tmp_path):
    one, two = (KnownKernel(configuration=MADE[name], median_us=1.0) for name in ("near", "far"))
    known = KnownKernels(folder=tmp_path, toolchain="a", best={"p": one}, near={"p": (one, two)})
    assert replace(known, folder=tmp_path / "b", best={"p": replace(one, median_us=9.0)}).digest == known.digest
    assert replace(known, near={"p": (one, two), "q": ()}).digest == known.digest
    others = [
        replace(known, near={"p": (two, one)}),
        replace(known, best={"p": two}),
        replace(known, library={"p": one}),
        replace(known, toolchain="b"),
    ]
    assert len({known.digest, *(other.digest for other in others)}) == 1 + len(others)
    assert KnownKernels.from_dict(known.as_dict()) == known
