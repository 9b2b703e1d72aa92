import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autotune.backends.inductor import BACKEND, options
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.runtime.elf import needed_libraries
from autotune.testing.backend_conformance import CPU, BackendConformance, RunnerConformance
from autotune.testing.toy_models import build_toy, toy_workload

GPU = Device(kind="cuda", name="NVIDIA H200", uuid="gpu-test", capability=(9, 0), cores=16)
COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++")


@needs_compiler
class TestInductorBackend(BackendConformance):
    backend = BACKEND
    module = "autotune.backends.inductor"


@needs_compiler
class TestInductorRunner(RunnerConformance):
    """One build, with both kinds of layers in it."""

    backend = BACKEND
    module = "autotune.backends.inductor"
    toys = ("mixed",)


@needs_compiler
def test_a_compiler_that_links_libstdcxx_statically_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = tmp_path / "bin" / "g++"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {COMPILER} -static-libstdc++ "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(wrapper.parent), prepend=":")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"linked it without libstdc\+\+\.so\.6") as caught:
        build_toy(BACKEND, CPU, "tokens", tmp_path)
    assert str(wrapper) in str(caught.value) and "CXX" in str(caught.value)
    assert not (tmp_path / "artifact" / "settings.json").exists()


def test_without_a_compiler_it_takes_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = BACKEND.probe(CPU)
    assert not found.works and "no C++ compiler" in found.reason and "g++" in found.remedy
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in BACKEND.probe(CPU).reason


def test_every_choice_reaches_inductor_under_a_name_that_it_knows() -> None:
    import torch._inductor.config as config

    known = config.get_config_copy()
    first = BACKEND.space(CPU, toy_workload("convolutional"), has_factory=True).defaults[0]
    plain = options(first)
    assert set(plain) <= set(known)
    assert {"freezing", "layout_optimization", "epilogue_fusion", "pattern_matcher", "max_autotune"} <= set(plain)
    for knob in ("freezing", "layout_optimization", "epilogue_fusion", "pattern_matcher", "max_autotune"):
        turned = Configuration.of("inductor", {**dict(first.values), knob: not first[knob]})
        assert {name for name in plain if plain[name] != options(turned)[name]} == {knob}
    more = Configuration.of("inductor", {**dict(first.values), "threads": 7})
    assert options(more)["cpp.threads"] == 7


def test_defaults_off_the_shelf_are_inductors_own() -> None:
    import torch._inductor.config as config

    known = config.get_config_copy()
    off_the_shelf = options(BACKEND.space(CPU, None, has_factory=True).defaults[0])
    ours = {"cpp.threads", "cpp.cxx", "aot_inductor.precompile_headers"}
    assert {name: known[name] for name in off_the_shelf if name not in ours} == {
        name: value for name, value in off_the_shelf.items() if name not in ours
    }


def test_what_is_tried_first_covers_freezing_and_on_a_gpu_the_cuda_graph() -> None:
    cpu, gpu = (BACKEND.space(device, None, has_factory=True) for device in (CPU, GPU))
    first = (*cpu.defaults, *cpu.hints)
    assert [(c["freezing"], c["threads"]) for c in first] == [(False, CPU.cores), (True, CPU.cores)]
    assert [(c["precision"], c["freezing"], c["cuda_graph"]) for c in (*gpu.defaults, *gpu.hints)] == [
        ("fp32", False, False),
        ("fp16", True, True),
        ("fp32", True, True),
    ]
    assert not any(c["max_autotune"] for c in (*first, *gpu.defaults, *gpu.hints))


def test_max_autotune_is_known_to_build_for_longer() -> None:
    space = BACKEND.space(GPU, None, has_factory=True)
    cost = {bool(c["max_autotune"]): space.build_cost(c) for c in space}
    assert cost[False] == 1.0 and cost[True] > 2.0


@pytest.mark.parametrize("device", [CPU, GPU], ids=lambda device: device.kind)
def test_a_build_that_inductor_tunes_by_timing_is_known_as_such(device: Device) -> None:
    tuned = {False: 0, True: 0}
    for configuration in BACKEND.space(device, None, has_factory=True):
        by_timing = any(value for name, value in options(configuration).items() if _tunes_by_timing(name))
        assert BACKEND.times_kernels_at_build(configuration) is by_timing
        tuned[by_timing] += 1
    assert all(tuned.values())


def _tunes_by_timing(option: str) -> bool:
    return option.endswith("_tuning") or (option.startswith("max_autotune") and not option.endswith("_backends"))


def test_on_a_cpu_max_autotune_comes_with_freezing_only() -> None:
    for configuration in BACKEND.space(CPU, None, has_factory=True):
        assert configuration["freezing"] or not configuration["max_autotune"]
    assert any(c["max_autotune"] and not c["freezing"] for c in BACKEND.space(GPU, None, has_factory=True))


def test_reads_what_a_library_needs() -> None:
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    with library.open("rb") as file:
        needed = needed_libraries(file)
    assert "libstdc++.so.6" in needed and "libc10.so" in needed
    with Path(__file__).open("rb") as file, pytest.raises(ValueError, match="ELF"):
        needed_libraries(file)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestInductorRunnerOnGpu(RunnerConformance):
    backend = BACKEND
    module = "autotune.backends.inductor"
    toys = ("mixed",)
    tolerance = 5e-3
    device = Device(kind="cuda", name="GPU", uuid="gpu", capability=(9, 0))


def test_the_instruction_sets_are_those_that_torch_finds_by_test_programs():
    code = """
import sys
from autotune.backends import inductor
from torch._inductor import cpu_vec_isa
if sys.argv[1] == "ours":
    with inductor._trusted_instructions():
        found = cpu_vec_isa.valid_vec_isa_list()
else:
    found = cpu_vec_isa.valid_vec_isa_list()
print([(str(one), one.build_arch_flags()) for one in found])
"""
    told = [
        subprocess.run([sys.executable, "-c", code, whose], capture_output=True, text=True, check=True).stdout
        for whose in ("ours", "torch's")
    ]
    assert told[0] == told[1] and ("avx" in told[0] or platform.machine() != "x86_64")
