"""A bias in the type of a kernel's results, for the libraries that take no other."""

from typing import TYPE_CHECKING

from autotune.backends.native.kernel_kind import TORCH_NAMES
from autotune.records.kernel_problem import GemmProblem

if TYPE_CHECKING:
    from torch import Tensor


class CastBias:
    """Memory for a bias in a problem's output type, filled only if another bias is passed than in the last call.

    A bias is constant in a model, so that a library call does not pay for a cast each time. A change that torch does
    not know of (a replay of a CUDA graph that writes the bias) is not detected. While a CUDA graph is captured, a new
    bias is cast inside the graph.
    """

    def __init__(self, problem: GemmProblem, device: str) -> None:
        import torch

        self.values = torch.zeros(problem.n, dtype=getattr(torch, TORCH_NAMES[problem.output]), device=device)
        self._filled_from: tuple[Tensor | None, int] | None = None

    def of(self, bias: "Tensor | None") -> "Tensor":
        """Return :attr:`values` filled with a bias of fp32, or with zeros if there is none."""
        import torch

        version = 0 if bias is None else -1 if bias.is_inference() else bias._version
        if self._filled_from is not None and self._filled_from[0] is bias and self._filled_from[1] == version >= 0:
            return self.values
        with torch.no_grad():
            self.values.zero_() if bias is None else self.values.copy_(bias)
        on_gpu = self.values.is_cuda
        if on_gpu and torch.cuda.is_current_stream_capturing():
            self._filled_from = None
            return self.values
        if on_gpu:
            torch.cuda.current_stream(self.values.device).synchronize()  # other streams may read it from now on
        self._filled_from = (bias, version)
        return self.values
