"""A backend whose kernels go wrong as their configurations say; a worker finds it by an entry point."""

import ctypes
import math
import time
from dataclasses import dataclass
from pathlib import Path

from autotune.backend import KernelKind
from autotune.errors import SpaceError, WorkError
from autotune.kernel import CompileResult
from autotune.records.configuration import Configuration

FAULTS = (
    *("none", "refused", "error", "crash", "hang", "inaccurate", "non_finite", "unwritten", "outside", "second_call"),
    *("out_of_memory", "slow"),
)
LIBRARY = Configuration.of("torch", {"form": "addmm"})


def build(fault, number=0, kind="toy"):
    return Configuration.of(kind, {"fault": fault, "number": number})


def launch(of, order=0):
    return Configuration.of(of.backend, {**dict(of.values), "order": order})


@dataclass(frozen=True)
class ToySpace:
    """``faults`` by number; the kind ``nowhere`` has no compiler."""

    builds: tuple[Configuration, ...]
    ready: tuple[Configuration, ...] = (LIBRARY,)

    def first(self, count):
        return self.builds[:count]

    def suggested(self, count):
        return ()

    def launches(self, of):
        return [launch(of, order) for order in range(2)]


class ToyKernel:
    def __init__(self, fault):
        self.fault, self.calls = fault, 0
        self.resource_usage = {"registers": 32.0}

    def __call__(self, a, b, bias, residual, out):
        self.calls += 1
        if self.fault == "unwritten":
            return
        if self.fault == "crash":
            ctypes.string_at(0)
        if self.fault == "hang":
            time.sleep(600)
        if self.fault == "slow":
            time.sleep(0.05)
        if self.fault == "out_of_memory":
            raise MemoryError
        out.copy_(BACKEND.kernels.compute(None, a, b, bias, residual))
        if self.fault == "inaccurate":
            out[-1, -1] += 0.1
        if self.fault == "non_finite":
            out[0, 0] = math.inf
        if self.fault == "outside":
            out.as_strided((out.numel() + 1,), (1,))[-1] = 1.0
        if self.fault == "second_call" and self.calls == 2:
            out.mul_(2)


class ToyKernels:
    toolchain = ("torch",)
    sources = "of toys"

    def space(self, device, problem):
        if problem.activation != "none":
            raise SpaceError("toy kernels have no activation", found=problem.activation)
        wanted = {1: ("none",), 2: FAULTS, 3: (), 4: ("none", "slow")}.get(problem.m, ("none",) * 5)
        builds = tuple(build(fault, number) for number, fault in enumerate(wanted))
        return ToySpace(
            builds=(*(build("none", n, "nowhere") for n in range(3)), *builds) if problem.m == 4 else builds
        )

    def compile(self, device, problem, builds, folder):
        if builds[0].backend == "nowhere":
            if self.compiled(device, problem, builds, folder) == list(builds):
                return [CompileResult() for _ in builds]
            raise WorkError("toy kernels of the kind nowhere", found="no compiler", expected="a compiler")
        with (Path(folder) / "compiled").open("a") as log:
            log.writelines(f"{one}\n" for one in builds)
        for one in builds:
            if problem.m == 5 and one["number"] == 1:
                ctypes.string_at(0)
        return [
            CompileResult(refusal="no such tile" if one["fault"] == "refused" else None, compile_s=0.5)
            for one in builds
        ]

    def compiled(self, device, problem, builds, folder):
        log = Path(folder) / "compiled"
        there = log.read_text().splitlines() if log.exists() else []
        return [build for build in builds if str(build) in there]

    def load(self, device, problem, candidate, folder):
        fault = str(candidate.get("fault", "none"))
        if fault == "error":
            raise WorkError("a toy kernel", found="nothing", expected="a kernel")
        return ToyKernel(fault)

    def pack(self, device, problem, candidate, folder, target):
        return {}

    def compute(self, problem, a, b, bias, residual):
        answer = a @ b.t()
        for added in (bias, residual):
            if added is not None:
                answer = answer + added.to(a.dtype)
        return answer


class ToyBackend:
    name = "toykernels"
    toolchain = ("torch",)
    sources = "of toys"
    build_uses_device = False
    kernels = ToyKernels()
    kernel_kinds = (KernelKind(name="toy"), KernelKind(name=LIBRARY.backend, calls_library=True))
    graph_invariants = ("kernels", "threads")

    def probe(self, device): ...
    def space(self, device, workload, *, has_factory): ...
    def build(self, model, configuration, device, folder): ...
    def times_kernels_at_build(self, configuration): ...
    def times_kernels_at_load(self, configuration): ...
    def load(self, folder, device): ...
    def kernel_problems(self, model, configuration, device): ...


BACKEND = ToyBackend()
