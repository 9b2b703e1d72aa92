"""What the finals of a study came to, as its plan keeps it: FinalsEvidence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.execute.finals import FinalsResult
from autotune.measure.paired import RoundFigures
from autotune.measure.percentiles import summary
from autotune.measure.statistics import median_interval
from autotune.records.configuration import Configuration
from autotune.records.objective import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """One that took part in finals; ``concurrency`` is how many requests it had in flight if throughput counts."""

    configuration: Configuration
    signal_error: float | None
    build_s: float | None
    could_be_baseline: bool
    is_default: bool
    concurrency: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalsEvidence:
    """Finals with those that took part in them, by the names that the result uses."""

    result: FinalsResult
    finalists: Mapping[str, Finalist]
    objective: Objective
    batch: int

    def figures(self) -> dict[str, Any]:
        """The figures of a plan for the winner, by the names of its fields."""
        verdict, latencies = self.result.verdict, self._latencies()
        return {
            "status": verdict.status,
            "latency_ms": latencies.figure(verdict.winner),
            "interval_ms": median_interval(latencies.of(verdict.winner)),
            "baseline_latency_ms": latencies.figure(verdict.baseline),
            "speedup": 1.0 if verdict.status == "baseline" else verdict.speedup,
            "signal_error": self.finalists[verdict.winner].signal_error or 0.0,
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what a plan's evidence says of its finals, with every raw sample."""
        verdict = self.result.verdict
        return {
            "trial": verdict.winner,
            "objective": self._objective(),
            "finalists": self._finalists(),
            "tied_with": list(verdict.tied_with),
            "rounds": verdict.rounds,
            "processes": list(self.result.process_of_round),
            "disturbed_processes": list(verdict.disturbed),
        }

    def _latencies(self) -> RoundFigures:
        """Latencies a round: what was compared, if latency was, else the samples."""
        if self.objective.name == "latency_p50":
            return RoundFigures(self.result.figures, disturbed=self.result.disturbed)
        return RoundFigures(self.result.samples_ms)

    def _objective(self) -> dict[str, Any]:
        """What was minimised, and the values of the plan and of the baseline."""
        verdict, objective = self.result.verdict, self.objective
        winner, baseline = verdict.of(verdict.winner), verdict.of(verdict.baseline)
        found = {
            "name": objective.name,
            "unit": objective.unit,
            "value": winner.figure,
            "interval": list(winner.interval),
            "baseline": baseline.figure,
        }
        if objective.name == "throughput":
            found["concurrency"] = self.finalists[verdict.winner].concurrency
            found["items_per_s"] = 1e3 / winner.figure
        return found

    def _finalists(self) -> list[dict[str, Any]]:
        """One entry a finalist in order of latency, with every sample that it is judged by."""
        result, verdict, latencies = self.result, self.result.verdict, self._latencies()
        found: list[dict[str, Any]] = [
            {
                "uid": one.name,
                "backend": self.finalists[one.name].configuration.backend,
                "batch": self.batch,
                "configuration": self.finalists[one.name].configuration.as_dict(),
                "latency_ms": latencies.figure(one.name),
                "interval_ms": list(median_interval(latencies.of(one.name))),
                "percentiles": summary([ms for block in result.samples_ms[one.name] for ms in block or ()]).as_dict(),
                "objective_value": one.figure,
                "objective_interval": list(one.interval),
                "flags": list(result.flags[one.name]),
                "signal_error": self.finalists[one.name].signal_error,
                "build_s": self.finalists[one.name].build_s,
                "is_baseline": one.name == verdict.baseline,
                "could_be_baseline": self.finalists[one.name].could_be_baseline,
                "is_default": self.finalists[one.name].is_default,
                "utilisation": result.utilisation.get(one.name),
                "samples_ms": result.samples_ms[one.name],
            }
            for one in verdict.finalists
        ]
        for entry in found:
            uid = str(entry["uid"])
            if result.figures[uid] != result.samples_ms[uid]:
                entry["figures"] = result.figures[uid]
            if any(result.disturbed[uid]):
                entry["disturbed_rounds"] = [index for index, marked in enumerate(result.disturbed[uid]) if marked]
        return found
