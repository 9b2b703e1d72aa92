"""The seconds that a replay charges for the steps of a recorded study: StudyCharges, TrialCharge."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from autotune import registry
from autotune.programs.study_replay.machine import Hold, Machine, MachineStage
from autotune.programs.study_replay.recording import ClockedTrial, RecordedStudy
from autotune.records.configuration import Configuration
from autotune.records.trial import Failure

START_S, END_S = 0.8, 0.1
"""The seconds until a process of the server has begun its step, and until it is gone; not recorded, so assumed."""

LOAD_S, SETTLING = 1.5, 1 / 3
"""The seconds of a load that overlaps with builds, and the share at its end in which it computes if it loads in turn.

Neither is recorded, so both are assumed.
"""

CHECK_S = 0.15
"""The longest part of a turn on the device that is charged as the check."""

SMALL_S = 1.0
"""A build that takes no longer uses one core: it writes the model as it is."""

BUILD_PARTS: dict[str, tuple[tuple[Hold, float], ...]] = {
    "inductor": (("none", 0.464), ("shared", 0.018), ("none", 0.518)),
    "torchscript": (("none", 0.66), ("shared", 0.34)),
}
"""The parts of a build beside others, by backend: whether it holds the device, and the share of the build's seconds.

Each is the mean of ResNet-50 and BERT-base, built alone on an H200 (torch 2.11, fp16). Of inductor's 37.4 and 34.9 s,
15.7 and 17.7 s passed until it tried launch sizes (1.1 and 0.2 s). Of TorchScript's 3.1 and 5.8 s, the last 1.1 and
1.9 s were tracing, freezing and saving.
"""

PREFETCHING_CORES = 4.0
"""The cores that compile kernels beside the first batch."""

CORRECTIONS = 20
"""The steps in which the seconds of builds alone are found."""

PROBLEM_CORES = 7.0
"""The cores that the search for a graph's kernel problems can use.

With it eight graphs at once take 3.5 times as long as one, as they did in a study of ViT-B/16 (16.2 s and 4.6 s).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialCharge:
    """The seconds of a trial's steps, and its latency.

    ``turn_s`` are those of its turn on the device besides the ``sampled_s``: its check, and its load if that is not
    begun early. ``assumed`` is true if the recording lacks the configuration. One with a ``failure`` has no latency.
    """

    build_s: float
    turn_s: float
    sampled_s: float
    latency_ms: float
    signal_error: float
    assumed: bool = False
    failure: Failure | None = None


class StudyCharges:
    """Charges of a study's steps, by its recording.

    A build of a large graph can use ``build_cores`` cores. If the recorded builds had fewer for a time, each is charged
    with the seconds that it would have taken alone.
    """

    def __init__(self, recording: RecordedStudy, build_cores: float) -> None:
        self.recording, self.build_cores = recording, build_cores
        self._trials = {item.trial.configuration: item for item in recording.trials}
        self._build_s: dict[Configuration, float] = {}
        for number, batch in enumerate(recording.batches):
            self._build_s |= self._alone_s(batch, PREFETCHING_CORES if number == 0 else 0.0)
        first = recording.batches[0]
        longest_s = max(item.trial.build_s or 0.0 for item in first)
        self._first_start_s = max(START_S, first[0].ended_s - self._turn_s(first[0]) - first[0].sampled_s - longest_s)

    def of(self, configuration: Configuration) -> TrialCharge:
        """Return the charge of a configuration.

        One that the recording lacks is charged with the medians of its backend (of its turn, those that load at the
        same time), and has the latency, or the failure, of the recorded configuration that differs in the fewest
        parameters.
        """
        item = self._trials.get(configuration)
        if item is not None:
            return self._charge(item, assumed=False)
        same = [other for other in self._trials.values() if other.trial.configuration.backend == configuration.backend]
        same = same or list(self._trials.values())
        nearest = min(same, key=lambda other: _distance(other.trial.configuration, configuration))
        charges = [self._charge(other, assumed=True) for other in same]
        late = loads_late(configuration)
        alike = [other for other in same if loads_late(other.trial.configuration) == late] or same
        return TrialCharge(
            build_s=median(charge.build_s for charge in charges), turn_s=median(map(self._turn_s, alike)),
            sampled_s=median(charge.sampled_s for charge in charges),
            latency_ms=self._charge(nearest, assumed=True).latency_ms,
            signal_error=nearest.trial.signal_error or 0.0, assumed=True, failure=nearest.trial.failure,
        )  # fmt: skip

    def recorded_build_s(self, configuration: Configuration) -> float:
        """Return the recorded seconds of a build, in the company that it had; for one without those it is charged."""
        item = self._trials.get(configuration)
        return self.of(configuration).build_s if item is None else item.trial.build_s or 0.0

    def _alone_s(self, batch: Sequence[ClockedTrial], beside_cores: float) -> dict[Configuration, float]:
        """Return the seconds of a batch's builds alone, such that together they take the recorded ones."""
        recorded_s = {item.trial.configuration: item.trial.build_s or 0.0 for item in batch}
        alone_s = dict(recorded_s)
        for _ in range(CORRECTIONS):
            machine = Machine(self.recording.device.cores)
            machine.add([MachineStage(name="build", seconds=2 * max(recorded_s.values()), cores=beside_cores)])
            steps = {
                configuration: machine.add([MachineStage(name="build", seconds=seconds, cores=self._cores(seconds))])
                for configuration, seconds in alone_s.items() if seconds > 0
            }  # fmt: skip
            machine.wait(lambda steps=steps: all(step.done for step in steps.values()))  # type: ignore[misc]
            for configuration, step in steps.items():
                assert step.end_s is not None  # it was waited for
                alone_s[configuration] *= recorded_s[configuration] / step.end_s
        return alone_s

    def _cores(self, build_s: float) -> float:
        return self.build_cores if build_s > SMALL_S else 1.0

    def _charge(self, item: ClockedTrial, *, assumed: bool) -> TrialCharge:
        trial = item.trial
        return TrialCharge(
            build_s=self._build_s[trial.configuration], turn_s=self._turn_s(item),
            sampled_s=item.sampled_s, latency_ms=trial.latency_ms or 0.0, signal_error=trial.signal_error or 0.0,
            assumed=assumed, failure=trial.failure,
        )  # fmt: skip

    def _turn_s(self, item: ClockedTrial) -> float:
        """Return the seconds of a turn besides its samples; of the first in a batch those of other early loads."""
        if item.turn_s is not None:
            return max(0.0, item.turn_s - item.sampled_s)
        late = loads_late(item.trial.configuration)
        same = [
            other.turn_s - other.sampled_s for other in self.recording.trials
            if other.turn_s is not None and loads_late(other.trial.configuration) == late
        ]  # fmt: skip
        return max(0.0, median(same)) if same else CHECK_S

    # Steps

    def build(self, configuration: Configuration, *, first: bool) -> list[MachineStage]:
        """Return the stages of a build; the first builds of a study wait until their modules are imported."""
        start_s = self._first_start_s if first else START_S
        seconds = self.of(configuration).build_s
        cores = self._cores(seconds)
        return [
            MachineStage(name="starting", seconds=start_s, cores=0.0),
            *(
                MachineStage(name="build", seconds=share * seconds, cores=cores, hold=hold)
                for hold, share in _build_parts(configuration)
            ),
            MachineStage(name="ending", seconds=END_S, cores=0.0),
        ]

    def early_load(self, configuration: Configuration) -> list[MachineStage]:
        """Return the stages of a load beside builds; one that times kernels does all that it computes in its turn."""
        settling = 1.0
        if registry.loads_in_turn(configuration.backend):
            settling = 0.0 if loads_late(configuration) else SETTLING
        return [
            MachineStage(name="starting", seconds=START_S),
            MachineStage(name="load", seconds=(1 - settling) * LOAD_S),
            MachineStage(name="load", seconds=settling * LOAD_S, hold="shared"),
        ]

    def turn(self, configuration: Configuration, *, loaded: bool) -> list[MachineStage]:
        """Return the stages of a candidate's turn on the device, which it has alone."""
        charge, late = self.of(configuration), loads_late(configuration)
        start_s = min(START_S, charge.turn_s) if late or not loaded else 0.0
        check_s = min(CHECK_S, charge.turn_s - start_s)
        end_s = min(END_S, charge.turn_s - start_s - check_s)
        load_s = charge.turn_s - start_s - check_s - end_s
        if loaded and late:  # it has begun early, up to the part that times kernels
            start_s, load_s = 0.0, max(0.0, load_s - LOAD_S)
        elif loaded:
            check_s, load_s = check_s + load_s, 0.0
        return [
            MachineStage(name="starting", seconds=start_s),
            MachineStage(name="load", seconds=load_s, hold="exclusive"),
            MachineStage(name="check", seconds=check_s, hold="exclusive"),
            MachineStage(name="measure", seconds=charge.sampled_s, hold="exclusive"),
            MachineStage(name="ending", seconds=end_s, cores=0.0),
        ]  # fmt: skip

    def reference(self) -> list[MachineStage]:
        """Return the stages of the reference, which is computed before the first batch."""
        whole_s = self.recording.batches[0][0].begun_s
        start_s = min(START_S, whole_s)
        return [
            MachineStage(name="starting", seconds=start_s),
            MachineStage(name="check", seconds=whole_s - start_s, hold="shared"),
        ]

    def problems(self) -> list[MachineStage]:
        """Return the stages of the search for the kernel problems of one graph.

        Its seconds are those between the first batch and the second, in which the graphs of that batch are searched.
        """
        batches = self.recording.batches
        gap_s = 5.0
        if len(batches) > 1:
            first = batches[0]
            gap_s = batches[1][0].begun_s - first[0].begun_s - first[-1].ended_s
        return [MachineStage(name="build", seconds=max(0.5, gap_s), cores=PROBLEM_CORES)]


def loads_late(configuration: Configuration) -> bool:
    """Return whether a candidate has loaded in its turn when it was recorded: its backend times kernels meanwhile."""
    return registry.backend(configuration.backend).times_kernels_at_load(configuration)


def _build_parts(configuration: Configuration) -> tuple[tuple[Hold, float], ...]:
    """Return the parts of a build as shares of its seconds; one of unknown parts holds the device as a whole."""
    name = configuration.backend
    if not registry.backend(name).build_uses_device:
        return (("none", 1.0),)
    if registry.builds_alone(configuration):
        return (("exclusive", 1.0),)
    whole: tuple[tuple[Hold, float], ...] = (("shared", 1.0),)
    return BUILD_PARTS.get(name, whole) if registry.builds_in_turn(name) else whole


def _distance(one: Configuration, other: Configuration) -> tuple[int, str]:
    values, others = dict(one.values), dict(other.values)
    return sum(values.get(name) != value for name, value in others.items()), one.digest
