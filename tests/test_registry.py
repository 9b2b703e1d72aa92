import ast
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune import registry
from autotune.backend import ABILITIES, KernelKind
from autotune.errors import RequestError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.runtime import discovery

ROOT = Path(__file__).parents[1]
CPU = Device(kind="cpu", name="AMD EPYC", uuid="cpu-1", cores=2)
KINDS = ("cpu", "cuda")

NAMES_BACKENDS = {
    "registry.py": "the one list of built-in backends",
    "runtime/toolchain.py": "names of libraries, by which their versions are read",
    "cli/optimize_file.py": "the format of the files that it takes and writes",
    "model/onnx_capture.py": "the library by which the user of an ONNX file runs it, and which judges candidates",
    "model/onnx_model.py": "the name of that library's package",
    "execute/causes.py": "names of libraries, whose exceptions have their own texts",
    "programs": "programs that try or compare certain backends",
    "testing": "samples of stored records, and names of libraries that must not be imported early",
}
"""Files and folders of the core in which names of backends may stand, each with the reason."""

WORDS = ("eager", "native")
"""Names of backends that are ordinary words too: in a sentence they name no backend."""

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
    def times_kernels_at_load(self, configuration): return False
    def load(self, folder, device): raise RuntimeError("this toy only lists itself")

BACKEND = Toy()
"""

ABLE = """
    serving_formats = ("onnx", "toyfile")
    model_formats = ("onnx", "toymodel")
    build_modules = ("json", "torch.onnx")
    builds_slowly = True
    builds_in_turn = True
    loads_in_turn = True
    adapts_at_load = ("cpu",)
    times_kernels_in_turn = True
    kernel_kinds = (KernelKind(name="toykind", tensor_rate_share=0.5), KernelKind(name="torch"))
    graph_invariants = ("kernels",)
    kernels = ToyKernels()
    def times_kernels_at_build(self, configuration): return bool(configuration["timed"])
    def times_kernels_at_load(self, configuration): return bool(configuration["timed"])
    def is_baseline(self, configuration, *, has_factory): return has_factory
    def is_served(self, configuration, device): return True
    def is_own_way(self, configuration, device, model_format): return not configuration["timed"]
    def is_plain_export(self, configuration, device): return not configuration["timed"]
    def write_served(self, artifact, target, mark): (target / "model.toy").write_text(str(dict(mark)))
    def graph_features(self, model, device): return {"layers": 2}
    def kernel_problems(self, model, configuration, device): return {}
    def explain_artifact(self, folder): return {}
    def coverage(self, model, configuration, device): return None

BACKEND = Toy()
"""
"""Every optional ability, to be put behind :data:`PLUGIN`."""


def able_plugin(name: str) -> str:
    imports = "from autotune.backend import KernelKind\nfrom tests.toy_kernels import ToyKernels\n"
    return imports + PLUGIN.format(name=name).replace("\nBACKEND = Toy()\n", "") + ABLE


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


def strings_of(path: Path) -> Iterator[tuple[int, str]]:
    """The strings in the code of a file, each with its line; not those that only document."""
    tree = ast.parse(path.read_text())
    documenting = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documenting:
            yield node.lineno, node.value


def named_backends(text: str) -> list[str]:
    return [
        name
        for name in registry.BUILT_IN
        if text == name or (name not in WORDS and re.search(rf"(?<![a-z]){name}(?![a-z])", text))
    ]


def test_no_part_of_the_core_names_a_backend() -> None:
    naming: dict[str, list[str]] = {}
    for path in sorted((ROOT / "autotune").rglob("*.py")):
        inside = path.relative_to(ROOT / "autotune")
        if inside.parts[0] not in ("backends", "search_spaces"):  # the links of an editable checkout
            for line, text in strings_of(path):
                naming.setdefault(inside.as_posix(), []).extend(f"{line}: {name}" for name in named_backends(text))
    naming = {file: places for file, places in naming.items() if places}
    allowed = {
        file: next((a for a in NAMES_BACKENDS if file == a or file.startswith(f"{a}/")), None) for file in naming
    }
    assert not {file: naming[file] for file, reason in allowed.items() if reason is None}
    assert set(allowed.values()) == set(NAMES_BACKENDS), "this test allows more than there is"


def test_the_core_finds_names_of_backends_wherever_they_stand() -> None:
    assert named_backends("torch._inductor.compile_fx") == ["inductor"]
    assert named_backends("a list such as [eager, openvino]") == ["openvino"]
    assert named_backends("eager") == ["eager"] and named_backends("a native library in eager mode") == []


def test_every_built_in_backend_declares_what_the_core_needs() -> None:
    assert registry.baselines() == ("eager",)
    assert registry.tuning_kernels() == ("native",)
    assert registry.serving_formats() == {
        "torchscript": ("torchscript",),
        "aoti": ("inductor",),
        "onnx": ("onnxruntime",),
    }
    assert registry.building_from("onnx") == ("onnxruntime", "openvino")
    assert registry.build_modules(["openvino"]) == ["torch.onnx", "onnxscript", "torch.onnx._internal.exporter._core"]
    assert registry.build_modules(registry.BUILT_IN) == [
        "torch._inductor.compile_fx", "torch.onnx", "onnxscript", "torch.onnx._internal.exporter._core",
    ]  # fmt: skip
    assert [name for name in registry.BUILT_IN if registry.builds_slowly(name)] == ["inductor", "native"]
    assert [name for name in registry.BUILT_IN if registry.builds_in_turn(name)] == ["torchscript", "inductor"]
    assert [name for name in registry.BUILT_IN if registry.loads_in_turn(name)] == [
        "eager", "torchscript", "inductor", "native",
    ]  # fmt: skip
    adapting = {kind: [name for name in registry.BUILT_IN if registry.adapts_at_load(name, kind)] for kind in KINDS}
    assert adapting == {"cpu": ["eager", "torchscript", "openvino"], "cuda": ["eager", "torchscript", "onnxruntime"]}
    assert list(registry.finding_features(registry.BUILT_IN)) == ["native"]
    assert [name for name in registry.BUILT_IN if registry.explaining(name)] == ["native"]
    assert [name for name in registry.BUILT_IN if registry.reporting_coverage(name)] == ["native"]
    assert registry.library_kinds() == ("cublaslt", "torch")
    shares = {name: kind.tensor_rate_share for name, kind in registry.kernel_kinds().items()}
    assert {name for name, share in shares.items() if share} == {"cluster_gemm", "triton_gemm"}


def test_a_plugin_has_every_ability_that_it_declares(packages: Packages) -> None:
    packages.install("able", {"able": "registry_able"}, registry_able=able_plugin("able"))
    able = registry.backend("able")
    assert all(isinstance(able, ability) for ability in ABILITIES)
    timed = [Configuration.of("able", {"timed": timed}) for timed in (True, False)]
    assert [registry.builds_alone(configuration) for configuration in timed] == [True, False]
    assert [registry.loads_alone(configuration) for configuration in timed] == [False, False]
    registry.backend("able").times_kernels_in_turn = False
    assert [registry.loads_alone(configuration) for configuration in timed] == [True, False]
    assert [registry.is_baseline(timed[0], has_factory=has_factory) for has_factory in (True, False)] == [True, False]
    assert registry.baselines() == ("eager", "able")
    formats = registry.serving_formats()
    assert (formats["onnx"], formats["toyfile"]) == (("onnxruntime", "able"), ("able",))
    cpu = discovery.cpu()
    assert all(registry.is_served(one, "toyfile", cpu) for one in timed)
    assert [registry.is_plain_export(one, "toyfile", cpu) for one in timed] == [False, True]
    assert not any(check(timed[1], "aoti", cpu) for check in (registry.is_served, registry.is_plain_export))
    assert registry.building_from("onnx") == ("onnxruntime", "openvino", "able")
    assert registry.building_from("toymodel") == ("able",)
    assert [registry.is_own_way(one, cpu, "toymodel") for one in timed] == [False, True]
    assert not any(registry.is_own_way(one, cpu, "paddle") for one in timed)
    modules = registry.build_modules(registry.names())
    assert modules.count("torch.onnx") == 1 and modules[-1] == "json"
    assert registry.builds_slowly("able") and registry.builds_in_turn("able")
    registry.backend("able").builds_in_turn = False
    assert not registry.builds_in_turn("able") and registry.loads_in_turn("able")
    registry.backend("able").loads_in_turn = False
    assert not registry.loads_in_turn("able")
    assert [registry.adapts_at_load("able", kind) for kind in KINDS] == [True, False]
    assert list(registry.finding_features(["eager", "able"])) == ["able"]
    assert registry.reporting_coverage("able") is able
    assert registry.explaining("able") is able and registry.kernel_tuner("able") is able
    assert registry.kernel_kinds()["toykind"] == KernelKind(name="toykind", tensor_rate_share=0.5)
    # Two backends may share a kind; the built-in one comes first.
    assert registry.kernel_kinds()["torch"].calls_library


def test_a_plugin_without_abilities_has_none(packages: Packages) -> None:
    packages.install("toy-backend", {"toy": "registry_toy_e"}, registry_toy_e=PLUGIN.format(name="toy"))
    plain = Configuration.of("toy", {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not any(isinstance(registry.backend("toy"), ability) for ability in ABILITIES)
    assert registry.builds_alone(plain), "a build that may time kernels has the device alone"
    assert not registry.builds_in_turn("toy"), "a build that may compute at any time holds the device as a whole"
    assert not registry.loads_in_turn("toy"), "and so does a load"
    assert not registry.is_baseline(plain, has_factory=True) and not registry.builds_slowly("toy")
    assert registry.reporting_coverage("toy") is None
    assert registry.explaining("toy") is None and registry.finding_features(["toy"]) == {}
    with pytest.raises(RequestError, match=r"the kernels of backend 'toy' cannot be tuned") as refused:
        registry.kernels("toy")
    assert refused.value.expected == "one of native"


def test_all_that_autotune_backend_exports_is_there() -> None:
    import autotune.backend

    assert sorted(set(autotune.backend.__all__)) == autotune.backend.__all__
    assert all(hasattr(autotune.backend, name) for name in autotune.backend.__all__)
