"""The parts of inductor's compilation that compute on a GPU are within turns, and torch is as before afterwards."""

import contextlib
import importlib
import inspect
import shutil
import sys
import time

import pytest
import torch

from autotune.backends.inductor import BACKEND
from autotune.backends.inductor_turns import BENCHMARK, TRY_LAUNCHES, WAIT_FOR_TRITON, in_turns
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.runtime.turn import computes_by
from autotune.testing.backend_conformance import CPU
from autotune.testing.toy_models import build_toy, expected, toy_inputs
from tests.turns import RecordedTurns

FOLD = ("torch._inductor.constant_folding", "ConstantFolder", "run")
PLACES = {"try launches": TRY_LAUNCHES, "benchmark": BENCHMARK, "wait": WAIT_FOR_TRITON}
ONE_TURN = ["begin", "compiling", "end"]


def owner_of(place):
    return getattr(importlib.import_module(place[0]), place[1])


def functions():
    """The functions of torch as they are now, bound to no object."""
    found = [getattr(owner_of(place), place[2]) for place in PLACES.values()]
    return [getattr(function, "__func__", function) for function in found]


class Compilation:
    """Stands for the parts of torch's compilation, and records them among the turns."""

    def __init__(self, monkeypatch):
        self.turns = RecordedTurns()
        events = self.turns.events

        def wait(compiler, scope):
            events.append("wait for Triton")

        def benchmark_gpu(benchmarker, kernel):
            events.append(kernel)

        def block(wrapper):
            async_compile = owner_of(WAIT_FOR_TRITON)()
            async_compile.wait({})
            for kernel in ("first", "second"):
                owner_of(BENCHMARK).benchmark_gpu(kernel)
            events.append("launched")

        def block_that_waits_elsewhere(wrapper):
            events.append("launched")

        self.block_that_waits_elsewhere = block_that_waits_elsewhere
        self.wrapper = object.__new__(owner_of(TRY_LAUNCHES))
        monkeypatch.setattr(owner_of(WAIT_FOR_TRITON), "wait", wait)
        monkeypatch.setattr(type(owner_of(BENCHMARK)), "benchmark_gpu", benchmark_gpu)
        monkeypatch.setattr(owner_of(TRY_LAUNCHES), TRY_LAUNCHES[2], block)

    def events(self, run):
        """The events of something that runs within turns."""
        with computes_by(self.turns), in_turns():
            run()
        return self.turns.events


@pytest.fixture
def compilation(monkeypatch):
    return Compilation(monkeypatch)


def test_launch_sizes_are_tried_in_one_turn_that_begins_once_the_kernels_are_compiled(compilation):
    events = compilation.events(lambda: compilation.wrapper.generate_and_run_autotune_block())
    assert events == ["wait for Triton", "begin", "first", "second", "launched", "end"]


def test_a_trial_of_launch_sizes_that_waits_elsewhere_is_in_a_turn_as_a_whole(compilation, monkeypatch):
    monkeypatch.setattr(owner_of(TRY_LAUNCHES), TRY_LAUNCHES[2], compilation.block_that_waits_elsewhere)
    events = compilation.events(lambda: compilation.wrapper.generate_and_run_autotune_block())
    assert events == ["begin", "launched", "end"]


def test_this_torch_waits_for_triton_where_it_tries_launch_sizes():
    source = inspect.getsource(getattr(owner_of(TRY_LAUNCHES), TRY_LAUNCHES[2]))
    assert f"async_compile.{WAIT_FOR_TRITON[2]}(" in source


def test_a_wait_for_the_compiler_elsewhere_begins_no_turn(compilation):
    assert compilation.events(lambda: owner_of(WAIT_FOR_TRITON)().wait({})) == ["wait for Triton"]


def test_other_timings_are_made_in_turns_of_their_own(compilation):
    def run():
        compilation.turns.events.append("compiling")
        for kernel in ("plain", "padded"):
            owner_of(BENCHMARK).benchmark_gpu(kernel)

    assert compilation.events(run) == ["compiling", "begin", "plain", "end", "begin", "padded", "end"]


@pytest.mark.parametrize("fails", [False, True])
def test_torch_is_as_before_afterwards(fails):
    before = functions()
    error = pytest.raises(ValueError, match="no graph") if fails else contextlib.nullcontext()
    with error, computes_by(RecordedTurns()), in_turns():
        within = functions()
        if fails:
            raise ValueError("no graph")
    assert functions() == before
    assert [one is other for one, other in zip(within, before, strict=True)] == [False, False, True]
    assert "benchmark_gpu" not in vars(owner_of(BENCHMARK)), "it belongs to the class again"


def test_without_turns_torch_is_left_alone():
    before = functions()
    with in_turns():
        assert functions() == before


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_function_that_this_torch_lacks_means_one_turn_for_all(compilation, monkeypatch, place):
    monkeypatch.setattr(owner_of(place), place[2], None)
    before = functions()

    def run():
        assert functions() == before
        compilation.turns.events.append("compiling")

    assert compilation.events(run) == ONE_TURN


def test_a_module_that_this_torch_lacks_means_one_turn_for_all(compilation, monkeypatch):
    monkeypatch.setitem(sys.modules, WAIT_FOR_TRITON[0], None)
    assert compilation.events(lambda: compilation.turns.events.append("compiling")) == ONE_TURN


def test_a_torch_that_tunes_kernels_by_running_the_model_has_one_turn_for_all(compilation):
    import torch._inductor.config as config

    with config.patch({"triton.autotune_at_compile_time": False}):
        assert compilation.events(lambda: compilation.turns.events.append("compiling")) == ONE_TURN


def watch(place, turns, depths, monkeypatch):
    """Record in ``depths`` how many turns are open at each call of a function of torch."""
    owner, name = owner_of(place), place[2]
    original = getattr(owner, name)

    def watched(*arguments, **keywords):
        depths.setdefault(name, []).append(turns.depth)
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, watched)


def frozen(device):
    space = BACKEND.space(device, None, has_factory=True)
    return next(c for c in (*space.defaults, *space.hints) if c["freezing"] and c["precision"] == "fp32")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_real_compilation_that_times_nothing_needs_no_turn(tmp_path, monkeypatch):
    """On a CPU builds have no turns; given some, it folds constants and compiles without one."""
    turns, depths = RecordedTurns(), {}
    for place in (FOLD, ("torch._inductor.cpp_builder", "CppBuilder", "build")):
        watch(place, turns, depths, monkeypatch)
    with computes_by(turns):
        built = build_toy(BACKEND, CPU, "convolutional", tmp_path, configuration=frozen(CPU))
    assert not turns.events and depths.keys() == {"run", "build"}
    named = toy_inputs("convolutional", 3)
    answers = BACKEND.load(built.folder, CPU)(*named.values())
    torch.testing.assert_close(answers, expected("convolutional", named), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_build_on_a_gpu_holds_it_for_a_small_part_of_its_time(tmp_path, monkeypatch):
    gpu = Device(kind="cuda", name="GPU", uuid="gpu", capability=torch.cuda.get_device_capability())
    turns, depths = RecordedTurns(), {}
    watch(BENCHMARK, turns, depths, monkeypatch)
    values = {**dict(frozen(gpu).values), "cuda_graph": False}
    begin = time.monotonic()
    with computes_by(turns):
        build_toy(BACKEND, gpu, "mixed", tmp_path, configuration=Configuration.of("inductor", values))
    assert all(depths.get(BENCHMARK[2], [])) and turns.events, "launch sizes are tried"
    assert turns.held_s < 0.5 * (time.monotonic() - begin)
