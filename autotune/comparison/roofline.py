"""How near a plan is to the limit of its device: a roofline from its work and the device's roofs.

The limit of a call is the time of a launch and the longer one of two times: that of computing its operations at the
matrix rate of its precision, and that of moving its bytes at the rate of a copy (Williams, Waterman and Patterson,
"Roofline", Communications of the ACM, 2009).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from autotune.records.configuration import Configuration
from autotune.records.plan import Plan
from autotune.records.roofs import Roofs
from autotune.records.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Iterable

LimitedBy = Literal["compute", "bandwidth", "launch"]

BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "default": 4}
"""The bytes of a number by the precision of a configuration; ``default`` is fp32 by the rules of the framework."""

MEASURE = "autotune roofs measure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Rates of a device: GB/s of a copy, TFLOP/s of products by precision, µs of a launch."""

    bandwidth_gb_s: float
    tflops: Mapping[str, float]
    launch_us: float
    flags: tuple[str, ...] = ()

    @classmethod
    def of(cls, roofs: Roofs) -> "Ceilings":
        """Return the values of measured roofs."""
        return cls(
            bandwidth_gb_s=roofs.copy_gb_s.value,
            tflops={name: roof.value for name, roof in roofs.matrix_tflops.items()},
            launch_us=roofs.launch_us.value,
            flags=roofs.flags,
        )

    def rate(self, precision: str) -> float | None:
        """Return the rate of a precision in TFLOP/s; ``default`` may use TF32, so the faster one of both counts."""
        names = ("fp32", "tf32") if precision == "default" else (precision,)
        return max((self.tflops[name] for name in names if name in self.tflops), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitInputs:
    """The values that a limit is computed from: the work of a call in a precision, and the roofs of its device.

    ``traffic_bytes`` are those in the precision; ``tflops`` is the matrix rate of the precision.
    """

    precision: str
    flops: int
    traffic_bytes: float
    bandwidth_gb_s: float
    tflops: float
    launch_us: float

    @classmethod
    def of(cls, flops: int, fp32_bytes: int, precision: str, ceilings: Ceilings) -> "LimitInputs":
        """Return the inputs for work that is counted in fp32; ``ValueError`` for a precision without a rate."""
        rate = ceilings.rate(precision)
        if rate is None or precision not in BYTES:
            raise ValueError(f"no rate of {precision} is known")
        return cls(
            precision=precision, flops=flops, traffic_bytes=fp32_bytes * BYTES[precision] / 4,
            bandwidth_gb_s=ceilings.bandwidth_gb_s, tflops=rate, launch_us=ceilings.launch_us,
        )  # fmt: skip

    def least_ms(self) -> tuple[float, LimitedBy]:
        """Return the shortest time of a call in milliseconds, and the part that is the longest of it."""
        parts: dict[LimitedBy, float] = {
            "compute": self.flops / (self.tflops * 1e12) * 1e3,
            "bandwidth": self.traffic_bytes / (self.bandwidth_gb_s * 1e9) * 1e3,
            "launch": self.launch_us / 1e3,
        }
        longest = max(parts, key=lambda name: parts[name])
        return max(parts["compute"], parts["bandwidth"]) + parts["launch"], longest

    @property
    def intensity(self) -> float | None:
        """The operations per byte of traffic; ``None`` without any traffic."""
        return self.flops / self.traffic_bytes if self.traffic_bytes else None

    def tflops_within(self, ms: float) -> float:
        """Return the rate in TFLOP/s of a call that takes these milliseconds."""
        return self.flops / ms / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The shortest time that the roofs of a device allow a call, or none and the reason with the command that helps.

    ``distance`` is the latency of a plan over the limit; ``note`` also says what to know of a limit that is known.
    ``inputs`` are the values that a known limit is computed from.
    """

    ms: float | None = None
    by: LimitedBy | None = None
    distance: float | None = None
    note: str = ""
    command: str = ""
    inputs: LimitInputs | None = None

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """The roofs of devices by their class, and workloads by their structure, which decides their work."""

    ceilings: Mapping[str, Ceilings] = field(default_factory=dict)
    workloads: Mapping[str, Workload] = field(default_factory=dict)

    @classmethod
    def of(cls, roofs: "Iterable[Roofs]", workloads: "Iterable[Workload]") -> "Roofline":
        """Return the roofline of a database's roofs and workloads; of one structure those count whose work is known."""
        counted = [workload for workload in workloads if None not in (workload.flops, workload.traffic_bytes)]
        return cls(
            ceilings={row.device_class: Ceilings.of(row) for row in roofs},
            workloads={workload.structure: workload for workload in counted},
        )

    def limit(self, plan: Plan) -> Limit:
        """Return the limit of a plan on its device, with the plan's distance to it."""
        device = plan.device
        ceilings = self.ceilings.get(device.device_class)
        if ceilings is None:
            command = f"{MEASURE} on a host with {device.sku}, then autotune db merge its export here"
            return Limit(note=f"not known: no roofs of {device.sku} were measured", command=command)
        work, precision = self.work(plan.structure), precision_of(plan.configuration)
        if work is None:
            command = f"autotune tune STUDY_FILE --batch {plan.batch} with a larger budget or another --db counts it"
            return Limit(
                note=f"not known: the version that found {plan.name}'s plan did not count its work", command=command
            )
        if precision not in BYTES or ceilings.rate(precision) is None:
            return Limit(note=f"not known: no rate of {precision} was measured on {device.sku}", command=MEASURE)
        inputs = LimitInputs.of(*work, precision, ceilings)
        ms, by = inputs.least_ms()
        distance = plan.latency_ms / ms
        return Limit(ms=ms, by=by, distance=distance, note=_remark(distance, ceilings.flags), inputs=inputs)

    def work(self, structure: str) -> tuple[int, int] | None:
        """Return the operations and the bytes of a structure; ``None`` if they are not known."""
        workload = self.workloads.get(structure)
        if workload is None or workload.flops is None or workload.traffic_bytes is None:
            return None
        return workload.flops, workload.traffic_bytes


def precision_of(configuration: Configuration) -> str:
    """Return the precision of a configuration; one without this parameter computes in fp32."""
    return str(configuration.get("precision", "fp32"))


def _remark(distance: float, flags: tuple[str, ...]) -> str:
    remarks = []
    if distance < 1:
        remarks.append("faster than the limit: its data stays in a cache, or the roofs are too low")
    if flags:
        words = ", ".join(flag.replace("_", " ") for flag in flags)
        remarks.append(f"the roofs were measured under: {words}")
    return "; ".join(remarks)
