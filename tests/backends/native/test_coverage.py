"""The launches of small graphs: who computes each, and the functions that left an operator to torch, with reasons."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autotune.backends.native.backend import BACKEND
from autotune.backends.native.coverage import coverage
from autotune.backends.native.refusals import recording, refuse
from autotune.model import source
from autotune.model.capture import capture
from autotune.model.precision import in_precision
from autotune.records.device import Device
from autotune.records.graph_coverage import GraphCoverage, GraphLaunch, OperatorRefusal
from autotune.search_spaces.native import native_space

HOPPER = Device(kind="cuda", name="NVIDIA H200", uuid="gpu", capability=(9, 0))
FP16 = native_space(HOPPER, None).hints[0]
IMAGE = (2, 16, 8, 8)


class Module(nn.Module):
    """Layers by name, and a function of them and the inputs."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layers, x)


def covered(module: nn.Module, *shape: int, integers: bool = False) -> GraphCoverage:
    torch.manual_seed(0)
    x = torch.arange(8).reshape(2, 4) if integers else torch.randn(*shape)
    (name,) = inspect.signature(module.forward).parameters
    program = capture("small", 1, module.eval(), {name: x}).program
    return coverage(in_precision(program, (x,), "fp16"), FP16, HOPPER)


def left(graph: GraphCoverage) -> dict[str, list[tuple[str, str]]]:
    """The reasons of each operator that is left to torch."""
    launches = [launch for launch in graph.after if launch.owner == "torch"]
    return {launch.operator: [(each.function, each.reason) for each in launch.refusals] for launch in launches}


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(16, 16, 3, padding=1, **options)


def gate(layers: Any, x: Tensor) -> Tensor:
    image = layers["conv"](x)
    return layers["after"](image * layers["squeeze"](image.mean((2, 3), keepdim=True)).sigmoid())


def added_to_a_transposed_tensor(layers: Any, x: Tensor) -> Tensor:
    return layers["last"](x).transpose(1, 2) + layers["first"](x)


NO_STEP = ("pointwise._fuse", "programs have no such step")
CASES: dict[str, tuple[nn.Module, tuple[int, ...], str, list[tuple[str, str]]]] = {
    "a convolution with groups": (
        conv(groups=8, bias=False), IMAGE, "conv2d with groups",
        [("sites.conv_problem", "a convolution of 8 groups, with 2 channels and 2 filters each")],
    ),
    "an activation without an epilogue": (
        nn.Sequential(conv(), nn.ELU(), conv()), IMAGE, "elu",
        [("patterns.epilogue", "elu is no activation of an epilogue"), NO_STEP],
    ),
    "a permute before the activation": (
        Module(lambda m, x: m["last"](nn.functional.elu(m["first"](x).transpose(1, 2))).cumsum(1),
               first=nn.Linear(32, 32), last=nn.Linear(16, 16)), (2, 16, 32), "elu",
        [("patterns.epilogue", "elu is no activation of an epilogue"), NO_STEP],
    ),
    "a concatenation": (Module(lambda m, x: torch.cat([x, x.cumsum(1)], 1)), (2, 16, 32), "cat", []),
    "a product of two values": (
        Module(lambda m, x: x @ x.transpose(1, 2)), (2, 16, 32), "matmul",
        [("products.product_of", "a product of two computed tensors")],
    ),
    "a convolution over one dimension": (
        nn.Conv1d(16, 16, 3, bias=False), (2, 16, 32), "conv1d",
        [("conv_act.convolution", "convolutions are read in two dimensions, and not transposed")],
    ),
    "a convolution of twelve channels": (
        nn.Conv2d(12, 16, 3, bias=False), (2, 12, 8, 8), "conv2d",
        [("sites.conv_problem", "12 channels in torch.float16: kernels read 8 at once, in half precision")],
    ),
    "an instance norm": (
        nn.Sequential(conv(), nn.InstanceNorm2d(16)), IMAGE, "instance_norm",
        [("norm._fuse", "it is no norm over the last dimension")],
    ),
    "a norm of a transposed tensor": (
        Module(lambda m, x: m["norm"](x.transpose(1, 2)), norm=nn.LayerNorm(16)), (2, 16, 32),
        "copy of an operand of norm", [("binding", "a kernel reads rows that lie in one piece")],
    ),
    "a mean of small windows": (
        nn.Sequential(conv(), nn.AvgPool2d(2)), IMAGE, "avg_pool2d",
        [("pooling._rewrite", "it is neither a maximum nor a mean of whole images")],
    ),
    "windows of many rows": (
        nn.Conv2d(32, 32, 3, padding=1, bias=False), (1, 32, 128, 128), "conv2d",
        [("coverage._own_nodes", "no kind of kernels has a tile for 16384×32×288")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_deciding_function_reports_its_reason(case: str) -> None:
    module, shape, operator, reasons = CASES[case]
    assert left(covered(module, *shape))[operator] == reasons


@pytest.mark.parametrize(
    ("module", "programs"),
    [
        (Module(gate, conv=conv(), squeeze=nn.Conv2d(16, 16, 1), after=conv()), 3),
        (Module(lambda m, x: m["after"](m["conv"](x) + x[:, :, :1, :1]), conv=conv(), after=conv()), 3),
        (nn.Sequential(conv(), nn.ReLU6(), conv(), nn.Hardswish(), conv(), nn.Tanh()), 2),
        (nn.Sequential(conv(), nn.LeakyReLU(), conv()), 3),
        (Module(lambda m, x: m["norm"](m["conv"](x).permute(0, 2, 3, 1)), conv=conv(), norm=nn.LayerNorm(16)), 1),
        (nn.Sequential(nn.GroupNorm(4, 16), nn.SiLU(), conv(), nn.GroupNorm(2, 16), conv()), 2),
    ],
    ids=[
        "a gate of another shape",
        "a sum over images",
        "activations",
        "an activation alone",
        "a norm over channels",
        "group norms",
    ],
)
def test_single_operators_and_activations_are_not_left(module: nn.Module, programs: int) -> None:
    graph = covered(module, *IMAGE)
    assert left(graph) == {}
    # casts at the border count, too; a norm writes fp32 itself
    assert [launch.operator for launch in graph.after].count("pointwise") == programs


def test_a_product_before_a_sum_in_another_order_of_memory_is_not_left() -> None:
    module = Module(added_to_a_transposed_tensor, first=nn.Linear(16, 16), last=nn.Linear(16, 16, bias=False))
    assert "linear" not in left(covered(module, 2, 16, 16))


def test_what_a_kernel_computes_is_not_left_and_the_same_problems_are_tuned(tmp_path: Any) -> None:
    module = nn.Sequential(conv(), nn.ReLU(), conv(groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 24))
    x = {"input": torch.randn(*IMAGE)}
    source.write(tmp_path, capture("small", 1, module.eval(), x), x, factory=None, seed=0)
    model = source.CapturedModel(tmp_path)
    graph = BACKEND.coverage(model, FP16, HOPPER)
    assert (graph.own_products, graph.products) == (2, 3)
    assert sum(BACKEND.kernel_problems(model, FP16, HOPPER).values()) == graph.own_products
    assert [launch.operator for launch in graph.after if launch.owner == "own"] == [
        "pointwise", "conv2d", "pointwise", "mean_pool2d", "gemm", "pointwise",
    ]  # fmt: skip
    assert list(left(graph)) == ["conv2d with groups"]
    # relu, and the bias of each convolution, are launches of their own before
    assert len(graph.before) == len(graph.after) + 2
    assert graph.fusions["conv_act"] == 2 and graph.fusions["gemm_epilogue"] == 1


def test_bytes_and_operations_of_a_product_are_counted() -> None:
    gemm = next(launch for launch in covered(nn.Linear(64, 128), 4, 64).after if launch.operator == "gemm")
    assert gemm.flops == 2 * 4 * 64 * 128
    assert gemm.traffic_bytes == 2 * (4 * 64 + 64 * 128 + 128 + 4 * 128)
    grouped = covered(conv(groups=4, bias=False), *IMAGE).after
    (launch,) = [launch for launch in grouped if launch.is_product]
    assert launch.flops == 2 * (2 * 16 * 8 * 8) * (4 * 3 * 3)


def test_operations_of_attention_are_counted_alike_before_and_after() -> None:
    def forward(layers: Any, x: Tensor) -> Tensor:
        heads = [part.view(2, 16, 2, 32).transpose(1, 2) for part in layers["all"](x).chunk(3, -1)]
        return nn.functional.scaled_dot_product_attention(*heads)

    graph = covered(Module(forward, all=nn.Linear(64, 192)), 2, 16, 64)
    product, attention = 2 * 32 * 64 * 192, 2 * (2 * 2) * 16 * 16 * (32 + 32)
    for launches in (graph.before, graph.after):
        assert sorted(launch.flops for launch in launches if launch.flops) == sorted([product, attention])
    assert graph.products == graph.own_products == 1  # attention is no product


def test_a_depthwise_convolution_is_one_launch_with_its_pad_and_epilogue() -> None:
    def forward(layers: Any, x: Tensor) -> Tensor:
        return nn.functional.relu6(layers["conv"](nn.functional.pad(x, (0, 1, 0, 1))))

    padded = Module(forward, conv=conv(groups=16))
    graph = covered(nn.Sequential(conv(), padded, conv()), *IMAGE)
    assert left(graph) == {} and graph.fusions["depthwise"] == 1
    (launch,) = [launch for launch in graph.after if launch.operator == "depthwise_conv2d"]
    image, answer = 2 * 16 * 8 * 8, 2 * 16 * 9 * 9
    assert launch.traffic_bytes == 2 * (image + 16 * 9 + 16 + answer)
    assert launch.flops == 2 * answer * 9
    # it has no kernel to choose, so it is not counted with the products
    assert graph.own_products == graph.products == 2
    assert [launch.operator for launch in graph.after] == [
        "pointwise", "conv2d", "depthwise_conv2d", "conv2d", "pointwise",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "shape", "launches"),
    [
        (nn.LayerNorm(32), (2, 16, 32), ["norm"]),
        (Module(lambda m, x: m["conv"](x).mean((2, 3)), conv=conv()), IMAGE, ["pointwise", "conv2d", "mean_pool2d"]),
        (Module(lambda m, x: m["norm"](m["conv"](x)), conv=conv(groups=16), norm=nn.GroupNorm(4, 16)), IMAGE,
         ["depthwise_conv2d", "group_norm", "pointwise"]),
        (nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), (2, 3, 16, 16),
         ["space_to_depth", "conv2d", "mean_pool2d"]),
    ],
    ids=["norm", "mean", "depthwise convolution", "patches"],
)  # fmt: skip
def test_kernels_read_and_write_the_type_of_inputs_and_outputs(
    module: nn.Module, shape: tuple[int, ...], launches: list[str]
) -> None:
    graph = covered(module, *shape)
    assert [launch.operator for launch in graph.after] == launches and left(graph) == {}


def test_a_mean_of_a_large_image_has_a_launch_for_its_parts() -> None:
    image = Module(lambda m, x: m["conv"](x).mean((2, 3)), conv=nn.Conv2d(16, 32, 1))
    graph = covered(image, 1, 16, 112, 112)
    *_, mean, adding = graph.after
    assert [(each.operator, each.owner) for each in (mean, adding)] == [
        ("mean_pool2d", "own"), ("sum of parts of mean_pool2d", "own"),
    ]  # fmt: skip
    read, written = 2 * 112 * 112 * 32, 4 * 32
    kept = mean.traffic_bytes - read
    assert kept > written and kept % written == 0 and adding.traffic_bytes == kept + written
    assert "sum of parts of mean_pool2d" not in [each.operator for each in covered(image, 1, 16, 7, 7).after]


def test_a_table_is_read_by_rows_and_a_graph_may_have_nothing_of_ours() -> None:
    graph = covered(nn.Embedding(50_000, 64), integers=True)
    (lookup,) = [launch for launch in graph.after if launch.operator == "embedding"]
    assert lookup.traffic_bytes == 2 * (2 * 4 * 64 * 2) + 8 * 8
    assert lookup.refusals == () and graph.products == 0
    assert [launch.owner for launch in graph.after] == ["torch", "own"]  # and a cast


def test_a_pad_fills_and_then_copies() -> None:
    padded = Module(lambda m, x: m["conv"](nn.functional.pad(x, (0, 1, 0, 1))), conv=conv(bias=False))
    pad, fill = [launch for launch in covered(padded, *IMAGE).after if "pad" in launch.operator]
    image, answer = 2 * 2 * 16 * 8 * 8, 2 * 2 * 16 * 9 * 9
    assert (pad.traffic_bytes, fill.operator, fill.traffic_bytes) == (image + answer, "fill of pad", answer)


def test_copies_that_a_kernel_needs_are_launches() -> None:
    graph = covered(nn.Conv2d(8, 32, 4, stride=4), 2, 8, 16, 16)
    copy, product = [launch for launch in graph.after if "conv2d" in launch.operator]
    assert (copy.operator, copy.owner, copy.is_product) == ("copy of an operand of conv2d", "torch", False)
    assert copy.traffic_bytes == 2 * 2 * 2 * 8 * 16 * 16
    assert (product.owner, product.is_product) == ("own", True)


def test_a_place_is_that_of_the_module_that_an_operator_was_captured_in() -> None:
    graph = covered(nn.Sequential(conv(), nn.Sequential(nn.ELU()), conv()), *IMAGE)
    assert [launch.place for launch in graph.after if launch.operator == "elu"] == ["1.0"]


def test_refusals_are_kept_within_the_block_alone_and_once() -> None:
    node = torch.fx.Graph().placeholder("x")
    assert refuse(node, "nobody reads this") is False
    with recording() as outer:
        refuse(node, "first")
        with recording() as inner:
            refuse(node, "second")
        refuse(node, "first")
    function = "test_coverage.test_refusals_are_kept_within_the_block_alone_and_once"
    assert outer == {node: [OperatorRefusal(function=function, reason="first")]}
    assert inner == {node: [OperatorRefusal(function=function, reason="second")]}


def test_a_launch_is_plain_data() -> None:
    launch = GraphLaunch(
        operator="mul", node="mul_1", place="a.b", owner="torch", traffic_bytes=6,
        refusals=(OperatorRefusal(function="a.b", reason="c"),),
    )  # fmt: skip
    assert launch.as_dict() == {
        "operator": "mul", "node": "mul_1", "place": "a.b", "owner": "torch", "traffic_bytes": 6, "flops": 0,
        "is_product": False, "refusals": [{"function": "a.b", "reason": "c"}],
    }  # fmt: skip
