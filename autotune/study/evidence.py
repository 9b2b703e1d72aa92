"""The outcome of the finals of a study, as its plan stores it: FinalsEvidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from autotune.execute.finals import FinalsResult
from autotune.measure.paired import RoundFigures
from autotune.measure.percentiles import summary
from autotune.measure.statistics import median_interval
from autotune.measure.verdict import FinalistResult
from autotune.records.configuration import Configuration
from autotune.records.device import Toolchain
from autotune.records.evidence import Blocks, CarriedRecord, FinalistRecord, ObjectiveFigures, PlanEvidence
from autotune.records.objective import Objective
from autotune.records.plan import PlanStatus
from autotune.records.study_start import StudyStart


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """A candidate in finals; ``concurrency`` is its number of requests in flight if throughput is compared.

    One that ``is_unserved`` is not in the serving format of the study, and cannot win.
    """

    configuration: Configuration
    signal_error: float | None
    build_s: float | None
    could_be_baseline: bool
    is_default: bool
    concurrency: int = 1
    is_unserved: bool = False


class PlanFigures(TypedDict):
    """Those fields of a plan that follow from finals."""

    status: PlanStatus
    latency_ms: float
    interval_ms: tuple[float, float]
    baseline_latency_ms: float
    speedup: float
    signal_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalsEvidence:
    """The result of finals, and the finalists by their names in it."""

    result: FinalsResult
    finalists: Mapping[str, Finalist]
    objective: Objective
    batch: int

    def figures(self) -> PlanFigures:
        """Return the figures of a plan for the winner; ``ValueError`` if the finals could not decide."""
        verdict, latencies = self.result.verdict, self._latencies()
        if verdict.status == "undecided":
            raise ValueError(f"finals that could not decide promote no plan: {self.result.doubt}")
        return {
            "status": verdict.status,
            "latency_ms": latencies.figure(verdict.winner),
            "interval_ms": median_interval(latencies.of(verdict.winner)),
            "baseline_latency_ms": latencies.figure(verdict.baseline),
            "speedup": 1.0 if verdict.status == "baseline" else verdict.speedup,
            "signal_error": self.finalists[verdict.winner].signal_error or 0.0,
        }

    def record(
        self, *, study: str | None, inputs: tuple[Mapping[str, object], ...] | None, seed: int | None,
        toolchain: Toolchain, carried: tuple[CarriedRecord, ...] = (), known_at_start: StudyStart | None = None,
        beside: Mapping[str, object] | None = None,
    ) -> PlanEvidence:  # fmt: skip
        """Return the evidence of a plan that these finals promote, with every raw sample."""
        verdict = self.result.verdict
        return PlanEvidence(
            study=study,
            trial=verdict.winner,
            objective=self._objective(),
            finalists=self.finalist_records(),
            tied_with=tuple(verdict.tied_with),
            rounds=verdict.rounds,
            processes=tuple(self.result.process_of_round),
            disturbed_processes=tuple(verdict.disturbed),
            inputs=inputs,
            seed=seed,
            toolchain=toolchain.as_dict(),
            carried=carried or None,
            known_at_start=known_at_start,
            beside=beside or {},
        )

    def _latencies(self) -> RoundFigures:
        """Return the latencies of each round: the values compared if the objective is the latency, else the samples."""
        if self.objective.name == "latency_p50":
            return RoundFigures(self.result.figures, disturbed=self.result.disturbed)
        return RoundFigures(self.result.samples_ms)

    def _objective(self) -> ObjectiveFigures:
        """Return the objective's values for the plan and for the baseline."""
        verdict, objective = self.result.verdict, self.objective
        winner, baseline = verdict.of(verdict.winner), verdict.of(verdict.baseline)
        by_throughput = objective.name == "throughput"
        return ObjectiveFigures(
            name=objective.name,
            unit=objective.unit,
            value=winner.figure,
            interval=winner.interval,
            baseline=baseline.figure,
            concurrency=self.finalists[verdict.winner].concurrency if by_throughput else None,
            items_per_s=1e3 / winner.figure if by_throughput else None,
        )

    def finalist_records(self) -> tuple[FinalistRecord, ...]:
        """Return the finalists in order of latency, with every sample that they are judged by."""
        return tuple(self._finalist_record(finalist) for finalist in self.result.verdict.finalists)

    def _finalist_record(self, judged: FinalistResult) -> FinalistRecord:
        result, latencies = self.result, self._latencies()
        uid, finalist = judged.name, self.finalists[judged.name]
        samples_ms, figures, disturbed = result.samples_ms[uid], result.figures[uid], result.disturbed[uid]
        return FinalistRecord(
            uid=uid,
            batch=self.batch,
            configuration=finalist.configuration,
            latency_ms=latencies.figure(uid),
            interval_ms=median_interval(latencies.of(uid)),
            percentiles=summary([ms for block in samples_ms for ms in block or ()]).as_dict(),
            objective_value=judged.figure,
            objective_interval=judged.interval,
            flags=tuple(result.flags[uid]),
            signal_error=finalist.signal_error,
            build_s=finalist.build_s,
            is_baseline=uid == result.verdict.baseline,
            could_be_baseline=finalist.could_be_baseline,
            is_default=finalist.is_default,
            is_unserved=finalist.is_unserved or None,
            utilisation=result.utilisation.get(uid),
            samples_ms=_blocks(samples_ms),
            figures=_blocks(figures) if figures != samples_ms else None,
            disturbed_rounds=tuple(index for index, marked in enumerate(disturbed) if marked) or None,
        )


def _blocks(rounds: Sequence[Sequence[float] | None]) -> Blocks:
    return tuple(None if block is None else tuple(block) for block in rounds)
