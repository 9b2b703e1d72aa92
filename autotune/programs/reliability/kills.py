"""Coordinators and workers that are killed or restarted, and eight that run at once: no trial is lost or doubled."""

import multiprocessing
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from autotune.database.rows import StudyRow
from autotune.database.store import Store
from autotune.programs.check_result import CheckResult
from autotune.programs.reliability import simulated
from autotune.programs.reliability.campaign import Campaign
from autotune.programs.reliability.places import own_database
from autotune.records.trial import Trial

POLL_S = 0.002
VICTIMS = ("coordinator", "worker")
LONGEST_DELAY_S = 10 * simulated.WORK_S
"""The longest time from the trial after which a kill is due to the kill: anywhere within a trial or two."""
PATIENCE_S = 600.0
"""More than any coordinator of a campaign takes, killed or not."""

_FORKS = multiprocessing.get_context("forkserver")  # starts real processes that need not import everything again
_FORKS.set_forkserver_preload(
    ["autotune.programs.reliability.simulated", "autotune.search.sampler", "optuna", "scipy.stats"]
)


def check(campaign: Campaign) -> list[CheckResult]:
    """Run every campaign on every database."""
    results = []
    for kind in sorted(campaign.databases):
        with _place(campaign, kind, "kills") as part:
            results.append(_survives(campaign, kind, part))
        with _place(campaign, kind, "stopped") as part:
            results.append(_continues(campaign, kind, part))
        with _place(campaign, kind, "eight") as part:
            results.append(_eight_at_once(campaign, kind, part))
    return results


@contextmanager
def _place(campaign: Campaign, kind: str, name: str) -> Iterator[simulated.Part]:
    """Yield the task of the coordinators of a campaign: a database of its own, and a journal beside it."""
    folder = campaign.folder / f"{name}-{kind}"
    folder.mkdir()
    with own_database(campaign, kind, name) as url:
        yield simulated.Part(
            database=url,
            study=name,
            trials=1,
            journal=str(folder / "journal"),
            site=str(simulated.install(folder)),
            seed=campaign.seed,
        )


def start(part: simulated.Part) -> BaseProcess:
    """Start a coordinator in a process of its own."""
    process = _FORKS.Process(target=simulated.coordinate, args=(part,), daemon=True)
    process.start()
    return process


def kill(process: BaseProcess, victim: str) -> bool:
    """Kill the coordinator, or the worker that it waits for; returns whether there was a process to kill."""
    if victim == "coordinator":
        process.kill()
        process.join()
        return True
    try:
        workers = psutil.Process(process.pid).children()
        for worker in workers:
            worker.kill()
    except psutil.NoSuchProcess:
        return False
    return bool(workers)


def _survives(campaign: Campaign, kind: str, part: simulated.Part) -> CheckResult:
    trials, kills = campaign.pick(400, 12), campaign.pick(200, 6)
    rng = random.Random(campaign.seed)
    part = replace(part, trials=trials)
    journal = simulated.Journal(Path(part.journal))
    # All before the last few trials, so that every kill finds the study at work.
    due = sorted((rng.randrange(int(trials * 0.97)), rng.choice(VICTIMS)) for _ in range(kills))
    starts, broke, killed = 1, 0, Counter[str]()
    process, deadline = start(part), time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if not process.is_alive():
            if process.exitcode == 0:
                break
            broke += process.exitcode != -signal.SIGKILL
            starts += 1
            process = start(part)
        if due and len(journal.lines("finished")) >= due[0][0]:
            time.sleep(rng.uniform(0.0, LONGEST_DELAY_S))
            if process.is_alive() and kill(process, due[0][1]):
                killed[due.pop(0)[1]] += 1
        time.sleep(POLL_S)
    ended = process.exitcode == 0
    process.kill()
    study, stored, screenings = _stored(part)
    wrong = _audit(journal, study, stored, screenings, trials)
    given_up = sum("given up" in str(trial.failure) for trial in stored)
    passed = ended and killed.total() == kills and broke == 0 and not any(wrong.values())
    return CheckResult(
        check=f"{kills} kills over {trials} trials, {kind}",
        figure=f"{wrong['lost']} lost, {wrong['doubled']} doubled, {'ended by itself' if ended else 'did not end'}",
        limit="0 lost, 0 doubled, ends by itself",
        passed=passed,
        raw={
            **wrong,
            "kills": dict(killed),
            "starts": starts,
            "ended_by_an_error": broke,
            "errors": journal.lines("error"),
            "given_up": given_up,
            "states": dict(Counter(trial.state for trial in stored)),
            "most_attempts": max((trial.attempt for trial in stored), default=0),
        },
    )


def _stored(part: simulated.Part) -> tuple[StudyRow, list[Trial], list[int]]:
    """Return the content of the database: the study, its trials, and the number of screenings of each trial."""
    with Store.open(part.database, create=False) as store:
        (study,) = store.studies.list(part.study)
        trials = store.trials.of_study(study.uid)
        return study, trials, [len(store.trials.measurements(trial.uid, "screening")) for trial in trials]


def _audit(
    journal: simulated.Journal, study: StudyRow, stored: list[Trial], screenings: list[int], trials: int
) -> dict[str, int]:
    """Compare the database with the journal: each finished trial must be stored, once and as it was reported."""
    rows = {trial.uid: trial for trial in stored}
    finished = [line for line in journal.lines("finished") if line["study"] == study.name]
    times = Counter(line["configuration"] for line in finished)
    lost = sum(
        line["uid"] not in rows
        or (rows[line["uid"]].state, rows[line["uid"]].latency_ms) != (line["state"], line["latency_ms"])
        for line in finished
    )
    mixed_up = sum(
        trial.state == "complete" and trial.latency_ms != simulated.latency_ms(trial.configuration) for trial in stored
    )
    numbers = [trial.number for trial in stored]
    configurations = Counter(trial.configuration.digest for trial in stored)
    return {
        "lost": lost + abs(trials - len(stored)) + sum(trial.state == "running" for trial in stored),
        "doubled": sum(count - 1 for count in times.values())
        + sum(count - 1 for count in configurations.values())
        + sum(count > 1 for count in screenings),
        "without_samples": sum(
            trial.state == "complete" and count != 1 for trial, count in zip(stored, screenings, strict=True)
        ),
        "mixed_up": mixed_up,
        "numbers_missing": len(set(range(len(stored))) ^ set(numbers)),
        "not_finished": int(study.state != "finished"),
    }


def _continues(campaign: Campaign, kind: str, part: simulated.Part) -> CheckResult:
    trials = campaign.pick(100, 10)
    part = replace(part, trials=trials)
    journal = simulated.Journal(Path(part.journal))
    process, deadline = start(part), time.monotonic() + PATIENCE_S
    while len(journal.lines("finished")) < trials // 2 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    assert process.pid is not None  # it was started
    psutil.Process(process.pid).terminate()
    process.join(PATIENCE_S)
    before, stopped = len(journal.lines("finished")), process.exitcode
    again = start(part)
    again.join(PATIENCE_S)
    study, stored, screenings = _stored(part)
    times = Counter(line["configuration"] for line in journal.lines("measured"))
    finalists = _finalists(part, study)
    twice = [digest for digest, count in times.items() if count > 1 + (digest in finalists)]
    wrong = _audit(journal, study, stored, screenings, trials)
    ended = (stopped, again.exitcode) == (1, 0)
    return CheckResult(
        check=f"stopped at 50%, started again, {kind}",
        figure=f"{len(twice)} configurations measured twice",
        limit="0 configurations measured twice",
        passed=not twice and ended and trials // 2 <= before < trials and not any(wrong.values()),
        raw={**wrong, "twice": twice, "trials": trials, "before": before, "exit_codes": [stopped, again.exitcode]},
    )


def _finalists(part: simulated.Part, study: StudyRow) -> set[str]:
    """Return the configurations that the finals measured once more."""
    with Store.open(part.database, create=False) as store:
        return {
            trial.configuration.digest
            for trial in store.trials.of_study(study.uid)
            if store.trials.measurements(trial.uid, "finals")
        }


def _eight_at_once(campaign: Campaign, kind: str, part: simulated.Part) -> CheckResult:
    """Run eight studies, and for each of them a rival that tries to coordinate it too."""
    trials, journal = campaign.pick(50, 4), simulated.Journal(Path(part.journal))
    parts = [replace(part, study=f"study-{number}", trials=trials) for number in range(8)]
    processes = [start(of_study) for of_study in parts]
    rivals: dict[str, BaseProcess] = {}
    deadline = time.monotonic() + PATIENCE_S
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        for name in {line["study"] for line in journal.lines("started")} - set(rivals):
            rivals[name] = start(next(of_study for of_study in parts if of_study.study == name))
        time.sleep(POLL_S)
    for process in (*processes, *rivals.values()):
        process.join(PATIENCE_S)
    errors = journal.lines("error")
    refused = sum(line["kind"] == "StudyHeldError" for line in errors)
    others = [line for line in errors if line["kind"] != "StudyHeldError"]
    locked = sum("locked" in line["text"] or line["kind"] == "DatabaseError" for line in others)
    claims = Counter((line["study"], line["number"]) for line in journal.lines("started"))
    double = sum(count - 1 for count in claims.values())
    wrong: Counter[str] = Counter()
    for of_study in parts:
        wrong.update(_audit(journal, *_stored(of_study), trials))
    ended = sum(process.exitcode == 0 for process in processes)
    return CheckResult(
        check=f"8 studies at once, {kind}",
        figure=f'{locked} "locked" errors, {double} double claims',
        limit='0 "locked" errors, 0 double claims',
        passed=ended == 8 and not others and not double and not any(wrong.values()),
        raw={
            **wrong,
            "trials": trials,
            "exit_codes": [process.exitcode for process in processes],
            "rivals": len(rivals),
            "rivals_refused": refused,
            "rivals_late": sum(rival.exitcode == 0 for rival in rivals.values()),
            "errors": others,
        },
    )
