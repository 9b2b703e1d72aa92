"""torch's own calls as candidates for a GEMM: the calls that a model makes without kernels of ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.backends.native.bias import CastBias
from autotune.backends.native.kernel_kind import check_operands
from autotune.errors import WorkError
from autotune.kernel import LoadedKernel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem

if TYPE_CHECKING:
    from torch import Tensor

NAME = "torch"

FUSED = {"cuda": {"relu": False, "gelu_tanh": True}, "cpu": {"relu": False, "gelu": True}}
"""Activations that ``_addmm_activation`` computes on a kind of device, and its argument ``use_gelu`` for each: on a CPU
its GELU is the one with erf, on a GPU the one with tanh."""


class TorchCalls:
    """The calls of torch that compute a problem, by their ``form``, the plainest first.

    ``addmm`` adds the bias in the product's call and the residual after it, ``addmm_residual`` the other way round;
    ``addmm_activation`` computes bias and activation in one call; ``wide`` computes in fp32 and rounds at the end, for
    results of another type than the operands. For a convolution ``conv`` is torch's call with the bias and the
    remaining steps after it, ``cudnn_relu`` cuDNN's call that does all steps.
    """

    def ready(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List the forms that are different for this problem."""
        if problem.output != problem.dtype:
            forms = ["wide"]
        elif problem.window is not None:
            forms = ["conv"]
            if device.kind == "cuda" and problem.activation == "relu":
                forms.append("cudnn_relu")
        else:
            forms = ["addmm"]
            if problem.residual:
                forms.append("addmm_residual")
            elif problem.activation in FUSED[device.kind]:
                forms.append("addmm_activation")
        return [Configuration.of(NAME, {"form": form}) for form in forms]

    def load(self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path) -> LoadedKernel:
        """Return the call of a candidate; raises WorkError if its form is not among this problem's."""
        offered = self.ready(device, problem)
        if candidate not in offered:
            raise WorkError(
                f"torch's call for {problem.canonical}", found=str(candidate),
                expected=f"one of {', '.join(map(str, offered))}", run="autotune kernels tune for this problem",
            )  # fmt: skip
        return _TorchKernel(str(candidate["form"]), problem, device)


TORCH = TorchCalls()


class _TorchKernel:
    def __init__(self, form: str, problem: GemmProblem, device: Device) -> None:
        self._form, self._problem = form, problem
        self._fused = FUSED[device.kind].get(problem.activation, False)
        self._bias = CastBias(problem, device.torch_name) if problem.bias else None

    @property
    def resource_usage(self) -> Mapping[str, float]:
        return {}

    def __call__(
        self, a: "Tensor", b: "Tensor", bias: "Tensor | None", residual: "Tensor | None", out: "Tensor"
    ) -> "Tensor | None":
        import torch

        problem = self._problem
        check_operands(problem, a, b, bias, residual, out)
        with torch.no_grad():
            if self._form == "wide":
                out.copy_(compute(problem, a.float(), b.float(), bias, residual))
                return None
            if problem.window is not None:
                return self._convolved(a, b, bias, residual)
            weight = b.t()
            added = None if self._bias is None else self._bias.of(bias)
            if self._form == "addmm_activation" and added is not None:
                torch._addmm_activation(added, a, weight, use_gelu=self._fused, out=out)
                return None
            first, second = (residual, added) if self._form == "addmm_residual" else (added, residual)
            if first is None:
                torch.mm(a, weight, out=out)
            else:
                torch.addmm(first, a, weight, out=out)
            if second is not None:
                out.add_(second)
            activate(out, problem.activation)
        return None

    def _convolved(self, a: "Tensor", b: "Tensor", bias: "Tensor | None", residual: "Tensor | None") -> "Tensor":
        """Compute the convolution by torch's call; returns the rows of channels-last memory."""
        import torch

        problem, window = self._problem, self._problem.window
        assert window is not None
        x, weight = images(problem, a), filters(problem, b)
        added = None if self._bias is None else self._bias.of(bias)
        more = None if residual is None else residual.view(*x.shape[:1], *window.places, problem.n).permute(0, 3, 1, 2)
        how = (window.stride, window.padding, window.dilation, 1)
        if self._form == "conv":
            answer = torch.conv2d(x, weight, added, *how)
            if more is not None:
                answer.add_(more)
            activate(answer, problem.activation)
        elif more is None:
            answer = torch.cudnn_convolution_relu(x, weight, added, *how)
        else:
            answer = torch.cudnn_convolution_add_relu(x, weight, more, 1.0, added, *how)
        return answer.permute(0, 2, 3, 1).reshape(problem.m, problem.n)


def images(problem: GemmProblem, a: "Tensor") -> "Tensor":
    """Return A of a convolution in torch's order: images, channels, rows, columns, over the same memory."""
    return a.permute(0, 3, 1, 2)


def filters(problem: GemmProblem, b: "Tensor") -> "Tensor":
    """Return B of a convolution in torch's order: results, channels, rows, columns, over the same memory."""
    assert problem.window is not None
    return b.view(problem.n, *problem.window.kernel, problem.window.channels).permute(0, 3, 1, 2)


def multiply(problem: GemmProblem, a: "Tensor", b: "Tensor") -> "Tensor":
    """Compute the product alone, m×n, in the type of ``a``."""
    import torch

    window = problem.window
    if window is None:
        return a @ b.to(a.dtype).t()
    x, weight = images(problem, a), filters(problem, b.to(a.dtype))
    product = torch.conv2d(x, weight, None, window.stride, window.padding, window.dilation)
    return product.permute(0, 2, 3, 1).reshape(problem.m, problem.n)


def activate(values: "Tensor", activation: str) -> None:
    """Apply an activation in place, in torch's current stream."""
    import torch

    if activation in ("gelu", "gelu_tanh"):
        torch.ops.aten.gelu_(values, approximate="tanh" if activation == "gelu_tanh" else "none")
    elif activation == "relu6":
        torch.ops.aten.hardtanh_(values, 0, 6)
    elif activation != "none":
        getattr(torch.ops.aten, f"{activation}_")(values)


def compute(
    problem: GemmProblem, a: "Tensor", b: "Tensor", bias: "Tensor | None", residual: "Tensor | None"
) -> "Tensor":
    """Compute the problem in plain torch, every step in the type of ``a``, whatever the types of the other operands."""
    answer = multiply(problem, a, b)
    if bias is not None:
        answer = answer + bias.to(a.dtype)
    if residual is not None:
        answer = answer + residual.to(a.dtype)
    activate(answer, problem.activation)
    return answer
