"""Artifacts, files of records and configuration that must be refused."""

import dataclasses
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autotune import registry
from autotune.database.artifacts import ArtifactStore
from autotune.database.exchange import export_studies, merge_file
from autotune.database.store import Store
from autotune.deploy.model import open_plan
from autotune.errors import AutotuneError
from autotune.programs.reliability.attempt import Attempt, Case
from autotune.programs.reliability.refused_models import CPU, DIGEST, WORKLOAD, describe_toy
from autotune.records.configuration import Configuration
from autotune.records.device import Toolchain
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.records.trial import Measurement
from autotune.study.bench import bench_plan
from autotune.study.file import parse_study

TOOLCHAIN = Toolchain.of({"torch": "2.10.0"})
CONFIGURATION = Configuration.of("eager", {"precision": "fp32"})
STUDY = "name: toy\nmodel: {factory: models.py:toy}\ninputs: [{name: x, shape: [batch, 3]}]\n"


def _built(on: Attempt, configuration: Configuration = CONFIGURATION) -> Path:
    """Write a folder with an artifact whose code is the bomb's pickle."""
    folder = on.folder / f"built-{configuration.digest[:8]}"
    folder.mkdir()
    (folder / "program.pt2").write_bytes(on.pickled())
    describe_toy(folder, configuration)
    return folder


def _plan(artifact: str) -> Plan:
    return Plan(
        uid="plan", name="toy", batch=1, structure=DIGEST, weights=DIGEST, device=CPU, toolchain=TOOLCHAIN,
        objective=Objective(), serve_as="any", configuration=CONFIGURATION, status="promoted", artifact=artifact,
        latency_ms=1.0, interval_ms=(0.9, 1.1), baseline_latency_ms=2.0, speedup=2.0, signal_error=0.0,
        created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


# Artifacts


def _damaged(on: Attempt, damage: Callable[[bytes], bytes]) -> None:
    store = ArtifactStore(on.folder / "store")
    digest = store.add(_built(on))
    blob = store.blob(store.files(digest)[-1].sha256)
    blob.chmod(0o600)
    blob.write_bytes(damage(blob.read_bytes()))
    with store.verified(digest) as folder:
        _run(folder)


def _run(folder: Path) -> None:
    """Run the code, as a load of it would do."""
    import pickle

    pickle.loads((folder / "program.pt2").read_bytes())


def _swapped(on: Attempt, *, in_place: bool) -> None:
    store = ArtifactStore(on.folder / "store")
    built = _built(on)
    (built / "program.pt2").write_bytes(b"harmless")
    digest = store.add(built)
    blob = store.blob(next(file.sha256 for file in store.files(digest) if file.name == "program.pt2"))
    with store.verified(digest) as folder:
        if in_place:
            blob.chmod(0o600)
            blob.write_bytes(b"HARMLESS")
        else:
            blob.with_suffix(".new").write_bytes(on.pickled())
            os.replace(blob.with_suffix(".new"), blob)
            if (folder / "program.pt2").read_bytes() != b"harmless":
                _run(folder)
    with store.verified(digest) as folder:  # the next load finds the other file
        _run(folder)


def _store_elsewhere(on: Attempt, make: Callable[[Path], None]) -> None:
    make(on.folder / "store")
    ArtifactStore(on.folder / "store").add(_built(on))


def _world_writable(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def _another_class(on: Attempt) -> None:
    with Store.open(str(on.folder / "a.db")) as store:
        digest = store.artifacts.add(_built(on))
        bench_plan(_plan(digest), store, dataclasses.replace(CPU, name="another processor"))


def _plan_of_another(on: Attempt) -> None:
    with Store.open(str(on.folder / "a.db")) as store:
        store.plans.promote(_plan(store.artifacts.add(_built(on, Configuration.of("eager", {"precision": "bf16"})))))
        open_plan(store.plans.list()[0], store)


# Files of records


def _merged(
    on: Attempt,
    change: Callable[[dict[str, Any]], object] = lambda records: None,
    members: Callable[[dict[str, bytes]], object] = lambda members: None,
    *,
    compression: int = zipfile.ZIP_STORED,
    link: bool = False,
) -> None:
    """Merge a file of one study after a change; if it is refused in part only, that is an error of its own."""
    with Store.open(str(on.folder / "there.db")) as there:
        study = there.studies.begin("toy", WORKLOAD, CPU, Objective(), "any", DIGEST, 0, {})
        claimed = there.trials.claim(study.uid, CONFIGURATION, TOOLCHAIN.digest)
        done = dataclasses.replace(claimed, state="complete", latency_ms=1.0, signal_error=0.0, build_s=1.0)
        there.trials.finish(done, {"screening": Measurement(samples_ms=((1.0, 1.1),))})
        there.plans.promote(_plan(there.artifacts.add(_built(on))))
        export_studies(there, ["toy"], on.folder / "sound.zip")
    with zipfile.ZipFile(on.folder / "sound.zip") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    records = json.loads(contents["records.json"])
    change(records)
    contents["records.json"] = json.dumps(records).encode()
    members(contents)
    with zipfile.ZipFile(on.folder / "bad.zip", "w", compression) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o120777 if link and name.endswith(".pt2") else 0o100644) << 16
            archive.writestr(entry, content, compression)
    with Store.open(str(on.folder / "here.db")) as here:
        try:
            merge_file(here, on.folder / "bad.zip")
        except AutotuneError:
            if here.studies.list() or here.plans.list() or here.artifacts.digests():
                raise RuntimeError("a part of the file was taken in") from None
            raise


def _program(members: dict[str, bytes]) -> str:
    return next(name for name in members if name.endswith("program.pt2"))


def _as_link(on: Attempt) -> None:
    outside = str(on.outside).encode()
    _merged(on, members=lambda m: m.update({_program(m): outside}), link=True)


def _latency(value: float) -> Callable[[Attempt], None]:
    return lambda on: _merged(on, lambda records: records["plans"][0].update(latency_ms=value))


# Configuration


def _study(text: str) -> Callable[[Attempt], object]:
    return lambda on: parse_study(text.replace("TRIPWIRE", str(on.tripwire)), on.folder / "study.yaml")


def _name(name: str) -> Callable[[Attempt], object]:
    return _study(STUDY.replace("name: toy", f"name: {json.dumps(name)}", 1))


def _plugins(on: Attempt, distributions: int, source: str) -> None:
    for number in range(distributions):
        info = on.folder / f"reliability_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: reliability-{number}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[autotune.backends]\nrefused = reliability_plugin_{number}\n")
        (on.folder / f"reliability_plugin_{number}.py").write_text(source)
    sys.path.insert(0, str(on.folder))
    registry.refresh()
    try:
        registry.backend("refused")
    finally:
        sys.path.remove(str(on.folder))
        registry.refresh()


def _running(on: Attempt) -> str:
    return f"open({str(on.tripwire)!r}, 'w')"


CASES = (
    Case("an artifact with one byte flipped", lambda on: _damaged(on, lambda b: bytes([b[0] ^ 1]) + b[1:])),
    Case("an artifact that is truncated", lambda on: _damaged(on, lambda b: b[:-1])),
    Case("an artifact for another class of device", _another_class),
    Case("an artifact swapped after it was verified", lambda on: _swapped(on, in_place=False)),
    Case("an artifact written to while it is loaded", lambda on: _swapped(on, in_place=True)),
    Case("an archive with ../", lambda on: _merged(on, members=lambda m: m.update({"../../outside": b"x"}))),
    Case("an archive with a symlink", _as_link),
    Case("an archive that is a bomb", lambda on: _merged(on, compression=zipfile.ZIP_DEFLATED)),
    Case("an id like ../x", lambda on: ArtifactStore(on.folder / "store").open("../x")),
    Case(
        "a store that is a symlink",
        lambda on: _store_elsewhere(on, lambda path: path.symlink_to(on.outside.parent)),
    ),
    Case("a store that everyone can write", lambda on: _store_elsewhere(on, _world_writable)),
    Case("a plan pointing at another digest", _plan_of_another),
    Case("a latency that is no number", _latency(float("nan"))),
    Case("an infinite latency", _latency(float("inf"))),
    Case("a negative latency", _latency(-1.0)),
    Case("a latency of zero", _latency(0.0)),
    Case("records of a newer schema", lambda on: _merged(on, lambda r: r.update(schema_revision="9999"))),
    Case("SQL in a model's name", _name("x'; DROP TABLE plan; --")),
    Case("a YAML tag", _study(STUDY + "batch: !!python/object/apply:os.system ['touch TRIPWIRE']")),
    Case("a YAML alias bomb", _study(STUDY + "space: {a: &a [x, x], b: &b [*a, *a], c: [*b, *b]}")),
    Case("an unknown key", _study(STUDY + "modle: 3")),
    Case("a wrong type", _study(STUDY + "batch: {a: 1}")),
    Case("a name like ../../x", _name("../../x")),
    Case("a name with quotes", _name("a\"b'c")),
    Case("a name with a newline", _name("a\nb")),
    Case("a plug-in that raises on import", lambda on: _plugins(on, 1, "raise RuntimeError('on purpose')")),
    Case("two plug-ins of one name", lambda on: _plugins(on, 2, _running(on))),
)
