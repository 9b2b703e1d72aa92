"""The estimated time of a graph's launches, and the groups of those that are left to torch."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autotune.records.graph_coverage import GraphCoverage, GraphLaunch, OperatorRefusal
from autotune.records.roofs import Roofs

LAUNCH_US = 2.0
"""Assumed for each launch within a CUDA graph. With it the estimates for ResNet-50, BERT-base and ViT-B/16 at batch 1
are 0.65 to 0.74 of the time that an H200 was busy (docs/native-engine.md): only shares and ratios are meaningful."""

COPY_BYTES_PER_S = 4.3e12
"""Sustained by an H200, see :data:`autotune.kernels.rates.SUSTAINED_MEMORY`."""

MATRIX_FLOPS_PER_S = 500e12
"""In fp16 and bf16. An H200 reaches 440 to 730 TFLOP/s in products of 4,096 rows and more
(studies/kernels/nvidia-h200-comparison.md)."""

NO_PATTERN = OperatorRefusal(function="fusions", reason="no fusion reads this operator")
"""For an operator that no function refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The rates of a device, from which the time of a launch is estimated, and their source in words."""

    copy_bytes_per_s: float = COPY_BYTES_PER_S
    matrix_flops_per_s: float = MATRIX_FLOPS_PER_S
    launch_us: float = LAUNCH_US
    source: str = "constants of an H200"

    @classmethod
    def of(cls, roofs: Roofs, precision: str) -> "Rates":
        """Return measured roofs as rates; the roof of a launch has the host's part in it, so it is not used."""
        matrix = roofs.matrix_tflops.get(precision)
        return cls(
            copy_bytes_per_s=1e9 * roofs.copy_gb_s.value,
            matrix_flops_per_s=MATRIX_FLOPS_PER_S if matrix is None else 1e12 * matrix.value,
            source=f"roofs of {roofs.device_class}",
        )

    def time_us(self, launch: GraphLaunch) -> float:
        """Estimate a launch: its fixed cost, and the longer one of moving its bytes and computing its products."""
        moving_s = launch.traffic_bytes / self.copy_bytes_per_s
        return self.launch_us + 1e6 * max(moving_s, launch.flops / self.matrix_flops_per_s)

    def total_us(self, launches: Iterable[GraphLaunch]) -> float:
        """Estimate launches that run one after the other."""
        return sum(map(self.time_us, launches))

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "copy_bytes_per_s": self.copy_bytes_per_s, "matrix_flops_per_s": self.matrix_flops_per_s,
            "launch_us": self.launch_us, "source": self.source,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The launches of one operator that are left to torch: their number, estimated share, and refusals with counts."""

    operator: str
    launches: int
    share: float
    refusals: Mapping[OperatorRefusal, int]

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        reasons = [
            {"function": refusal.function, "reason": refusal.reason, "launches": count}
            for refusal, count in self.refusals.items()
        ]
        return {"operator": self.operator, "launches": self.launches, "share": self.share, "refusals": reasons}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCoverage:
    """The coverage of one model at one batch, with the rates that its times are estimated by."""

    name: str
    batch: int
    precision: str
    coverage: GraphCoverage
    rates: Rates

    @property
    def left(self) -> Sequence[GraphLaunch]:
        """The launches that are left to torch."""
        return [launch for launch in self.coverage.after if launch.owner == "torch"]

    @property
    def before_us(self) -> float:
        """The estimated time of a call before the rewriting."""
        return self.rates.total_us(self.coverage.before)

    @property
    def after_us(self) -> float:
        """The estimated time of a call after the rewriting."""
        return self.rates.total_us(self.coverage.after)

    @property
    def torch_share(self) -> float:
        """The share of :attr:`after_us` that is left to torch; 0 for a graph without launches."""
        return self.rates.total_us(self.left) / self.after_us if self.coverage.after else 0.0

    def groups(self) -> list[Group]:
        """Return the launches that are left to torch by their operators, the largest share first."""
        by_operator: dict[str, list[GraphLaunch]] = {}
        for launch in self.left:
            by_operator.setdefault(launch.operator, []).append(launch)
        groups = [
            Group(
                operator=operator, launches=len(launches), share=self.rates.total_us(launches) / self.after_us,
                refusals=dict(_refusals(launches).most_common()),
            )
            for operator, launches in by_operator.items()
        ]  # fmt: skip
        return sorted(groups, key=lambda group: -group.share)

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        coverage = self.coverage
        return {
            "name": self.name, "batch": self.batch, "precision": self.precision,
            "launches_before": len(coverage.before), "launches_after": len(coverage.after),
            "products": coverage.products, "own_products": coverage.own_products,
            "before_us": self.before_us, "after_us": self.after_us, "torch_share": self.torch_share,
            "groups": [group.as_dict() for group in self.groups()], "fusions": dict(coverage.fusions),
            "rates": self.rates.as_dict(), "launches": [launch.as_dict() for launch in coverage.after],
        }  # fmt: skip


def _refusals(launches: Iterable[GraphLaunch]) -> Counter[OperatorRefusal]:
    return Counter(refusal for launch in launches for refusal in launch.refusals or (NO_PATTERN,))
