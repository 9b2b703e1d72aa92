"""Modules that run kernels in the place of a loaded graph's fused operators."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from autotune.backends.native import operators
from autotune.backends.native.sites import fused_nodes
from autotune.errors import ArtifactError
from autotune.kernel import LoadedKernel
from autotune.records.kernel_problem import GemmProblem


def bind_kernels(module: GraphModule, site_modules: Mapping[int, nn.Module]) -> None:
    """Replace fused operators by modules, by their positions; each module takes the operator's own arguments."""
    nodes = list(fused_nodes(module))
    for index, site_module in site_modules.items():
        if index >= len(nodes):
            raise ArtifactError(
                f"kernel {index} of a native artifact has no place", found=f"a graph with {len(nodes)} fused operators",
                expected="the graph that the artifact was built with", run="autotune db check",
            )  # fmt: skip
        node = nodes[index]
        name = f"site_{index}"
        module.add_submodule(name, site_module)
        with module.graph.inserting_before(node):
            call = module.graph.call_module(name, node.args)
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()


class GemmSite(nn.Module):
    """A kernel in the place of ``gemm``; the bias it was built with is a vector of fp32."""

    def __init__(self, kernel: LoadedKernel, bias: Tensor | None) -> None:
        super().__init__()
        self._kernel = kernel
        self.bias: Tensor | None
        self.register_buffer("bias", bias)

    def forward(self, a: Tensor, b: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str) -> Tensor:
        """Compute into a fresh tensor."""
        rows = a.reshape(-1, a.shape[-1])
        added = None if residual is None else residual.reshape(-1, b.shape[0])
        out = a.new_empty((rows.shape[0], b.shape[0]))
        own = self._kernel(rows.contiguous(), b, self.bias, None if added is None else added.contiguous(), out)
        return (out if own is None else own).view(*a.shape[:-1], b.shape[0])


class ConvSite(nn.Module):
    """A kernel in the place of a convolution over channels-last memory: each position of its window is a row.

    Without a window the rows are the parts into which the images are divided.
    """

    def __init__(self, kernel: LoadedKernel, bias: Tensor | None, problem: GemmProblem) -> None:
        super().__init__()
        self._kernel, self._problem = kernel, problem
        self.bias: Tensor | None
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *_: object) -> Tensor:
        """Compute into a fresh tensor in channels-last memory."""
        problem = self._problem
        window = problem.window
        height, width = _places(x, weight) if window is None else window.places
        images = _parts(x, weight) if window is None else x.permute(0, 2, 3, 1).reshape(problem.a_shape)
        added = None if residual is None else residual.permute(0, 2, 3, 1).reshape(-1, problem.n).contiguous()
        out = x.new_empty((problem.m, problem.n))
        own = self._kernel(images.contiguous(), filters(problem, weight), self.bias, added, out)
        return (out if own is None else own).view(x.shape[0], height, width, problem.n).permute(0, 3, 1, 2)


def _places(x: Tensor, weight: Tensor) -> tuple[int, int]:
    return x.shape[2] // weight.shape[2], x.shape[3] // weight.shape[3]


def _parts(x: Tensor, weight: Tensor) -> Tensor:
    """Return the parts of images, a row each, in the order of filters in channels-last memory."""
    down, right = weight.shape[2:]
    height, width = _places(x, weight)
    parts = x.permute(0, 2, 3, 1).reshape(x.shape[0], height, down, width, right, x.shape[1])
    return parts.transpose(2, 3).reshape(x.shape[0] * height * width, down * right * x.shape[1])


def filters(problem: GemmProblem, weight: Tensor) -> Tensor:
    """Return the weight of a linear layer or a convolution as a kernel reads it, n×k."""
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).reshape(problem.n, problem.k)


def lies_as_read(problem: GemmProblem, weight: Tensor | None) -> bool:
    """Return true if a kernel reads a constant weight from its own memory, so no launch has to reorder it first."""
    return weight is not None and filters(problem, weight).data_ptr() == weight.data_ptr()


class FusedConvSite(nn.Module):
    """cuDNN's convolution with bias, ReLU and residual in one call."""

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: list[int],
        padding: list[int], dilation: list[int], groups: int, activation: str,
    ) -> Tensor:  # fmt: skip
        """Compute the same as ``conv2d``; cuDNN fuses a ReLU only."""
        if activation != "relu":
            return operators.conv2d(x, weight, bias, residual, stride, padding, dilation, groups, activation)  # type: ignore[no-any-return]
        if residual is None:
            return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)
        return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, stride, padding, dilation, groups)


def site_bias(bias: Tensor | None, *, wanted: bool, length: int, device: torch.device) -> Tensor | None:
    """Return the bias as a kernel takes it: a contiguous vector of fp32, zeros if it is needed and absent."""
    if bias is None:
        return torch.zeros(length, dtype=torch.float32, device=device) if wanted else None
    return bias.detach().to(device=device, dtype=torch.float32).contiguous()
