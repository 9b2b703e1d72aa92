"""Replays the search of recorded studies in simulated time: ``python -m autotune.programs.study_replay``.

The search, its schedule, the samplers and the tuning of kernels are those of every study. Capturing, building,
loading, checking and timing are charged with the seconds of the recording, on a host whose cores and device are shared
by all that runs at once. So a change of the schedule can be judged without a GPU. The table has a row for each
recording, and one for its replay.

By the schedule that they were recorded with, the replays of the first three committed studies had every moment within
6% of the recorded one, building and sampling within 7%, and other time up to 17% too low. Those of the seven later
studies have the first candidate with tuned kernels 11% earlier to 6% later than it was recorded. A replay does not
know how builds share memory bandwidth and caches, how a device's clock falls, or which stages of a build need the
device that it holds; the times of kernels are estimates.

The recordings are of schedules that built the candidates of a batch together and timed them one after the other. In
studies by the present schedule, as in ``studies/plans.zip``, the time between the ends of two trials includes waits for
builds, so charges from them are too high.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from autotune.programs.check_result import CheckResult
from autotune.programs.document import rows_of
from autotune.programs.frame import Run, parser_of, positive, run_program, say
from autotune.programs.kernel_replay.main import costs_of
from autotune.programs.kernel_replay.problems import PROBLEMS, read_problems
from autotune.programs.kernel_replay.simulated import SimulatedCosts
from autotune.programs.study_replay.charges import StudyCharges
from autotune.programs.study_replay.recording import RecordedStudy, read_recordings
from autotune.programs.study_replay.replay import StudyTimeline, recorded, replay
from autotune.programs.surroundings import environment
from autotune.records.kernel_problem import GemmProblem

NAME = "study_replay"
RECORDINGS = Path("studies/recordings.zip")

MOST_LATER = 0.15
"""The most by which a moment of a replay may be later than the recorded one, as a share of that."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _replay_studies, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME, "write every figure, and the trials with their moments")
    parser.add_argument(
        "recordings", nargs="*", type=Path, default=[RECORDINGS], metavar="FILE",
        help=f"files of autotune db export ({RECORDINGS})",
    )  # fmt: skip
    parser.add_argument("--problems", type=Path, default=PROBLEMS, metavar="FILE", help=f"weights ({PROBLEMS})")
    parser.add_argument("--only", metavar="NAME", help="replay the studies whose names contain this alone")
    parser.add_argument("--cores", type=positive, help="cores of the host (those of the recording)")
    parser.add_argument(
        "--build-cores", type=float, default=2.0, metavar="N", help="cores that the build of a model can use (2)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the simulated kernels (0)")
    return parser


def _replay_studies(run: Run) -> int:
    options = run.options
    weights = {problem: count for model in read_problems(options.problems) for problem, count in model.weights.items()}
    timelines: list[tuple[StudyTimeline, StudyTimeline]] = []
    for path in options.recordings:
        for recording in read_recordings(path):
            if options.only and options.only not in f"{recording.row.name}-{recording.row.batch}":
                continue
            timelines.append((recorded(recording), _replayed(recording, options, weights)))
            for timeline in timelines[-1]:
                say(_row(timeline))
    results = [result for pair in timelines for result in _checks(*pair)]
    more = {"studies": [{"recorded": real.as_dict(), "replayed": replayed.as_dict()} for real, replayed in timelines]}
    return run.report(rows_of(results), environment("cpu"), text=markdown(timelines), seed=options.seed, more=more)


def _replayed(
    recording: RecordedStudy, options: argparse.Namespace, weights: dict[GemmProblem, float]
) -> StudyTimeline:
    charges = StudyCharges(recording, options.build_cores)
    cores = options.cores or recording.device.cores
    return replay(charges, _costs(recording), cores=cores, weights=weights, seed=options.seed)


def _costs(recording: RecordedStudy) -> SimulatedCosts:
    """Return the costs of kernels; if a pack was installed, the kinds of it are compiled."""
    start = recording.row.start
    return costs_of("compiled" if start is not None and start.compiled_kernels else "nvrtc")


def _checks(real: StudyTimeline, replayed: StudyTimeline) -> list[CheckResult]:
    """Fail moments that are later than the recorded ones; the defaults are none of them, for some are to wait."""
    moments = {
        "the first own kernels": (real.own_kernels_s, replayed.own_kernels_s),
        "90% of the gain": (real.gain_s, replayed.gain_s),
        "within 3% of the best": (real.in_reach_s, replayed.in_reach_s),
        "the end of the study": (real.total_s, replayed.total_s),
    }
    return [
        CheckResult(
            check=f"{real.name}, batch {real.batch}: {moment}",
            figure="never" if there is None else f"{there:.0f} s, recorded {here:.0f} s ({there / here - 1:+.0%})",
            limit=f"at most {MOST_LATER:.0%} later",
            passed=there is not None and there / here - 1 <= MOST_LATER,
        )
        for moment, (here, there) in moments.items() if here
    ]  # fmt: skip


def markdown(timelines: Sequence[tuple[StudyTimeline, StudyTimeline]]) -> str:
    """Write a table with two rows for each study: as it was recorded, and as it was replayed."""
    lines = [
        "Seconds of search until the last default, the first own kernels, 90% of the gain, a candidate within 3% of "
        "the best; the whole search and study; the split of the study.",
        "",
        "| study | | defaults | own kernels | 90% | within 3% | search | study | best ms | building | checking | "
        "sampling | other | idle | crowded | trials | kernels | their loss |",
        f"| --- | --- |{' ---: |' * 16}",
    ]
    for pair in timelines:
        lines += [_row(timeline) for timeline in pair]
    assumed = sum(replayed.assumed for _, replayed in timelines)
    if assumed:
        lines += [
            "",
            f"{assumed} of the replayed trials are not recorded: they are charged with the medians of their backend, "
            "and have the latency of the nearest recorded configuration.",
        ]
    return "\n".join(lines)


def _row(timeline: StudyTimeline) -> str:
    is_replay = timeline.idle_s is not None
    split = [timeline.split[kind] for kind in ("building", "checking", "sampling", "other")]
    seconds = [
        timeline.defaults_s, timeline.own_kernels_s, timeline.gain_s, timeline.in_reach_s, timeline.searched_s,
        timeline.total_s,
    ]  # fmt: skip
    cells = [f"{timeline.name}, {timeline.batch}", "replayed" if is_replay else "recorded", *map(_seconds, seconds)]
    cells += [f"{timeline.best_ms:.4g}", *map(_seconds, split), _share(timeline.idle_s, timeline.searched_s)]
    cells += [_share(timeline.crowded_s, timeline.searched_s), f"{len(timeline.trials)} ({timeline.assumed} assumed)"]
    cells += [str(timeline.kernel_trials) if is_replay else "–", _share(timeline.kernel_loss, 1.0)]
    return f"| {' | '.join(cells)} |"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.0f} s"


def _share(seconds: float | None, whole_s: float) -> str:
    return "–" if seconds is None else f"{seconds / whole_s:.0%}"
