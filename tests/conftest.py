import contextlib
import fcntl
import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import groups
from tests.short_timing import shorten
from tests.thoroughness import QUICK, THOROUGH
from tests.warm_workers import fork_servers

ROOT = Path(__file__).parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core has a process of tests, and threads beside it only wait

# Their assertions show the values that failed, as those of the test modules do.
pytest.register_assert_rewrite(
    *(f"autotune.testing.{part}_conformance" for part in ("store", "trial", "plan")),
)


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="only tests that take moments and start no worker processes")


def pytest_configure(config):
    if config.getoption("--quick") and config.getoption("--hypothesis-profile") is None:
        settings.load_profile(QUICK)


def pytest_ignore_collect(collection_path, config):
    """Leave out files that are slow as a whole: the quick group does not even import them."""
    return True if config.getoption("--quick") and groups.listed(collection_path, groups.SLOW) else None


def pytest_collection_modifyitems(config, items):
    groups.mark(items)
    groups.order(items)
    if config.getoption("--quick"):
        groups.deselect_slow(config, items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Run all tests on the device in one process; ``--dist loadgroup`` would, but does not know pytest 9's node ids."""
    from xdist.scheduler import LoadFileScheduling

    class ByDevice(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return groups.unit_of(nodeid)

    return ByDevice(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def no_workers_in_quick_tests(request):
    if request.config.getoption("--quick"):
        yield from groups.skip_what_starts_workers()
    else:
        yield


@pytest.fixture(autouse=True)
def quick_tests_are_quick(request):
    spent = groups.Spent.so_far()
    yield
    if request.config.getoption("--quick"):
        spent.fail_if_too_much_since()


@pytest.fixture(scope="module", autouse=True)
def short_timing(request):
    """Timing that takes moments and always decides, except in tests about it; there workers start from nothing, too."""
    if groups.runs_alone(request.path):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        fork_servers(patch)
        yield


@pytest.fixture(autouse=True)
def no_columns(monkeypatch):
    """The program that runs the tests may set a width for its processes."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True, scope="session")
def checkout_for_child_processes():
    """Worker processes and commands that tests start import this checkout, installed or not."""
    before, ours = os.environ.get("PYTHONPATH"), str(ROOT / "tests" / "child_processes")
    os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (str(ROOT), ours, before) if part)
    sys.path.insert(0, ours)  # worker processes get the path of this process
    yield
    sys.path.remove(ours)
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(autouse=True)
def no_user_data(monkeypatch, tmp_path_factory):
    """No test reads or writes the database of the user who runs it."""
    monkeypatch.delenv("AUTOTUNE_DB", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "data"))


@pytest.fixture(scope="session")
def cpu():
    """This host's CPU."""
    from autotune.runtime import discovery

    return discovery.cpu()


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory):
    """The files of a finished study (tests/finished.py), made once for all processes of pytest-xdist."""
    from tests.finished import finish

    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder, done = shared / "finished", shared / "finished.done"
    with (shared / "finished.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that did not finish it
            shorten(patch)  # this fixture comes before those of a module
            fork_servers(patch)
            finish(folder)
            done.touch()
    return folder


@pytest.fixture
def finished_study(finished_folder, tmp_path):
    """The path of a database of one's own with that finished study; its artifacts lie beside it."""
    from tests.finished import DATABASE

    return shutil.copytree(finished_folder, tmp_path / "finished") / DATABASE


@contextlib.contextmanager
def plugged_in(site, name, backend):
    """Install a backend as a plug-in is: by an entry point on sys.path."""
    from autotune import registry

    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[autotune.backends]\n{name} = {backend}\n")
    sys.path.insert(0, str(site))
    registry.refresh()
    yield name
    sys.path.remove(str(site))
    registry.refresh()


@pytest.fixture(scope="module")
def misbehaving(tmp_path_factory):
    """The misbehaving backend as a plug-in."""
    with plugged_in(tmp_path_factory.mktemp("site"), "misbehaving", "autotune.testing:MISBEHAVING") as name:
        yield name


@pytest.fixture
def toykernels(tmp_path):
    """The backend of tests/toy_kernels.py as a plug-in, which has kernels to tune."""
    with plugged_in(tmp_path / "site", "toykernels", "tests.toy_kernels:BACKEND") as name:
        yield name


@pytest.fixture(scope="module")
def toytuned(tmp_path_factory):
    """The backend of tests/toy_tuned.py as a plug-in: whole models whose builds are handed tuned kernels."""
    with plugged_in(tmp_path_factory.mktemp("site"), "toytuned", "tests.toy_tuned:BACKEND") as name:
        yield name


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
for profile in (QUICK, THOROUGH):  # see tests/thoroughness.py
    settings.register_profile(profile, settings.get_profile("any-speed"))
settings.load_profile("any-speed")
