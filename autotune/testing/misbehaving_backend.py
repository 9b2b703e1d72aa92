"""A backend that goes wrong on demand: MisbehavingBackend."""

from pathlib import Path
from typing import Any

from autotune.backend import Availability, SourceModel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.search_space import Parameter, SearchSpace
from autotune.records.workload import Workload

FAULTS = (
    *("none", "error", "segfault", "hang", "exit", "memory", "log_flood"),
    *("load_segfault", "inaccurate", "constant", "non_finite"),
)
"""What the misbehaving backend's space offers: nothing wrong, or one wrong thing in its build, its load or its answers,
so that each kind of failure is there."""


class MisbehavingBackend:
    """A backend whose parameter ``fault`` says how it goes wrong; its artifact is the captured graph run eagerly.

    Asked for by hand, it goes wrong in every way of :data:`autotune.testing.misbehaviour.WAYS`.
    Offer it in a test by an entry point ``misbehaving = autotune.testing:MISBEHAVING`` of the group
    ``autotune.backends``.
    """

    name = "misbehaving"
    toolchain: tuple[str, ...] = ("torch",)
    build_uses_device = False

    def probe(self, device: Device) -> Availability:
        """It works everywhere, in its way."""
        return Availability(works=True)

    def space(self, device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
        """One point a fault, the harmless one first."""
        parameters = (Parameter(name="fault", choices=FAULTS), Parameter(name="precision", choices=("fp32",)))
        default = Configuration.of(self.name, {"fault": "none", "precision": "fp32"})
        return SearchSpace(backend=self.name, parameters=parameters, defaults=(default,))

    def build(self, model: SourceModel, configuration: Configuration, device: Device, folder: Path) -> None:
        """Go wrong as told, or write the captured graph."""
        import torch

        from autotune.testing.misbehaviour import WAYS

        fault = str(configuration["fault"])
        print(f"building with fault {fault}")
        if fault in WAYS:
            WAYS[fault](folder)
        torch.export.save(model.program("fp32", device), str(folder / "program.pt2"))
        (folder / "fault").write_text(fault)

    def times_kernels_at_build(self, configuration: Configuration) -> bool:
        """Never."""
        return False

    def times_kernels_at_load(self, configuration: Configuration) -> bool:
        """Never."""
        return False

    def load(self, folder: Path, device: Device) -> Any:
        """A runner of the graph, possibly with wrong answers."""
        import torch

        from autotune.runtime.artifact import read_record
        from autotune.runtime.signature import Signature
        from autotune.testing.misbehaviour import segfault

        fault = (folder / "fault").read_text()
        if fault == "load_segfault":
            segfault(folder)
        signature = Signature(read_record(folder).inputs, device.torch_name)
        module: Any = torch.export.load(str(folder / "program.pt2")).module()

        class GraphRunner:
            def __call__(self, *inputs: Any) -> tuple[Any, ...]:
                with torch.no_grad():
                    answers = module(*signature.place(inputs))
                if fault == "inaccurate":
                    return tuple(answer * 1.1 for answer in answers)
                if fault == "non_finite":
                    return tuple(answer * float("nan") for answer in answers)
                return tuple(torch.ones_like(answer) for answer in answers) if fault == "constant" else answers

            def close(self) -> None:
                return None

        return GraphRunner()


MISBEHAVING = MisbehavingBackend()
