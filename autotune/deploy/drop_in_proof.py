"""Compares a TorchScript file with its original in a process that has torch alone: run as a script, by its path.

``python -I drop_in_proof.py ORIGINAL NEW EXAMPLE ANSWERS DEVICE``: EXAMPLE has the tensors of one call by name. ANSWERS
gets the new file's answer as a flat list, whether twice the batch and the state agree, and the milliseconds of paired
rounds. Both files are in eval mode.
"""

import sys
import time
import warnings
from typing import Any

import torch
from torch import Tensor

ROUNDS = 15
BLOCK_S = 0.05
WARM_UP = 10


def flat(answer: Any) -> list[Tensor]:
    """Return the tensors of an answer in a fixed order."""
    if isinstance(answer, torch.Tensor):
        return [answer]
    values = answer.values() if isinstance(answer, dict) else answer
    return [tensor for value in values for tensor in flat(value)]


def rounds(original: Any, new: Any, example: dict[str, Tensor]) -> list[tuple[float, float]]:
    """Return the milliseconds of a call for each module in each round; the order changes from round to round."""

    def block_ms(module: Any, calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            module(**example)
        if next(iter(example.values())).is_cuda:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - begin) / calls

    for module in (original, new):
        block_ms(module, WARM_UP)
    calls = max(1, int(BLOCK_S * 1e3 / block_ms(original, 1)))
    timed = []
    for number in range(ROUNDS):
        pair = {}
        for name, module in [("original", original), ("new", new)][:: 1 if number % 2 else -1]:
            pair[name] = block_ms(module, calls)
        timed.append((pair["original"], pair["new"]))
    return timed


def twice(example: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Return a call of twice the batch, or ``None`` if the inputs do not share a first dimension."""
    batches = {tensor.shape[0] if tensor.dim() else None for tensor in example.values()}
    if len(batches) != 1 or None in batches:
        return None
    return {name: torch.cat([tensor, tensor]) for name, tensor in example.items()}


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Return whether two lists of tensors are equal, bit by bit."""
    return len(first) == len(second) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(first, second, strict=True)
    )


def main(original_path: str, new_path: str, example_path: str, answers_path: str, device: str) -> None:
    """Compare the files, and write what was found."""
    warnings.simplefilter("ignore")
    original, new = (torch.jit.load(path).to(device) for path in (original_path, new_path))  # type: ignore[no-untyped-call]
    for module in (original, new):
        if module.training:
            module.eval()
    example = {name: tensor.to(device) for name, tensor in torch.load(example_path).items()}
    states = [module.state_dict() for module in (original, new)]
    state = list(states[0]) == list(states[1]) and same(list(states[0].values()), list(states[1].values()))
    with torch.no_grad():
        answer = [tensor.cpu() for tensor in flat(new(**example))]
        larger, others = twice(example), True
        if larger is not None:
            try:
                expected = flat(original(**larger))
            except RuntimeError:
                expected = None  # the original serves one batch
            others = expected is None or same(expected, flat(new(**larger)))
        timed = rounds(original, new, example)
    found = {"answer": answer, "state": state, "others": others, "rounds": timed}
    torch.save(found, answers_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
