"""Groups of tests, so that a new test falls into the right one by itself.

``make quick`` runs ``pytest --quick``: all tests that take moments and start no worker processes. A test that starts
them, so every study, is skipped there when it does. A test that takes longer than :data:`QUICK_S` fails there unless it
is marked ``slow``, by a mark of its own or by :data:`SLOW`. A test that needs a PostgreSQL server is slow.

``make check`` runs all tests but the ``thorough`` ones: side by side those that are not marked ``alone``, by a mark of
their own or by :data:`ALONE`, then the others one after the other. A test has to run alone if it times something for
real or looks for other processes that use the device; timing is short in all others (tests/short_timing.py), and their
worker servers begin with torch (tests/warm_workers.py).
``.ci/run`` also runs the tests in :data:`THOROUGH`.
"""

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

QUICK_S, LONGEST_S = 5.0, 60.0
"""The most seconds of CPU for a test in the quick group, and of the clock, which a busy machine may need."""

SLOW = (
    "backends/native/cuda_kernels",
    "backends/native/cutlass",
    "backends/native/fusions",
    "backends/native/test_backend.py",
    "backends/native/test_coverage.py",
    "backends/native/test_native_kernels.py",
    "backends/native/test_passes.py",
    "backends/native/test_random_graphs.py",
    "backends/native/test_study_graphs.py",
    "backends/native/test_triton_codegen.py",
    "backends/native/triton_kernels",
    "backends/test_conformance.py",
    "backends/test_eager.py",
    "backends/test_example_plugin.py",
    "backends/test_inductor.py",
    "backends/test_inductor_turns.py",
    "backends/test_loads_in_turn.py",
    "backends/test_native.py",
    "backends/test_onnxruntime.py",
    "backends/test_openvino.py",
    "backends/test_torchscript.py",
    "cli/test_read_only.py",
    "database/test_check.py",
    "database/test_exchange.py",
    "database/test_exchange_refused.py",
    "database/test_kernel_trials.py",
    "database/test_read_only.py",
    "deploy/test_api.py",
    "deploy/test_bundle.py",
    "deploy/test_by_name.py",
    "deploy/test_in_use.py",
    "deploy/test_measuring.py",
    "deploy/test_on_miss.py",
    "deploy/test_portability.py",
    "deploy/test_serve_check.py",
    "deploy/test_signing.py",
    "docs/test_hooks.py",
    "examples",
    "execute/test_faults.py",
    "execute/test_proof.py",
    "kernels/test_timing.py",
    "measure/test_finals.py",
    "measure/test_lock.py",
    "measure/test_lock_tickets.py",
    "measure/test_verdict.py",
    "model/test_reading.py",
    "programs",
    "studies",
    "study/test_lease.py",
    "study/test_quarantine.py",
    "test_renamed.py",
    "test_standard_streams.py",
)
"""Folders and files that take more than a few seconds together: they compile, search, or have many cases."""

THOROUGH = (
    "backends/native/cuda_kernels/test_cuda_kind.py::test_tiles_of_every_form_compile",
    "backends/native/cuda_kernels/test_gemm_cluster.py",
    "backends/native/cuda_kernels/test_gemm_hopper.py",
    "backends/native/fusions/test_gemm_epilogue.py::test_every_spelling_is_known_in_every_dtype",
    "backends/native/fusions/test_transformers.py",
    "backends/native/test_coverage.py",
    "backends/native/test_study_graphs.py",
    "backends/native/triton_kernels/test_depthwise.py::test_every_patch_and_memory_equals_torchs",
    "backends/native/triton_kernels/test_mean.py::test_every_division_into_the_most_parts_equals_torchs",
    "cli/test_tune.py::test_work_that_nobody_reads_is_done_and_the_command_it_prints_loads_the_plan",
    "examples/test_examples.py::test_compare_machines",
    "examples/test_examples.py::test_cpu_service",
    "examples/test_examples.py::test_drop_in",
    "examples/test_examples.py::test_huggingface_encoder",
    "examples/test_examples.py::test_own_model",
    "examples/test_examples.py::test_team_database",
    "examples/test_readme.py::test_the_program_runs",
    "kernels/test_steps.py::test_finalists_are_timed_in_rounds_and_a_problem_that_goes_wrong_costs_no_other",
    "kernels/test_tuning.py::test_the_best_kernels_are_timed_against_each_other_once_and_their_rounds_choose",
    "programs",
    "report/page/test_in_browser.py",
    "studies/test_study_models.py",
    "study/test_carry.py",
    "study/test_identity.py::test_a_module_that_fails_as_the_baseline_does_not_cost_the_study",
    "study/test_objectives.py::test_the_limit_of_a_steps_memory_ends_the_sweep_in_whatever_step",
    "study/test_with_kernels.py::test_a_baseline_that_fails_when_it_is_built_again_ends_the_study_without_blaming_the_installation",
    "study/test_with_kernels.py::test_a_plan_that_does_not_beat_the_baseline_with_the_kernels_of_now_does_not_hold",
    "study/test_with_kernels.py::test_a_trial_of_another_study_is_taken_over_only_if_its_kernels_are_those_of_now",
    "study/test_with_kernels.py::test_what_was_left_out_for_want_of_time_is_tried_when_the_study_is_given_more",
    "study/test_with_kernels.py::test_what_would_build_longer_than_the_budget_lasts_is_left_for_more_budget",
)
"""Folders, files, and single tests that only CI runs: larger models, rarer endings, a browser, and the programs that
measure autotune itself."""

ON_THE_DEVICE = {
    "study": ("study",),
    "deployment": (
        "backends/test_plugin_of_0_1.py",
        "cli/test_kernels.py",
        "cli/test_tune.py",
        "deploy",
        "examples",
        "kernels/test_steps.py",
        "kernels/test_tuning.py",
    ),
}
"""Groups of folders and files whose tests hold the device for long. Each group runs in one process: side by side they
would wait for one another, and a core would be idle meanwhile."""

ORDER = ("study", "compilation", "deployment", "rest")
"""The groups as they begin: so that two processes end at the same time, and the groups on the device overlap little."""

COMPILATION = ("backends/native", "programs", "studies")
"""Folders with long files that leave the device to others."""

ALONE = (
    "cli/test_doctor.py",
    "execute",
    "kernels/test_timing.py",
    "measure",
    "programs/kernel_comparison",
    "programs/kernel_recording",
    "programs/reliability",
    "programs/selftest",
)
"""Folders and files whose tests time something for real or look for other processes that use the device."""

NOT_ALONE = (
    "execute/test_server.py",
    "measure/test_lock.py",
)
"""Files in these folders whose tests do neither: they have locks of their own, and wait most of their time."""


def listed(path: Path, paths: tuple[str, ...]) -> bool:
    """Report whether a file is one of some paths of this folder, or lies in one of them."""
    return any(path == TESTS / name or TESTS / name in path.parents for name in paths)


def runs_alone(path: Path) -> bool:
    """Report whether nothing may run beside the tests of a file, and their timing is that of a user."""
    return listed(path, ALONE) and not listed(path, NOT_ALONE)


def mark(items: list[pytest.Item]) -> None:
    """Mark tests as their paths and fixtures say."""
    for item in items:
        if listed(item.path, THOROUGH) or listed(item.path.parent / f"{item.path.name}::{item.originalname}", THOROUGH):
            item.add_marker("thorough")
        if runs_alone(item.path):
            item.add_marker("alone")
        if listed(item.path, SLOW) or "postgresql" in getattr(item, "fixturenames", ()) or "postgresql" in item.name:
            item.add_marker("slow")


def order(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(_group_of(item.path)))


def unit_of(nodeid: str) -> str:
    """Return the name of the tests that one process of pytest-xdist runs as a whole: a file, or a group of them."""
    file = nodeid.split("::", 1)[0]
    group = _group_of(TESTS.parent / file)
    return group if group in ON_THE_DEVICE else file


def _group_of(path: Path) -> str:
    groups = (name for name, paths in ON_THE_DEVICE.items() if listed(path, paths))
    return next(groups, "compilation" if listed(path, COMPILATION) else "rest")


def deselect_slow(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


def skip_what_starts_workers() -> Iterator[None]:
    """Skip each test, or each fixture with all tests that use it, at the moment it starts worker processes."""
    from autotune.execute.server import WorkerServer

    def skip(*_: object, **__: object) -> None:
        pytest.skip("it starts worker processes, so it is no quick test; make check runs it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkerServer, "__init__", skip)
        yield


@dataclass(frozen=True)
class Spent:
    """Seconds so far: of all CPUs, by this process and the ended ones that it started, and of the clock."""

    cpu_s: float
    wall_s: float

    @classmethod
    def so_far(cls) -> "Spent":
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cls(sum(usage.ru_utime + usage.ru_stime for usage in usages), time.monotonic())

    def fail_if_too_much_since(self) -> None:
        now = Spent.so_far()
        cpu_s, wall_s = now.cpu_s - self.cpu_s, now.wall_s - self.wall_s
        if cpu_s > QUICK_S or wall_s > LONGEST_S:
            pytest.fail(
                f"a quick test took {cpu_s:.1f} s of CPU in {wall_s:.1f} s\n"
                f"expected: at most {QUICK_S:g} s of CPU; make it shorter, or mark it with pytest.mark.slow",
                pytrace=False,
            )
