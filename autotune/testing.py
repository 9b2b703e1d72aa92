"""Fakes of autotune's seams, for its tests and for those who build on it; imports nothing heavy."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, cycle
from pathlib import Path
from typing import Any

from autotune.backend import Availability, SourceModel
from autotune.configuration import Configuration
from autotune.device import Device
from autotune.space import Parameter, SearchSpace
from autotune.workload import Workload


class FakeClock:
    """A clock that stands still until it is advanced; fits :class:`autotune.measure.clock.Clock`."""

    def __init__(self) -> None:
        self._now_ns = 0
        self._cpu_ns = 0
        self._switches = 0

    def now_ns(self) -> int:
        """Wall time in nanoseconds since the clock was made."""
        return self._now_ns

    def cpu_ns(self) -> int:
        """CPU time in nanoseconds."""
        return self._cpu_ns

    def switches(self) -> int:
        """Involuntary context switches."""
        return self._switches

    def advance(self, wall_ms: float, *, cpu_ms: float | None = None, switches: int = 0) -> None:
        """Let time pass; CPU time passes along with wall time unless told otherwise, and may not go backwards."""
        self._now_ns += round(wall_ms * 1e6)
        self._cpu_ns += round((wall_ms if cpu_ms is None else cpu_ms) * 1e6)
        self._switches += switches

    def sleep(self, seconds: float) -> None:
        """Stand in for ``time.sleep``: wall time passes, CPU time does not."""
        self.advance(seconds * 1e3, cpu_ms=0.0)


class FakeCall:
    """A callable that takes the given durations in turn, over and over; it returns its inputs and keeps them.

    It also has ``prepare`` and ``close``, so that it serves as a runner and as a finalist.
    """

    def __init__(self, clock: FakeClock, *durations_ms: float, endless: Iterable[float] | None = None) -> None:
        self._clock = clock
        self._durations: Iterator[float] = iter(endless) if endless is not None else cycle(durations_ms)
        self.calls: list[tuple[Any, ...]] = []
        self.prepared = 0

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Let the next duration pass on the clock."""
        self.calls.append(inputs)
        self._clock.advance(next(self._durations))
        return inputs

    def prepare(self) -> None:
        """Count that it was prepared."""
        self.prepared += 1

    def close(self) -> None:
        """Hold nothing, give nothing back."""


FAULTS = (
    *("none", "error", "segfault", "hang", "exit", "memory", "log_flood"),
    *("load_segfault", "inaccurate", "constant", "non_finite"),
)
"""What the misbehaving backend's space offers: nothing wrong, or one wrong thing in its build, its load or its answers,
so that each kind of failure is there."""


class MisbehavingBackend:
    """A backend whose parameter ``fault`` says how it goes wrong; its artifact is the captured graph run eagerly.

    Asked for by hand, it goes wrong in every way of :data:`autotune.reliability.misbehaviour.WAYS`.
    Offer it in a test by an entry point ``misbehaving = autotune.testing:MISBEHAVING`` of group ``autotune.backends``.
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

        from autotune.reliability.misbehaviour import WAYS

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

        from autotune.reliability.misbehaviour import segfault
        from autotune.runtime.artifact import read_record
        from autotune.runtime.signature import Signature

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


Answer = Callable[..., tuple[Any, ...]]
"""What the gate hears from: flat tensors in, a tuple of tensors out."""


def ignoring_input(answer: Answer) -> Answer:
    """Cheat: give the first answer again, whatever the input."""
    first: list[tuple[Any, ...]] = []

    def cheat(*inputs: Any) -> tuple[Any, ...]:
        if not first:
            first.append(answer(*inputs))
        return first[0]

    return cheat


def answering_mean(references: Sequence[tuple[Any, ...]]) -> Answer:
    """Cheat: know the references, and answer their mean (the first value, where an output is not floating)."""
    import torch

    mean = tuple(
        torch.stack(tensors).mean(dim=0) if tensors[0].is_floating_point() else tensors[0]
        for tensors in (list(output) for output in zip(*references, strict=True))
    )
    return lambda *inputs: mean


def swapping_outputs(answer: Answer) -> Answer:
    """Cheat: exchange the first two outputs of one shape, or else the halves of the first output's last dimension."""
    import torch

    def cheat(*inputs: Any) -> tuple[Any, ...]:
        outputs = list(answer(*inputs))
        for i, j in combinations(range(len(outputs)), 2):
            if (outputs[i].shape, outputs[i].dtype) == (outputs[j].shape, outputs[j].dtype):
                outputs[i], outputs[j] = outputs[j], outputs[i]
                return tuple(outputs)
        outputs[0] = torch.roll(outputs[0], outputs[0].shape[-1] // 2, dims=-1)
        return tuple(outputs)

    return cheat


def rounding_outputs_to_fp8(answer: Answer) -> Answer:
    """Cheat: round each floating output to float8_e4m3fn, scaled so that its largest value fits, and back."""

    def cheat(*inputs: Any) -> tuple[Any, ...]:
        return tuple(_through_fp8(output) if output.is_floating_point() else output for output in answer(*inputs))

    return cheat


def rounding_weights_to_fp8(module: Any) -> Any:
    """Cheat: a copy of a module with each of its matrices and kernels rounded to float8_e4m3fn, scaled as a whole."""
    import copy

    import torch

    rounded = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.dim() > 1:
                parameter.copy_(_through_fp8(parameter))
    return rounded


def _through_fp8(tensor: Any) -> Any:
    import torch

    scale = torch.finfo(torch.float8_e4m3fn).max / tensor.abs().max().clamp_min(1e-30)
    return (tensor * scale).to(torch.float8_e4m3fn).to(tensor.dtype) / scale
