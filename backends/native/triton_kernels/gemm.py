"""The plan of a GEMM with few rows: by tensor cores, or for up to 4 rows by plain multiplications.

With ``split_k`` the partial sums are written to a workspace in fp32, and a second kernel adds them and does the
epilogue. If instead the last block to arrive added them, it would need counters that are zero before each launch: an
interrupted launch would spoil the next one, and streams would share the counters. In a CUDA graph a second launch is
cheap.
"""

from pathlib import Path

from autotune.backends.native.triton_kernels.launch_plan import (
    Launch,
    LaunchPlan,
    TritonSource,
    at_names,
    blocks,
    divisor_of_16,
    multiples_of_16,
    power_of_two,
    present,
)
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces.triton_gemm import LEAST_DOT, check_problem

CODE = Path(__file__).with_name("gemm_kernels.py")
ADD_BLOCK, ADD_WARPS = 512, 4
PARTIAL_BYTES = 4


def plan(problem: GemmProblem, candidate: Configuration) -> LaunchPlan:
    """Return the plan of a point of :func:`autotune.search_spaces.triton_gemm.space`.

    The buffers are a, b, out, and bias and residual if the problem has them. Its kernels depend on the
    divisors of m, n and k only, so that most are compiled once for many problems. Raises SpaceError if the problem is
    not supported.
    """
    check_problem(problem)
    form, splits = str(candidate["form"]), int(candidate["split_k"])
    block_n, block_k = int(candidate["block_n"]), int(candidate["block_k"])
    epilogue = {
        "bias": "fp32" if problem.bias else None, "residual": problem.output if problem.residual else None,
    }  # fmt: skip
    bare: dict[str, str | None] = dict.fromkeys(epilogue)
    first_epilogue = bare if splits > 1 else epilogue
    passed, absent = present(
        {"a": problem.dtype, "b": problem.dtype, **first_epilogue, "out": "fp32" if splits > 1 else problem.output}
    )
    divisor = divisor_of_16(problem.k)
    sizes = {"m": problem.m, "n": problem.n, "k_units": problem.k // divisor}
    rows = {"ROWS": problem.m} if form == "gemv" else {"BLOCK_M": max(LEAST_DOT, power_of_two(problem.m))}
    code = CODE.read_text()
    constants = {
        **rows, "K_DIVISOR": divisor, "BLOCK_N": block_n, "BLOCK_K": block_k, "SPLITS": splits,
        "WHOLE_K": problem.k % (block_k * splits) == 0, "ACTIVATION": "none" if splits > 1 else problem.activation,
        "STAGES": int(candidate["stages"]),
    }  # fmt: skip
    main = TritonSource(
        code=code, function=form, parameters=(*passed, *((name, "i32") for name in sizes)),
        constants=(*absent, *constants.items()), aligned=multiples_of_16({"n": problem.n}),
        warps=int(candidate["warps"]), stages=int(candidate["stages"]),
    )  # fmt: skip
    epilogue_buffers = tuple(name for name, _ in present(epilogue)[0])
    buffers = ("a", "b", *epilogue_buffers, "out")
    grid = (blocks(problem.n, block_n), splits, 1)
    if splits == 1:
        launch = Launch(kernel=0, grid=grid, arguments=(*at_names(buffers), *sizes.items()))
        return LaunchPlan(sources=(main,), launches=(launch,), buffers=buffers)
    product = Launch(kernel=0, grid=grid, arguments=(*at_names("ab"), ("out", "workspace"), *sizes.items()))
    passed, absent = present({"partial": "fp32", **epilogue, "out": problem.output})
    last = {"SPLITS": splits, "BLOCK": ADD_BLOCK, "ACTIVATION": problem.activation}
    adding = TritonSource(
        code=code, function="add_splits", parameters=(*passed, ("m", "i32"), ("n", "i32")),
        constants=(*absent, *last.items()), aligned=multiples_of_16({"n": problem.n}), warps=ADD_WARPS,
    )  # fmt: skip
    addition = Launch(
        kernel=1, grid=(blocks(problem.m * problem.n, ADD_BLOCK), 1, 1),
        arguments=(("partial", "workspace"), *at_names((*epilogue_buffers, "out")), ("m", problem.m), ("n", problem.n)),
    )  # fmt: skip
    return LaunchPlan(
        sources=(main, adding), launches=(product, addition), buffers=buffers,
        workspace_bytes=splits * problem.m * problem.n * PARTIAL_BYTES,
    )  # fmt: skip
