"""Answers that an accuracy gate must refuse: answers without the input, means, swapped outputs, coarse rounding."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Answer = Callable[..., "tuple[torch.Tensor, ...]"]
"""A candidate as the accuracy gate sees it: flat tensors in, a tuple of tensors out."""


def ignoring_input(answer: Answer) -> Answer:
    """Cheat: return the first answer again, whatever the input."""
    first: list[tuple[torch.Tensor, ...]] = []

    def cheat(*inputs: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        if not first:
            first.append(answer(*inputs))
        return first[0]

    return cheat


def answering_mean(references: "Sequence[tuple[torch.Tensor, ...]]") -> Answer:
    """Cheat: know the references, and return their mean (the first value if an output is not floating)."""
    import torch

    mean = tuple(
        torch.stack(tensors).mean(dim=0) if tensors[0].is_floating_point() else tensors[0]
        for tensors in (list(output) for output in zip(*references, strict=True))
    )
    return lambda *inputs: mean


def swapping_outputs(answer: Answer) -> Answer:
    """Cheat: exchange the first two outputs of one shape, or else the halves of the first output's last dimension."""
    import torch

    def cheat(*inputs: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        outputs = list(answer(*inputs))
        for i, j in combinations(range(len(outputs)), 2):
            if (outputs[i].shape, outputs[i].dtype) == (outputs[j].shape, outputs[j].dtype):
                outputs[i], outputs[j] = outputs[j], outputs[i]
                return tuple(outputs)
        outputs[0] = torch.roll(outputs[0], outputs[0].shape[-1] // 2, dims=-1)
        return tuple(outputs)

    return cheat


def rounding_outputs_to_fp8(answer: Answer) -> Answer:
    """Cheat: round each floating output to float8_e4m3fn, scaled so that its largest value fits, and back."""

    def cheat(*inputs: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        return tuple(_through_fp8(output) if output.is_floating_point() else output for output in answer(*inputs))

    return cheat


def rounding_weights_to_fp8(module: "torch.nn.Module") -> "torch.nn.Module":
    """Cheat: copy a module, and round each of its matrices and kernels to float8_e4m3fn, scaled as a whole."""
    import copy

    import torch

    rounded = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.dim() > 1:
                parameter.copy_(_through_fp8(parameter))
    return rounded


def _through_fp8(tensor: "torch.Tensor") -> "torch.Tensor":
    import torch

    scale = torch.finfo(torch.float8_e4m3fn).max / tensor.abs().max().clamp_min(1e-30)
    return (tensor * scale).to(torch.float8_e4m3fn).to(tensor.dtype) / scale
