"""A backend with tuned kernels whose builds write down which they were handed; its runner takes as long as they say.

Workers find it by an entry point ``toytuned = tests.toy_tuned:BACKEND``. Its graph has one kernel problem.
"""

import json
import os
import time
from pathlib import Path

from autotune.backend import Availability, KernelKind
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.records.search_space import Parameter, SearchSpace
from tests.toy_kernels import LIBRARY, ToyKernels, build, launch

BUILDS = "AUTOTUNE_TEST_BUILDS"
"""Names the file into which every build writes a line of JSON; one named ``wrong`` beside it makes answers wrong."""

PROBLEM = GemmProblem(m=3, n=16, k=32, dtype="fp32", output="fp32")
"""The one problem of every graph; toy kernels have no builds for it, so tuning times the library's call only."""

UNFUSED = GemmProblem(m=1, n=16, k=32, dtype="fp32", output="fp32")
"""One more problem of the graphs of configurations that say ``fused=False``; toy kernels have a build for it."""

REFUSED = GemmProblem(m=3, n=16, k=32, dtype="fp32", output="fp32", bias=True, activation="relu")
"""The one problem of the graphs of configurations that say ``fused="relu"``, for which there are no toy kernels."""

FAST, SLOW = launch(build("none", 1)), launch(build("none", 2))
DELAYS_S = {LIBRARY: 0.006, FAST: 0.001, SLOW: 0.06}
"""How long an artifact takes for a call by its best kernel; torch's take as long as the slowest."""

SLOW_BUILD_S = 2.0


class Runner:
    def __init__(self, module, delay_s, factor):
        self.module, self.delay_s, self.factor = module, delay_s, factor

    def __call__(self, *inputs):
        import torch

        time.sleep(self.delay_s)
        with torch.no_grad():
            return tuple(self.factor * answer for answer in self.module(*inputs))

    def close(self): ...


class ToyTuned:
    name = "toytuned"
    toolchain = ("torch",)
    build_uses_device = False
    kernels = ToyKernels()
    kernel_kinds = (KernelKind(name="toy"), KernelKind(name=LIBRARY.backend, calls_library=True))
    graph_invariants = ("kernels", "threads")

    def probe(self, device):
        return Availability(works=True)

    def space(self, device, workload, *, has_factory):
        choices = {"precision": ("fp32",), "kernels": ("tuned",), "threads": (1,), "slow_build": (False, True)}
        default = Configuration.of(self.name, {name: values[0] for name, values in choices.items()})
        parameters = tuple(Parameter(name=name, choices=values) for name, values in choices.items())
        return SearchSpace(backend=self.name, parameters=parameters, defaults=(default,))

    def kernel_problems(self, model, configuration, device):
        fused = configuration.get("fused", True)
        return {REFUSED: 1} if fused == "relu" else {PROBLEM: 3} if fused else {PROBLEM: 1, UNFUSED: 5}

    def build(self, model, configuration, device, folder):
        import torch

        if configuration["slow_build"]:
            time.sleep(SLOW_BUILD_S)
        torch.export.save(model.program("fp32", device), str(folder / "program.pt2"))
        known = model.known_kernels
        best = known.best.get(PROBLEM.digest) if known else None
        delay_s = DELAYS_S[best.configuration if best else SLOW]
        builds = Path(os.environ[BUILDS])
        factor = 2.0 if builds.with_name("wrong").exists() else 1.0
        (folder / "toy.json").write_text(json.dumps({"delay_s": delay_s, "factor": factor}))
        with builds.open("a") as log:
            said = {"kernels": known.digest if known else "", "weights": model.workload.weights}
            log.write(json.dumps({**said, "slow_build": configuration["slow_build"]}) + "\n")

    def times_kernels_at_build(self, configuration):
        return False

    def times_kernels_at_load(self, configuration):
        return False

    def load(self, folder, device):
        import torch

        own = json.loads((folder / "toy.json").read_text())
        return Runner(torch.export.load(str(folder / "program.pt2")).module(), **own)


BACKEND = ToyTuned()
