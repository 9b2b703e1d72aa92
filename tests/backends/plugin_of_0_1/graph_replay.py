"""A backend that was written for version 0.1: old places of modules, and optional methods under their old names.

It must stay as it is. It saves the captured graph and runs it as it is, with a library's call as its only kernel.
"""

import torch

from autotune.backend import Availability
from autotune.configuration import Configuration
from autotune.device import Device
from autotune.kernel import MadeKernel
from autotune.kernel_problem import GemmProblem
from autotune.runtime.artifact import read_record
from autotune.runtime.signature import Signature
from autotune.space import Constraint, Parameter, SearchSpace
from autotune.workload import Workload

CALL = Configuration.of("torch", {"form": "matmul"})


class Candidates:
    builds = ()
    ready = (CALL,)

    def first(self, count):
        return ()

    def suggested(self, count):
        return ()

    def launches(self, build):
        return ()


class Matmul:
    def __init__(self, compute):
        self.compute = compute

    @property
    def made(self):
        return {}

    def __call__(self, a, b, bias, residual, out):
        out.copy_(self.compute(None, a, b, bias, residual))


class Kernels:
    toolchain = ("torch",)
    sources = "none"

    def space(self, device, problem):
        return Candidates()

    def compile(self, device, problem, builds, folder):
        return [MadeKernel() for _ in builds]

    def compiled(self, device, problem, builds, folder):
        return builds

    def load(self, device, problem, candidate, folder, *, early=False):
        return Matmul(self.compute)

    def pack(self, device, problem, candidate, folder, target):
        return {}

    def compute(self, problem, a, b, bias, residual):
        answer = a @ b.t()
        for added in (bias, residual):
            if added is not None:
                answer = answer + added.to(a.dtype)
        return answer


class Replay:
    def __init__(self, module, specs, device):
        self.module, self.signature = module, Signature(specs, device.torch_name)

    def __call__(self, *inputs):
        with torch.no_grad():
            return tuple(self.module(*self.signature.place(inputs)))

    def close(self):
        self.module = None


class GraphReplay:
    name = "graph_replay"
    toolchain = ("torch",)
    build_uses_device = False
    kernels = Kernels()

    def probe(self, device: Device) -> Availability:
        return Availability(works=device.kind == "cpu", reason="it runs on CPUs only")

    def space(self, device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
        parameters = (
            Parameter(name="precision", choices=("fp32",)),
            Parameter(name="kernels", choices=("tuned", "torch")),
            Parameter(name="threads", choices=(1,)),
        )
        known = workload is None or any(feature.startswith("graph_replay.linear:") for feature in workload.features)
        constraint = Constraint(reason="a graph without linear layers has no kernels", holds=lambda values: known)
        default = Configuration.of(self.name, {"precision": "fp32", "kernels": "tuned", "threads": 1})
        return SearchSpace(
            backend=self.name, parameters=parameters, constraints=(constraint,), defaults=(default,) if known else ()
        )

    def features(self, model, device):
        graph = model.program("fp32", device).graph
        return {"linear": sum("linear" in str(node.target) for node in graph.nodes)}

    def problems(self, model, configuration, device):
        return {GemmProblem(m=2, n=6, k=12, dtype="fp32", output="fp32", bias=True): 1}

    def build(self, model, configuration, device, folder):
        if configuration["kernels"] == "tuned":
            assert [known.configuration for known in model.known_kernels.best.values()] == [CALL]
        torch.export.save(model.program("fp32", device), str(folder / "program.pt2"))

    def times_kernels_at_build(self, configuration):
        return False

    def times_kernels_at_load(self, configuration):
        return False

    def load(self, folder, device):
        module = torch.export.load(str(folder / "program.pt2")).module()
        return Replay(module, read_record(folder).inputs, device)

    def explain(self, folder):
        return {"nodes_before": 3, "nodes_after": 3, "fusions": {}, "sites": []}


BACKEND = GraphReplay()
