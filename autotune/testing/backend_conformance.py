"""The promises of every backend and of every runner, as test classes; a backend's tests inherit both.

For a plug-in whose module ``my_package.my_backend`` has the attribute ``BACKEND``, a file of tests is::

    from autotune.testing.backend_conformance import BackendConformance, RunnerConformance
    from my_package.my_backend import BACKEND

    class TestMyBackend(BackendConformance):
        backend = BACKEND
        module = "my_package.my_backend"
        heavy_modules = (*BackendConformance.heavy_modules, "my_library")

    class TestMyRunner(RunnerConformance):
        backend = BACKEND
        module = "my_package.my_backend"

pytest then runs all of it. ``device``, ``toys``, ``tolerance`` and ``configuration`` may be set too. For messages that
show values, put ``pytest.register_assert_rewrite("autotune.testing")`` into ``conftest.py``.
This module needs pytest and torch; :mod:`autotune.testing` imports neither.
"""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.backend import (
    ABILITIES,
    Availability,
    Backend,
    BuildsInTurn,
    Configuration,
    Device,
    FindsGraphFeatures,
    GemmProblem,
    LoadsInTurn,
    OffersBaseline,
    ServesFormats,
    TimesKernelsAtBuild,
    TunesKernels,
)
from autotune.testing.runner_conformance import CORES, CPU, RunnerConformance, environment_of_child
from autotune.testing.toy_models import USUAL, plain_configuration, toy_source, toy_workload

__all__ = ["CORES", "CPU", "BackendConformance", "RunnerConformance"]

SMALL_SPACE = 2000
"""The number of configurations of a space that are checked."""


class BackendConformance:
    """Contract of :class:`autotune.backend.Backend` and of the abilities that a backend has.

    A subclass sets ``backend``, and ``module``: the import path of the module whose attribute ``BACKEND`` it is.
    ``heavy_modules`` are those that neither an import of the backend nor ``probe`` and ``space`` may import.
    """

    backend: Backend
    module: str
    device: Device = CPU
    heavy_modules: tuple[str, ...] = ("torch", "onnxruntime", "openvino", "onnx", "numpy")

    def test_is_named_and_declares_its_toolchain(self) -> None:
        """The name serves as a name of Python, and no entry of the toolchain is named twice."""
        assert self.backend.name.isidentifier()
        assert self.backend.toolchain and len(set(self.backend.toolchain)) == len(self.backend.toolchain)
        assert isinstance(self.backend.build_uses_device, bool)
        if isinstance(self.backend, BuildsInTurn):
            assert type(self.backend.builds_in_turn) is bool
            assert self.backend.build_uses_device, "a build that does not use the device has no turns there"
        if isinstance(self.backend, LoadsInTurn):
            assert type(self.backend.loads_in_turn) is bool

    def test_works_here(self) -> None:
        """The backend is available on the device of the tests."""
        assert self.backend.probe(self.device) == Availability(works=True)

    def test_import_probe_and_space_load_nothing_heavy(self, tmp_path: Path) -> None:
        """A fresh process that probes the backend and lists its space imports no library."""
        script = (
            f"import sys; from {self.module} import BACKEND; from autotune.backend import Device\n"
            f"device = Device.from_dict({self.device.as_dict()!r})\n"
            "BACKEND.probe(device); next(iter(BACKEND.space(device, None, has_factory=True)))\n"
            f"print(sorted({set(self.heavy_modules)!r} & set(sys.modules)))"
        )
        run = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment_of_child(), capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip() == "[]"

    @pytest.mark.parametrize("has_factory", [True, False])
    @pytest.mark.parametrize("toy", [None, *USUAL])
    def test_every_space_has_candidates_and_defaults(self, toy: str | None, has_factory: bool) -> None:
        """Defaults are legal and distinct, and each configuration names the precision in which it computes."""
        workload = toy_workload(toy) if toy else None
        space = self.backend.space(self.device, workload, has_factory=has_factory)
        assert space.backend == self.backend.name
        assert space.defaults and len(set(space.defaults)) == len(space.defaults)
        assert [space.refusal(default) for default in space.defaults] == [None] * len(space.defaults)
        some = list(itertools.islice(space, SMALL_SPACE))
        assert some and len(set(some)) == len(some)
        for configuration in some:
            assert isinstance(configuration["precision"], str)
            assert type(self.backend.times_kernels_at_load(configuration)) is bool
            if isinstance(self.backend, TimesKernelsAtBuild):
                assert type(self.backend.times_kernels_at_build(configuration)) is bool
            if isinstance(self.backend, OffersBaseline):
                assert type(self.backend.is_baseline(configuration, has_factory=has_factory)) is bool
            if self.device.kind == "cpu":
                assert type(configuration["threads"]) is int

    def test_space_is_the_same_at_every_call(self) -> None:
        """Two spaces for the same device are the same."""
        first, second = (self.backend.space(self.device, None, has_factory=True) for _ in range(2))
        assert first.digest == second.digest and first.defaults == second.defaults

    def test_off_the_shelf_means_all_cores_and_one_core_can_be_tried(self) -> None:
        """On a CPU the first default uses every core, and the search may use one."""
        if self.device.kind != "cpu":
            pytest.skip("threads are a parameter of CPU configurations")
        space = self.backend.space(self.device, None, has_factory=True)
        assert space.defaults[0]["threads"] == self.device.cores
        assert {c["threads"] for c in space} >= {1, self.device.cores}

    def test_has_each_ability_wholly_or_not_at_all(self) -> None:
        """A backend with a part of an ability would seem not to have it."""
        for ability in ABILITIES:
            members = {name for name in (*vars(ability), *ability.__annotations__) if not name.startswith("_")}
            has = {name for name in members if hasattr(self.backend, name)}
            assert has in (set(), members), f"{ability.__name__}: it lacks {', '.join(sorted(members - has))}"

    def test_its_files_have_a_plainest_one(self) -> None:
        """A space has one plainest file for a serving format, and it is served."""
        if not isinstance(self.backend, ServesFormats):
            pytest.skip("its artifacts are no files that servers load")
        space = self.backend.space(self.device, None, has_factory=True)
        served = [configuration for configuration in space if self.backend.is_served(configuration, self.device)]
        plain = [one for one in space if self.backend.is_plain_export(one, self.device)]
        assert len(plain) == 1 and plain[0] in served

    def test_declares_names(self) -> None:
        """Formats, modules and parameters are tuples of distinct names."""
        for member in ("serving_formats", "build_modules", "graph_invariants"):
            declared = getattr(self.backend, member, ())
            assert isinstance(declared, tuple) and len(set(declared)) == len(declared)
            assert all(isinstance(name, str) and name for name in declared)

    @pytest.mark.parametrize("toy", USUAL)
    def test_counts_the_features_of_a_graph(self, toy: str, tmp_path: Path) -> None:
        """Features have names and counts, and the space takes a workload that has them."""
        if not isinstance(self.backend, FindsGraphFeatures):
            pytest.skip("it looks at no graph before a search")
        features = self.backend.graph_features(toy_source(toy, tmp_path), self.device)
        assert all(isinstance(name, str) and type(count) is int and count >= 0 for name, count in features.items())

    @pytest.mark.parametrize("toy", USUAL)
    def test_kernel_problems_follow_from_the_graph(self, toy: str, tmp_path: Path) -> None:
        """Problems are counted, and the parameters that are said not to change the graph do not change them."""
        if not isinstance(self.backend, TunesKernels):
            pytest.skip("it has no kernels to tune")
        kinds = [kind.name for kind in self.backend.kernel_kinds]
        assert kinds and len(set(kinds)) == len(kinds)
        source = toy_source(toy, tmp_path)
        space = self.backend.space(self.device, source.workload, has_factory=False)
        plain = plain_configuration(self.backend, self.device, source)
        problems = self.backend.kernel_problems(source, plain, self.device)
        assert all(isinstance(problem, GemmProblem) and count >= 1 for problem, count in problems.items())
        for name in self.backend.graph_invariants:
            choices = next((parameter.choices for parameter in space.parameters if parameter.name == name), ())
            if choices:
                other = Configuration.of(plain.backend, {**dict(plain.values), name: choices[-1]})
                assert self.backend.kernel_problems(source, other, self.device) == problems
