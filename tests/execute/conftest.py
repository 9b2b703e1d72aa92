import sys

import pytest

from autotune import registry
from autotune.device import Device


@pytest.fixture(scope="session")
def cpu() -> Device:
    from autotune.runtime import discovery

    return discovery.cpu()


@pytest.fixture(scope="session")
def misbehaving(tmp_path_factory):
    """The misbehaving backend, installed as a plug-in is: by an entry point on sys.path."""
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
