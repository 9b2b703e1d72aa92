"""The attention kernel, by Triton's interpreter, against torch's attention in fp64."""

import math
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autotune.backends.native.triton_kernels import attention as module
from autotune.backends.native.triton_kernels.attention import AttentionShape, plan
from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.triton_compiler import CompiledCubin, TritonCache, TritonCompiler
from autotune.runtime import discovery
from tests.backends.native.triton_kernels.interpreted import interpret

KINDS = ("none", "keys", "all", "added", "causal")
"""No mask, one of keys alone (as for padding), one for each score, one that is added, and that of what comes later."""

SHAPE: dict[str, Any] = {
    "batch": 1, "heads": 2, "rows": 8, "columns": 8, "depth": 32, "dtype": "fp16", "scale": 0.2, "q": (512, 256, 32),
    "k": (512, 256, 32), "v": (512, 256, 32),
}  # fmt: skip


class Case(NamedTuple):
    shape: AttentionShape
    given: dict[str, Tensor]
    mask: Tensor | None


def drawn(seed: int, kind: str, dtype: torch.dtype = torch.float16, *, programmatic_launch: bool = False) -> Case:
    """Queries, keys and values as a joined layer gives them: parts of its rows."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    batch, heads, depth = draw.choice([1, 2]), draw.choice([1, 3]), draw.choice([16, 40, 64, 128])
    rows = draw.choice([1, 20, 64, 65, 130])
    columns = rows if kind == "causal" or draw.random() < 0.5 else draw.choice([1, 70, 129])
    query = torch.randn(batch, rows, heads * depth + 8)[..., 8:].to(dtype)
    joined = torch.randn(batch, columns, 2 * heads * depth).to(dtype)
    q, k, v = (
        part.unflatten(2, (heads, depth)).transpose(1, 2) for part in (query, *joined.split(heads * depth, dim=2))
    )
    mask = {
        "keys": lambda: torch.rand(batch, 1, 1, columns) > 0.4,
        "all": lambda: torch.rand(batch, heads, rows, columns) > 0.6,  # a row may see no key
        "added": lambda: torch.randn(1, heads, rows, columns).to(dtype),
    }.get(kind, lambda: None)()
    seen = None if mask is None else mask.expand(batch, heads, rows, columns)
    name = "fp16" if dtype is torch.float16 else "bf16"
    shape = AttentionShape(
        batch=batch, heads=heads, rows=rows, columns=columns, depth=depth, dtype=name,  # type: ignore[arg-type]
        scale=draw.choice([depth**-0.5, 0.3]), q=q.stride()[:3], k=k.stride()[:3], v=v.stride()[:3],
        mask=None if seen is None else seen.stride(), causal=kind == "causal", programmatic_launch=programmatic_launch,
        mask_dtype="bool" if kind in ("keys", "all") else name,  # type: ignore[arg-type]
    )  # fmt: skip
    out = torch.full((batch, rows, heads, depth), math.nan, dtype=dtype)
    return Case(shape, {"q": q, "k": k, "v": v, **({} if mask is None else {"mask": mask}), "out": out}, mask)


def check(case: Case, out: Tensor) -> None:
    """Within the rounding of weights and answer to the operands' type; a row that sees nothing is 0."""
    shape, given, mask = case
    q, k, v = (given[name].double() for name in "qkv")
    wide = mask if mask is None or mask.dtype is torch.bool else mask.double()
    expected = functional.scaled_dot_product_attention(q, k, v, wide, 0.0, shape.causal, scale=shape.scale)
    largest = given["v"].abs().amax().item()
    bound = 4 * torch.finfo(given["q"].dtype).eps * largest
    worst = (out.cpu().transpose(1, 2).double() - expected.nan_to_num(0.0)).abs().max().item()
    assert worst <= bound, f"{shape}: off by {worst}, at most {bound}"


@pytest.mark.parametrize("many", [1, module.MANY])
def test_random_attentions_equal_torchs(many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY", many)
    cases = [drawn(seed, KINDS[seed % len(KINDS)]) for seed in range(25)]
    for case, found in zip(cases, interpret([(plan(c.shape), c.given) for c in cases], tmp_path), strict=True):
        check(case, found["out"])


@pytest.mark.parametrize(
    ("batch", "columns", "depth", "keys"),
    [(1, 197, 64, 128), (32, 197, 64, 32), (32, 128, 64, 128), (1, 50, 64, 64), (32, 50, 64, 64), (32, 256, 128, 64)],
)
def test_steps_are_long_unless_many_programs_would_compute_what_is_not_there(
    batch: int, columns: int, depth: int, keys: int
) -> None:
    change = {"batch": batch, "heads": 16, "rows": 197, "columns": columns, "depth": depth}
    (source,) = plan(AttentionShape(**{**SHAPE, **change})).sources
    assert dict(source.constants)["BLOCK_COLUMNS"] == keys


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"depth": 8}, "16 to 128"),
        ({"depth": 160}, "16 to 128"),
        ({"columns": 0}, "no empty side"),
        ({"batch": 70000}, "65535"),
        ({"dtype": "fp32"}, "fp16 or bf16"),
        ({"scale": 0.0}, "positive scale"),
        ({"q": (1, 2)}, "strides"),
        ({"v": (1, -2, 3)}, "negative"),
        ({"mask": (0, 0, 1)}, "strides"),
        ({"causal": True, "rows": 4}, "as many queries as keys"),
    ],
)
def test_what_no_kernel_computes_is_refused(change: dict[str, Any], why: str) -> None:
    AttentionShape(**SHAPE)
    with pytest.raises(ValueError, match=why):
        AttentionShape(**{**SHAPE, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("programmatic_launch", [False, True])
def test_compiled_ones_equal_torchs(dtype: torch.dtype, programmatic_launch: bool, tmp_path: Path) -> None:
    device = discovery.find("cuda")
    cases = [
        drawn(seed, KINDS[seed % len(KINDS)], dtype, programmatic_launch=programmatic_launch) for seed in range(20)
    ]
    plans = [plan(case.shape) for case in cases]
    sources = [source for one in plans for source in one.sources]
    for case, one, made in zip(
        cases, plans, TritonCache(tmp_path).compile(TritonCompiler.find(device), sources), strict=True
    ):
        assert isinstance(made, CompiledCubin)
        given = {name: _there(tensor, device.torch_name) for name, tensor in case.given.items()}
        loaded = LoadedPlan([made], one.launches, workspace_bytes=0, device=device.index)
        for _ in range(2):
            loaded(given)
        check(case, given["out"])


def _there(tensor: Tensor, device: str) -> Tensor:
    """The same tensor on a device, with the same strides."""
    found = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return found.copy_(tensor)
