"""Kernels that are compiled before anything is tuned, in threads, by a fake executor."""

import threading

import pytest

from autotune.errors import RequestError, WorkError
from autotune.kernel import CompileResult
from autotune.kernels.portfolio import ENOUGH
from autotune.kernels.prefetch import KernelPrefetch
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from tests.toy_kernels import ToySpace, build

H200 = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0), cores=16, power_limit_w=700)


def problem(m):
    return GemmProblem(m=m, n=16, k=32, dtype="fp32", output="fp32")


class Server:
    closed = False


class Compiler:
    """Compiles at once what is not in its cache; notes everything that it compiles, and what fails."""

    def __init__(self, refused=(), missing=(), there=()):
        self.server, self.device, self.backend = Server(), H200, "toykernels"
        self.refused, self.missing, self.cache = refused, missing, set(there)
        self.lock, self.jobs, self.hold = threading.Lock(), [], threading.Event()
        self.hold.set()

    def rates(self):
        return None

    def compiled(self, problem, builds):
        return [build for build in builds if build in self.cache]

    def compile(self, problem, builds, limit_s):
        with self.lock:
            self.jobs.append(list(builds))
        self.hold.wait(30.0)
        kinds = {build.backend for build in builds} & set(self.missing)
        if kinds:
            return {}, {kind: WorkError("no compiler") for kind in kinds}
        return {each: CompileResult(refusal="no" if each in self.refused else None) for each in builds}, {}

    @property
    def begun(self):
        return [each for job in self.jobs for each in job]


@pytest.fixture
def spaces(toykernels, monkeypatch):
    """Problems of m rows have the builds 0 to 19, and those of more than 100 rows the builds 100 to 119."""

    def space(self, device, problem):
        if problem.m == 13:
            raise RequestError("no kernels for thirteen rows")
        return ToySpace(tuple(build("none", 100 * (problem.m > 100) + number) for number in range(20)))

    monkeypatch.setattr("tests.toy_kernels.ToyKernels.space", space)


def prefetched(compiler, *problems):
    prefetch = KernelPrefetch(compiler, lambda: dict.fromkeys(problems, 1.0), 0)
    prefetch.begin()
    prefetch.join()
    return prefetch


def test_every_problem_has_its_first_builds_and_shared_ones_are_compiled_once(spaces):
    compiler = Compiler()
    prefetch = prefetched(compiler, problem(8), problem(9), problem(200), problem(13))
    begun = compiler.begun
    assert len(begun) == len(set(begun)) == prefetch.compiled
    assert sum(each["number"] < 100 for each in begun) == sum(each["number"] >= 100 for each in begun) == ENOUGH


def test_what_is_in_the_cache_is_not_compiled(spaces):
    compiler = Compiler(there=[build("none", number) for number in range(ENOUGH)])
    assert prefetched(compiler, problem(8)).compiled == 0 and not compiler.jobs


def test_refused_builds_are_replaced_and_without_a_compiler_it_ends(spaces):
    refused = [build("none", number) for number in range(0, 20, 2)]
    compiler = Compiler(refused=refused)
    assert prefetched(compiler, problem(8)).compiled >= ENOUGH
    compiler = Compiler(missing=["toy"])
    assert prefetched(compiler, problem(8)).compiled == 0
    assert len(compiler.jobs) <= H200.cores // 4


def test_at_its_end_it_begins_no_more_and_waits_for_what_runs(spaces):
    compiler = Compiler()
    compiler.hold.clear()
    prefetch = KernelPrefetch(compiler, lambda: {problem(m): 1.0 for m in (8, 200)}, 0)
    prefetch.begin()
    for _ in range(1000):
        if len(compiler.jobs) == H200.cores // 4:
            break
        threading.Event().wait(0.01)
    assert len(compiler.jobs) == H200.cores // 4, "a quarter of the cores compiles"
    threading.Timer(0.2, compiler.hold.set).start()
    prefetch.close()
    assert compiler.hold.is_set() and len(compiler.jobs) == H200.cores // 4


def test_a_graph_whose_problems_are_not_found_costs_nothing(spaces):
    def fail():
        raise WorkError("no graph")

    prefetch = KernelPrefetch(Compiler(), fail, 0)
    prefetch.begin()
    prefetch.join()
    assert prefetch.compiled == 0
