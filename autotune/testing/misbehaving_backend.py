"""A backend that misbehaves on demand: MisbehavingBackend."""

from pathlib import Path

from autotune.backend import Availability, Runner, SourceModel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.search_space import Parameter, SearchSpace
from autotune.records.workload import Workload

FAULTS = (
    *("none", "error", "segfault", "hang", "exit", "memory", "log_flood"),
    *("load_segfault", "inaccurate", "constant", "non_finite"),
)
"""The choices in the space of the misbehaving backend: no fault, or one in the build, the load or the answers."""


class MisbehavingBackend:
    """A backend whose parameter ``fault`` selects how it misbehaves; its artifact is the captured graph run eagerly.

    A configuration that is written by hand may have any fault of :data:`autotune.testing.misbehaviour.WAYS`.
    Offer it in a test by an entry point ``misbehaving = autotune.testing:MISBEHAVING`` of the group
    ``autotune.backends``.
    """

    name = "misbehaving"
    toolchain: tuple[str, ...] = ("torch",)
    build_uses_device = False

    def probe(self, device: Device) -> Availability:
        """Be available everywhere."""
        return Availability(works=True)

    def space(self, device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
        """Return a space with one point for each fault, the harmless one first."""
        parameters = (Parameter(name="fault", choices=FAULTS), Parameter(name="precision", choices=("fp32",)))
        default = Configuration.of(self.name, {"fault": "none", "precision": "fp32"})
        return SearchSpace(backend=self.name, parameters=parameters, defaults=(default,))

    def build(self, model: SourceModel, configuration: Configuration, device: Device, folder: Path) -> None:
        """Fail as the configuration says, or write the captured graph."""
        import torch

        from autotune.testing.misbehaviour import WAYS

        fault = str(configuration["fault"])
        print(f"building with fault {fault}")
        if fault in WAYS:
            WAYS[fault](folder)
        torch.export.save(model.program("fp32", device), str(folder / "program.pt2"))
        (folder / "fault").write_text(fault)

    def times_kernels_at_build(self, configuration: Configuration) -> bool:
        """Return false."""
        return False

    def times_kernels_at_load(self, configuration: Configuration) -> bool:
        """Return false."""
        return False

    def load(self, folder: Path, device: Device) -> Runner:
        """Return a runner of the graph, possibly with wrong answers."""
        import torch

        from autotune.runtime.artifact import read_record
        from autotune.runtime.signature import Signature
        from autotune.testing.misbehaviour import segfault

        fault = (folder / "fault").read_text()
        if fault == "load_segfault":
            segfault(folder)
        signature = Signature(read_record(folder).inputs, device.torch_name)
        module = torch.export.load(str(folder / "program.pt2")).module()

        class GraphRunner:
            def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
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
