"""torch's own calls as candidates for a GEMM: what a model would run without any kernel of ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.backends.native.bias import CastBias
from autotune.backends.native.kind import check_operands
from autotune.errors import WorkError
from autotune.kernel import Kernel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem

NAME = "torch"

FUSED = {"cuda": {"relu": False, "gelu_tanh": True}, "cpu": {"relu": False, "gelu": True}}
"""Activations that ``_addmm_activation`` computes on a kind of device, and its argument ``use_gelu`` for each: on a CPU
its GELU is the one with erf, on a GPU the one with tanh."""


class Torch:
    """The forms in which torch can be asked for a problem, the plainest first.

    ``addmm`` adds the bias in the product's call and the residual after it, ``addmm_residual`` the other way round;
    ``addmm_activation`` computes bias and activation in one call; ``wide`` computes in fp32 and rounds at the end, for
    results of another type than the operands. Of a convolution ``conv`` is its call with the bias and what follows,
    ``cudnn_relu`` the one of cuDNN that does everything.
    """

    def ready(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List the forms that differ for this problem."""
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

    def load(self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path) -> Kernel:
        """Take one of the forms; raises WorkError where it is none of this problem's."""
        offered = self.ready(device, problem)
        if candidate not in offered:
            raise WorkError(
                f"torch's call for {problem.canonical}", found=str(candidate),
                expected=f"one of {', '.join(map(str, offered))}", run="autotune kernels tune for this problem",
            )  # fmt: skip
        return _TorchKernel(str(candidate["form"]), problem, device)


TORCH = Torch()


class _TorchKernel:
    def __init__(self, form: str, problem: GemmProblem, device: Device) -> None:
        self._form, self._problem = form, problem
        self._fused = FUSED[device.kind].get(problem.activation, False)
        self._bias = CastBias(problem, device.torch_name) if problem.bias else None

    @property
    def made(self) -> Mapping[str, float]:
        return {}

    def __call__(self, a: Any, b: Any, bias: Any, residual: Any, out: Any) -> Any:
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

    def _convolved(self, a: Any, b: Any, bias: Any, residual: Any) -> Any:
        """The convolution by torch's call, as rows of channels-last memory."""
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


def images(problem: GemmProblem, a: Any) -> Any:
    """A of a convolution as torch sees it: images, channels, rows, columns, over the same memory."""
    return a.permute(0, 3, 1, 2)


def filters(problem: GemmProblem, b: Any) -> Any:
    """B of a convolution as torch sees it: results, channels, rows, columns, over the same memory."""
    assert problem.window is not None
    return b.view(problem.n, *problem.window.kernel, problem.window.channels).permute(0, 3, 1, 2)


def multiply(problem: GemmProblem, a: Any, b: Any) -> Any:
    """The product alone, m×n, in the type of ``a``."""
    import torch

    window = problem.window
    if window is None:
        return a @ b.to(a.dtype).t()
    x, weight = images(problem, a), filters(problem, b.to(a.dtype))
    found = torch.conv2d(x, weight, None, window.stride, window.padding, window.dilation)
    return found.permute(0, 2, 3, 1).reshape(problem.m, problem.n)


def activate(values: Any, activation: str) -> None:
    """Apply an activation in place, in torch's current stream."""
    import torch

    if activation == "relu":
        values.relu_()
    elif activation == "silu":
        torch.ops.aten.silu_(values)
    elif activation in ("gelu", "gelu_tanh"):
        torch.ops.aten.gelu_(values, approximate="tanh" if activation == "gelu_tanh" else "none")


def compute(problem: GemmProblem, a: Any, b: Any, bias: Any, residual: Any) -> Any:
    """The problem in plain torch, every step in the type of ``a``, whatever the types of the rest."""
    answer = multiply(problem, a, b)
    if bias is not None:
        answer = answer + bias.to(a.dtype)
    if residual is not None:
        answer = answer + residual.to(a.dtype)
    activate(answer, problem.activation)
    return answer
