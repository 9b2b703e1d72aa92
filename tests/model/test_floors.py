"""A library that is too old is not handed a stranger's model."""

import re
from importlib import metadata
from pathlib import Path

import pytest

from autotune.errors import WorkError
from autotune.model.floors import SAFE, require_safe
from autotune.model.onnx_file import check_onnx
from autotune.model.program import load_program
from autotune.runtime.installed import OLDEST_TORCH

ROOT = Path(__file__).parents[2]


def installed(monkeypatch, version):
    def told(library):
        if version is None:
            raise metadata.PackageNotFoundError(library)
        return version

    monkeypatch.setattr(metadata, "version", told)


@pytest.mark.parametrize("library", SAFE)
@pytest.mark.parametrize("later", [0, 1])
def test_the_floor_and_what_is_later_pass(monkeypatch, library, later):
    installed(monkeypatch, f"{SAFE[library][0]}.{SAFE[library][1] + later}.0+cu130")
    require_safe(library)
    installed(monkeypatch, f"{SAFE[library][0] + 1}.0.0")
    require_safe(library)


@pytest.mark.parametrize(
    ("load", "library", "version"), [(load_program, "torch", "2.9.1+cpu"), (check_onnx, "onnx", "1.20.9")]
)
def test_an_older_one_is_refused_before_the_file_is_opened(monkeypatch, load, library, version):
    installed(monkeypatch, version)
    with pytest.raises(WorkError) as refused:
        load(Path("/nowhere/model"))
    floor = ".".join(map(str, SAFE[library]))
    assert refused.value.found == f"{library} {version}" and f"{library} >= {floor}" in refused.value.expected
    assert refused.value.run == f"pip install --upgrade '{library}>={floor}'"


def test_what_is_not_installed_is_no_danger(monkeypatch):
    installed(monkeypatch, None)
    require_safe("onnx")


def test_what_the_package_asks_for_is_no_older():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = [tuple(re.split(">=", one)) for name in ("cpu", "gpu") for one in declared[name]]
    for library, oldest in {**SAFE, "torch": OLDEST_TORCH}.items():
        floors = {tuple(int(number) for number in version.split(".")) for name, version in asked if name == library}
        assert floors and all(floor >= oldest >= SAFE[library] for floor in floors)
