import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune import registry
from autotune.errors import RequestError
from autotune.records.device import Device

CPU = Device(kind="cpu", name="AMD EPYC", uuid="cpu-1", cores=2)

PLUGIN = """
from autotune.backend import Availability
from autotune.records.search_space import SearchSpace

class Toy:
    name = {name!r}
    toolchain = ()
    build_uses_device = False
    def probe(self, device): return Availability(works=True)
    def space(self, device, workload, *, has_factory): return SearchSpace(backend=self.name, parameters=())
    def build(self, model, configuration, device, folder): (folder / "toy").touch()
    def times_kernels_at_build(self, configuration): return False
    def times_kernels_at_load(self, configuration): return False
    def load(self, folder, device): raise RuntimeError("this toy only lists itself")

BACKEND = Toy()
"""


class Packages:
    """A folder of installed distributions, each with a module and an entry point of the backends' group."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, distribution: str, offers: dict[str, str], **modules: str) -> None:
        info = self.folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in offers.items()]
        (info / "entry_points.txt").write_text("\n".join(["[autotune.backends]", *lines]) + "\n")
        for module, source in modules.items():
            (self.folder / f"{module}.py").write_text(source)
        registry.refresh()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Packages]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    registry.refresh()
    yield Packages(tmp_path)
    monkeypatch.undo()
    for module in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[module], "__file__", None) or ""):
            del sys.modules[module]
    registry.refresh()


def test_built_in_backends_are_listed_first(packages: Packages) -> None:
    packages.install("a-toy", {"a_toy": "registry_toy_a"}, registry_toy_a=PLUGIN.format(name="a_toy"))
    names = registry.names()
    assert names[:5] == ("eager", "torchscript", "inductor", "onnxruntime", "openvino")
    assert "a_toy" in names[5:]


@pytest.mark.parametrize("value", ["registry_toy_b", "registry_toy_b:BACKEND"])
def test_a_plugin_is_a_backend_like_any_other(packages: Packages, value: str) -> None:
    packages.install("toy-backend", {"toy": value}, registry_toy_b=PLUGIN.format(name="toy"))
    toy = registry.backend("toy")
    assert toy.probe(CPU).works
    assert toy.space(CPU, None, has_factory=False).backend == "toy"
    assert registry.backend("toy") is toy
    assert registry.broken() == {}


def test_an_unknown_name_is_answered_with_those_that_exist(packages: Packages) -> None:
    packages.install("toy-backend", {"toy": "registry_toy_c"}, registry_toy_c=PLUGIN.format(name="toy"))
    with pytest.raises(RequestError, match=r"'tvm' is not known") as refused:
        registry.backend("tvm")
    assert refused.value.exit_code == 2
    assert refused.value.expected == "one of eager, torchscript, inductor, onnxruntime, openvino, native, toy"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("raise OSError('libtoy.so is missing')", "importing registry_broken raised OSError: libtoy.so is missing"),
        ("import no_such_library_anywhere", "raised ModuleNotFoundError"),
        ("X = 1", "module registry_broken has no attribute BACKEND"),
        ("class BACKEND:\n    name = 'broken'", "is no backend: it lacks toolchain"),
        (PLUGIN.format(name="other"), "calls itself 'other', but is offered as 'broken'"),
        (PLUGIN.format(name="broken") + "\nBACKEND = Toy\n", "is a class, expected an instance"),
    ],
)
def test_a_broken_plugin_is_named_and_the_others_work(packages: Packages, source: str, why: str) -> None:
    packages.install("toy-backend", {"toy": "registry_toy_d"}, registry_toy_d=PLUGIN.format(name="toy"))
    packages.install("broken-backend", {"broken": "registry_broken"}, registry_broken=source)
    assert list(registry.broken()) == ["broken"]
    assert why in registry.broken()["broken"]
    assert "broken-backend 1.0" in registry.broken()["broken"]
    assert "broken" not in registry.names()
    with pytest.raises(RequestError, match=r"broken-backend 1\.0"):
        registry.backend("broken")
    assert registry.backend("toy").name == "toy"


def test_two_plugins_of_one_name_are_both_refused(packages: Packages) -> None:
    for number in ("one", "two"):
        module = f"registry_twin_{number}"
        packages.install(f"twin-{number}", {"twin": module}, **{module: PLUGIN.format(name="twin")})
    with pytest.raises(RequestError, match=r"offered 2 times, by twin-one 1\.0, twin-two 1\.0"):
        registry.backend("twin")
    assert list(registry.broken()) == ["twin"]


def test_a_plugin_cannot_take_the_place_of_a_built_in_backend(packages: Packages) -> None:
    packages.install("rogue", {"eager": "registry_rogue"}, registry_rogue=PLUGIN.format(name="eager"))
    assert registry.names().count("eager") == 1
    assert list(registry.broken()) == ["eager of rogue 1.0"]
    assert "registry_rogue" not in sys.modules


def test_every_built_in_backend_answers_to_its_name_and_imports_nothing_heavy() -> None:
    script = """
        import sys
        from autotune import registry
        listed = registry.names()
        assert not [name for name in sys.modules if name.startswith("autotune.backends")], "listing imports none"
        for name in registry.BUILT_IN:
            backend = registry.backend(name)
            assert backend.name == name, (backend.name, name)
            assert all(hasattr(backend, member) for member in registry.MEMBERS), name
        heavy = {"torch", "onnxruntime", "openvino", "optuna", "sqlalchemy", "numpy"} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
