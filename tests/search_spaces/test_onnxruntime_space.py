import pytest

from autotune.records.device import Device
from autotune.records.workload import TensorSpec, Workload
from autotune.search_spaces.onnxruntime import space

CPU = Device(kind="cpu", name="Test CPU", uuid="cpu-test", cores=4)
GPU = Device(kind="cuda", name="Test GPU", uuid="gpu-test", capability=(9, 0))
OLD_GPU = Device(kind="cuda", name="Old GPU", uuid="gpu-old", capability=(6, 0))


def workload(*features: str) -> Workload:
    spec = TensorSpec(name="x", shape=(1, 3), dtype="float32")
    return Workload(
        name="toy", batch=1, structure="0" * 64, weights="0" * 64, inputs=(spec,), outputs=(spec,), features=features
    )


@pytest.mark.parametrize(
    ("device", "features", "names"),
    [
        (CPU, ("convolution",), {"precision", "graph_optimization", "threads", "spinning"}),
        (CPU, ("attention",), {"precision", "graph_optimization", "threads", "spinning", "transformer_fusions"}),
        (GPU, ("convolution",), {"precision", "graph_optimization", "cuda_graph", "conv_algo_search", "nhwc"}),
        (GPU, ("attention",), {"precision", "graph_optimization", "cuda_graph", "transformer_fusions"}),
    ],
)
def test_parameters_follow_the_device_and_the_graph(device: Device, features: tuple[str, ...], names: set[str]) -> None:
    assert {parameter.name for parameter in space(device, workload(*features)).parameters} == names


def test_without_a_workload_everything_may_be_varied() -> None:
    names = {parameter.name for parameter in space(GPU, None).parameters}
    assert names >= {"transformer_fusions", "conv_algo_search", "nhwc"}


def test_defaults_on_a_gpu_are_what_the_provider_does_off_the_shelf() -> None:
    defaults = space(GPU, workload("convolution")).defaults
    assert [(d["precision"], d["cuda_graph"]) for d in defaults] == [
        ("tf32", False),
        ("fp16", False),
        ("fp16", True),
    ]
    assert all(d["graph_optimization"] == "all" and d["conv_algo_search"] == "EXHAUSTIVE" for d in defaults)


def test_defaults_on_an_old_gpu_are_fp32() -> None:
    assert [d["precision"] for d in space(OLD_GPU, None).defaults] == ["fp32"]


def test_hints_on_a_gpu_turn_one_more_knob_that_the_graph_has() -> None:
    def hinted(*features: str) -> list[tuple[bool, bool]]:
        hints = space(GPU, workload(*features)).hints
        assert all(h["precision"] == "fp16" and h["cuda_graph"] for h in hints)
        return [(bool(h.get("nhwc", False)), bool(h.get("transformer_fusions", False))) for h in hints]

    assert hinted("convolution") == [(True, False)]
    assert hinted("attention") == [(False, True)]
    assert hinted("attention", "convolution") == [(True, False), (False, True)]
    assert not space(OLD_GPU, None).hints and not space(CPU, None).hints


def test_one_thread_has_no_choice_of_spinning_and_fusions_need_their_level() -> None:
    configurations = list(space(CPU, workload("attention")))
    assert {c["spinning"] for c in configurations if c["threads"] == 1} == {True}
    assert {c["spinning"] for c in configurations if c["threads"] == 4} == {True, False}
    assert {c["graph_optimization"] for c in configurations if c["transformer_fusions"]} == {"all", "extended"}
