from dataclasses import replace

from autotune.records.device import Device
from autotune.search_spaces.native import FUSIONS, fusions, native_space
from tests.database import records

GPU = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0))
CPU = Device(kind="cpu", name="Some CPU", uuid="cpu-1", cores=2)


def test_every_fusion_has_a_switch_on_a_gpu():
    space = native_space(GPU, None)
    assert set(FUSIONS) <= {parameter.name for parameter in space.parameters}
    assert [configuration["precision"] for configuration in space.defaults] == ["fp32", "fp16"]
    assert [hint["kernels"] for hint in space.hints] == ["tuned", "overlapped"]
    for hint in space.hints:
        assert hint["precision"] == "fp16" and set(fusions(hint)) == set(FUSIONS) - {"back_to_back_gemm"}


def test_kernels_overlap_only_where_launches_may_begin_early():
    space = native_space(GPU, None)
    late = type(space.hints[1]).of("native", {**dict(space.hints[1].values), "programmatic_launch": False})
    assert space.refusal(space.hints[1]) is None and "programmatic_launch" in (space.refusal(late) or "")
    older = native_space(replace(GPU, capability=(8, 0)), None)
    assert [hint["kernels"] for hint in older.hints] == ["tuned"]
    assert "programmatic_launch" not in {parameter.name for parameter in older.parameters}


def test_tuned_kernels_need_operators_to_take_them():
    space = native_space(GPU, None)
    tuned = dict(space.hints[0].values)
    without = type(space.hints[0]).of("native", {**tuned, "gemm_epilogue": False, "conv_act": False})
    assert space.refusal(space.hints[0]) is None and "gemm_epilogue" in (space.refusal(without) or "")


def test_what_matches_nowhere_has_no_switch():
    workload = records.workload()
    names = {parameter.name for parameter in native_space(GPU, workload).parameters}
    assert not names & {*FUSIONS, "kernels", "channels_last"}


def test_a_cpu_has_fusions_that_make_less_work_and_no_kernels_of_ours():
    names = {parameter.name for parameter in native_space(CPU, None).parameters}
    assert names == {"precision", "conv_bn", "qkv", "attention", "channels_last", "threads"}
