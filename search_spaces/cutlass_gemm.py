"""The CUTLASS kernels that can compute a GEMM: their builds, their launches, and the first candidates.

A space lists builds, because a build computes every shape and takes most of a minute, while another launch of it takes
no time: time all builds first, then the launches of the best.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

from autotune.errors import SpaceError
from autotune.records.canonical import digest
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.search_space import SearchSpace
from autotune.search_spaces import cutlass_multistage, cutlass_sm90
from autotune.search_spaces.cutlass_launch import CutlassLaunch, blocks, launches

NAME = "cutlass"

ARCHITECTURES = {(7, 5): "sm_75", (8, 0): "sm_80", (8, 6): "sm_86", (8, 9): "sm_89", (9, 0): "sm_90a"}
"""The architectures that kernels are compiled for, by compute capability."""

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
"""The activations of kernel problems that kernels are written for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutlassBuild:
    """Everything that decides a kernel's binary; m, n, k and launch parameters do not."""

    architecture: str
    dtype: str
    output: str
    bias: bool
    activation: str
    residual: bool
    input_alignment_bytes: int
    output_alignment_bytes: int
    tile: Configuration

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return digest({**asdict(self), "tile": self.tile.as_dict()})


@dataclass(frozen=True, slots=True, kw_only=True)
class CutlassCandidate:
    """A build and its launch parameters."""

    build: CutlassBuild
    launch: CutlassLaunch

    @property
    def configuration(self) -> Configuration:
        """Tile and launch as one configuration."""
        return Configuration.of(NAME, {**dict(self.build.tile.values), **asdict(self.launch)})

    @classmethod
    def of(cls, device: Device, problem: GemmProblem, configuration: Configuration) -> "CutlassCandidate":
        """Return the candidate whose :attr:`configuration` this is."""
        values = dict(configuration.values)
        launch = CutlassLaunch(**{field.name: values.pop(field.name) for field in fields(CutlassLaunch)})  # type: ignore[arg-type]
        return cls(build=build_of(device, problem, Configuration.of(NAME, values)), launch=launch)


def architecture(device: Device) -> str:
    """Return the architecture that kernels for a device are compiled for.

    Raises :class:`~autotune.errors.SpaceError` if there are no tiles for it.
    """
    target = ARCHITECTURES.get(device.capability) if device.capability else None
    if target is None:
        capability = "no GPU" if device.capability is None else "sm_{}{}".format(*device.capability)
        raise SpaceError(
            f"CUTLASS tiles for {device.name}", found=capability, expected=f"one of {', '.join(ARCHITECTURES.values())}"
        )
    return target


def space(device: Device, problem: GemmProblem, *, shared_memory_bytes: int | None = None) -> SearchSpace:
    """List the builds that are legal for a problem on a device.

    ``shared_memory_bytes`` is the limit of a block, by default the architecture's. Raises
    :class:`~autotune.errors.SpaceError` if there is none.
    """
    target = architecture(device)
    _check_operands(problem, target)
    if target == "sm_90a":
        memory = shared_memory_bytes or cutlass_sm90.SHARED_MEMORY_BYTES
        parameters = cutlass_sm90.PARAMETERS
        constraints = cutlass_sm90.constraints(problem, memory)
    else:
        memory = shared_memory_bytes or cutlass_multistage.SHARED_MEMORY_BYTES[target]
        parameters = cutlass_multistage.parameters(target)
        constraints = cutlass_multistage.constraints(problem, memory)
    tiles = SearchSpace(backend=NAME, parameters=parameters, constraints=constraints)
    if next(iter(tiles), None) is None:
        raise SpaceError(
            f"CUTLASS tiles for {problem.canonical} on {target}",
            found=f"rows of A, B and D in multiples of {problem.alignment_a_bytes}, {problem.alignment_b_bytes} and "
            f"{problem.alignment_d_bytes} bytes, {memory} bytes of shared memory",
            expected="; ".join(constraint.reason for constraint in constraints),
        )
    return tiles


def build_of(device: Device, problem: GemmProblem, tile: Configuration) -> CutlassBuild:
    """Return the build of one tile of a problem's space; it is the same for every shape of the same alignment."""
    return CutlassBuild(
        architecture=architecture(device),
        dtype=problem.dtype,
        output=problem.output,
        bias=problem.bias,
        activation=problem.activation,
        residual=problem.residual,
        input_alignment_bytes=min(problem.alignment_a_bytes, problem.alignment_b_bytes),
        output_alignment_bytes=problem.alignment_d_bytes,
        tile=tile,
    )


def candidates(device: Device, problem: GemmProblem, tile: Configuration) -> Iterator[CutlassCandidate]:
    """List the candidates of one tile, whose launches differ for a problem."""
    build = build_of(device, problem, tile)
    return (CutlassCandidate(build=build, launch=launch) for launch in launches(problem, tile))


def first_candidates(
    device: Device, problem: GemmProblem, *, sm_count: int, count: int
) -> tuple[CutlassCandidate, ...]:
    """Return the first candidates: the fewest waves over the SMs, then the largest tile; each tile_m×tile_n once.

    Of equal candidates the one with earlier choices comes first, so the order is always the same.
    """
    if sm_count < 1 or count < 1:
        raise ValueError(f"sm_count and count must be at least 1, found {sm_count} and {count}")
    distinct: dict[tuple[int, int], tuple[tuple[int, int], Configuration]] = {}
    for tile in space(device, problem):
        rows, columns = int(tile["tile_m"]), int(tile["tile_n"])
        along_m, along_n = blocks(problem, tile)
        rank = (-(-along_m * along_n // sm_count), -rows * columns)
        if (rows, columns) not in distinct or rank < distinct[rows, columns][0]:
            distinct[rows, columns] = (rank, tile)
    ranked = sorted(distinct.values(), key=lambda pair: pair[0])
    return tuple(next(candidates(device, problem, tile)) for _, tile in ranked[:count])


def _check_operands(problem: GemmProblem, target: str) -> None:
    """Refuse operands and activations without rules: mn-major ones would need others, fp32 ones have no tiles here."""
    dtypes = ("fp16",) if target == "sm_75" else ("fp16", "bf16")
    if problem.dtype not in dtypes or (problem.output == "bf16" and "bf16" not in dtypes):
        raise SpaceError(
            f"CUTLASS tiles for {problem.canonical} on {target}",
            found=f"{problem.dtype} in, {problem.output} out",
            expected=f"operands of {' or '.join(dtypes)}",
        )
    if problem.a_major != "k" or problem.b_major != "k" or problem.window is not None:
        raise SpaceError(
            f"CUTLASS tiles for {problem.canonical} on {target}",
            found="rows that are read through a window"
            if problem.window
            else f"A {problem.a_major}-major, B {problem.b_major}-major",
            expected="both k-major, and packed",
        )
    if problem.activation not in ACTIVATIONS:
        raise SpaceError(
            f"CUTLASS tiles for {problem.canonical} on {target}",
            found=f"the activation {problem.activation}",
            expected=f"one of {', '.join(ACTIVATIONS)}",
        )
