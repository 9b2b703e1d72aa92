import math
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]


OF_NOISE = ("measure", "programs", "test_finals.py", "test_study_undecided.py")
"""The tests that are about noise; the others run beside one another, and their studies would often be undecided."""


@pytest.fixture(scope="module", autouse=True)
def decisive(request):
    """Let finals decide however busy the host is, where a test is about something else."""
    if any(part in OF_NOISE for part in request.path.parts):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autotune.measure.paired.MATERIAL", math.inf)
        patch.setattr("autotune.measure.paired.RoundFigures._in_doubt", lambda *_: False)
        yield


@pytest.fixture(autouse=True)
def no_columns(monkeypatch):
    """Whatever runs the tests may have told its processes a width."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True, scope="session")
def checkout_for_child_processes():
    """Worker processes and commands that tests start import this checkout, installed or not."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (str(ROOT), before) if part)
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(autouse=True)
def no_user_data(monkeypatch, tmp_path_factory):
    """No test reads or writes the database of whoever runs it."""
    monkeypatch.delenv("AUTOTUNE_DB", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "data"))


@pytest.fixture(scope="session")
def cpu():
    """This host's CPU."""
    from autotune.runtime import discovery

    return discovery.cpu()


@pytest.fixture(scope="module")
def misbehaving(tmp_path_factory):
    """The misbehaving backend, installed as a plug-in is: by an entry point on sys.path."""
    from autotune import registry

    site = tmp_path_factory.mktemp("site")
    info = site / "misbehaving-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[autotune.backends]\nmisbehaving = autotune.testing:MISBEHAVING\n")
    sys.path.insert(0, str(site))
    registry.refresh()
    yield "misbehaving"
    sys.path.remove(str(site))
    registry.refresh()


@pytest.fixture
def toykernels(tmp_path, monkeypatch):
    """The backend of tests/toy_kernels.py as a plug-in, which has kernels to tune."""
    from autotune import registry

    info = tmp_path / "site" / "toykernels-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toykernels\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[autotune.backends]\ntoykernels = tests.toy_kernels:BACKEND\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    registry.refresh()
    yield "toykernels"
    monkeypatch.undo()
    registry.refresh()


@pytest.fixture(scope="session")
def postgresql():
    """One PostgreSQL server for all tests; it does not wait for the disk."""
    from autotune.programs.reliability.postgresql import serving
    from tests.databases import need_postgresql, with_template

    need_postgresql()
    with serving(durable=False) as server:
        yield with_template(server)


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(request):
    """Databases of each kind in turn, for tests that must pass on both."""
    from tests.databases import Databases

    made = Databases(server=None if request.param == "sqlite" else request.getfixturevalue("postgresql"))
    yield made
    made.drop()


# A busy machine draws slowly, which says nothing of a test.
settings.register_profile("any-speed", settings.default, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("any-speed"))  # see tests/thoroughness.py
settings.load_profile("any-speed")
