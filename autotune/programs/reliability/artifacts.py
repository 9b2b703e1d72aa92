"""Promises about artifacts: no damaged artifact is loaded, and none ever exists in part."""

import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from autotune.database.artifacts import ArtifactStore
from autotune.database.check import check, collect_garbage
from autotune.database.store import Store
from autotune.database.sweep import GRACE_S
from autotune.errors import ArtifactError
from autotune.programs.check_result import CheckResult
from autotune.programs.reliability.campaign import Campaign

DAMAGES = ("flipped", "truncated")
LONGEST_WAIT_S = 0.15
"""The longest time to a kill, in which a writer adds several artifacts of about a megabyte."""


def damaged_artifacts(campaign: Campaign) -> list[CheckResult]:
    """Flip a bit in a file of an artifact or in its list of files, or truncate it; then try to load the artifact."""
    total, chance = campaign.pick(1000, 20), random.Random(campaign.seed)
    store = ArtifactStore(campaign.folder / "damaged-artifacts")
    built = campaign.folder / "damaged-built"
    counts: Counter[str] = Counter()
    for number in range(total):
        _build(built, chance)
        digest = store.add(built)
        store.open(digest)
        target = chance.choice([store.manifest(digest), *(store.blob(f.sha256) for f in store.files(digest))])
        _damage(target, DAMAGES[number % 2], chance)
        try:
            with store.verified(digest):
                counts["loaded"] += 1
        except ArtifactError:
            counts["refused"] += 1
        counts["healed"] += _heals(store, built, digest)
        store.remove(digest)
    return [
        CheckResult(
            check="artifacts flipped or truncated",
            figure=f"{counts['refused']:,} of {total:,} refused before load, {counts['healed']:,} whole when rebuilt",
            limit=f"{total:,} refused",
            passed=counts["refused"] == counts["healed"] == total,
            raw={"artifacts": total, **counts},
        )
    ]


def _build(folder: Path, chance: random.Random) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    for name in ("artifact.json", "model.so", "data/weights"):
        (folder / name).write_bytes(chance.randbytes(chance.randint(1, 10_000)))


def _damage(path: Path, kind: str, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    at = chance.randrange(len(content))
    if kind == "flipped":
        content[at] ^= 1 << chance.randrange(8)
    else:
        del content[at:]
    path.chmod(0o600)
    path.write_bytes(content)


def _heals(store: ArtifactStore, built: Path, digest: str) -> bool:
    """Return whether the artifact is whole once it is built again, as the same command does."""
    store.add(built)
    with store.verified(digest) as folder:
        return all(
            (folder / path.relative_to(built)).read_bytes() == path.read_bytes()
            for path in built.rglob("*")
            if path.is_file()
        )


def killed_writes(campaign: Campaign) -> list[CheckResult]:
    """Kill processes that add artifacts; then every visible artifact must verify, and every finished one be there."""
    total, chance = campaign.pick(200, 5), random.Random(campaign.seed)
    counts: Counter[str] = Counter()
    others: list[dict[str, str]] = []
    with Store.open(str(campaign.folder / "killed-writes.db")) as store:
        for number in range(total):
            finished, cut_off = _kill_one(store.artifacts, campaign.folder / "killed-built", number, chance)
            counts["kills inside a write"] += cut_off
            counts["artifacts"] += len(finished)
            counts["lost"] += sum(digest not in store.artifacts.digests() for digest in finished)
            findings = check(store, time.time())
            counts["leftovers"] += sum(finding.kind == "leftover" for finding in findings)
            others += [finding.as_dict() for finding in findings if finding.kind != "leftover"]
            collect_garbage(store, time.time() + 2 * GRACE_S)
            others += [finding.as_dict() for finding in check(store, time.time())]
    figure = f"{len(others)} partial objects, {counts['lost']} lost of {counts['artifacts']:,} artifacts"
    return [
        CheckResult(
            check=f"SIGKILL in {total} artifact writers",
            figure=f"{figure}; {counts['kills inside a write']} died inside a write",
            limit="0 partial, 0 lost, some inside a write",
            passed=not others and counts["lost"] == 0 and counts["kills inside a write"] > 0,
            raw={"kills": total, **counts, "findings": others[:20]},
        )
    ]


def _kill_one(store: ArtifactStore, built: Path, number: int, chance: random.Random) -> tuple[list[str], bool]:
    """Return the artifacts that a writer had finished, and whether it was at work on another."""
    module = "autotune.programs.reliability.artifact_writer"
    command = [sys.executable, "-m", module, str(store.root), str(built), str(chance.random())]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if writer.stdout is None or (first := writer.stdout.readline()) != "begin\n":
        writer.kill()
        raise RuntimeError(f"writer {number} did not begin")
    time.sleep(chance.uniform(0, LONGEST_WAIT_S))
    writer.kill()
    lines = [first.strip(), *writer.communicate()[0].split()]
    shutil.rmtree(built, ignore_errors=True)
    return [digest for digest in lines if digest != "begin"], lines[-1] == "begin"
