"""Inputs of a study: made from a seed, read from a file, or varied from a user's tensors."""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from autotune.errors import ModelError
from autotune.model import npz_file
from autotune.model.npz_file import Declared

if TYPE_CHECKING:
    import torch

Role = Literal["example", "timing", "heldout"]
"""The purpose of inputs; each role draws from a stream of its own."""

DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip
DISTRIBUTIONS = ("normal", "uniform", "photograph", "integers", "mask", "ones", "zeros")
LEAST_HELD_OUT = 8
"""The number of distinct inputs that the gate needs at least; a file reserves at least as many rows for it."""

_DAMAGED = (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""The errors of libraries for a file that is not whole, is encrypted, or has its bytes in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a model: its shape, with ``"batch"`` for the batch size, and the source of its values.

    ``distribution`` is one of

    - ``normal``: mean 0, deviation 1 (the default of floating dtypes);
    - ``uniform``: from ``low`` (0) to ``high`` (1);
    - ``photograph``: smooth images of shape [batch, 1 to 4 channels, height, width] in the range of normalised
      photographs, each with a brightness, a contrast and a colour cast of its own;
    - ``integers``: from ``low`` (0) inclusive to ``high`` exclusive, which must be given (the default of integer
      dtypes);
    - ``mask``: ones, then zeros, along the last dimension; the number of ones varies from ``low`` (a quarter of the
      dimension) to ``high`` (all of it), both inclusive;
    - ``ones`` (the default of bool), ``zeros``.

    With ``file`` the values are rows of an ``.npz`` or ``.safetensors`` file instead, under ``key`` (default:
    ``name``), along its first dimension; the path is used as it stands. A leading ``batch`` takes that many rows, a
    fixed shape takes one.
    """

    name: str
    shape: "tuple[int | Literal['batch'], ...]"
    dtype: str = "float32"
    distribution: str | None = None
    low: float | None = None
    high: float | None = None
    file: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("an input needs a name")
        if self.dtype not in DTYPES:
            raise ValueError(f"input {self.name}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        for size in self.shape:
            if size != "batch" and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ValueError(f"input {self.name}: a size is a positive integer or 'batch', found {size!r}")
        if self.file is not None:
            self._check_file()
        else:
            self._check_distribution()

    @property
    def drawn_from(self) -> str:
        """The distribution in use: the one given, or the default of the dtype."""
        if self.distribution is not None:
            return self.distribution
        return "normal" if "float" in self.dtype else "ones" if self.dtype == "bool" else "integers"

    def sizes(self, batch: int) -> tuple[int, ...]:
        """Put the batch size in place of ``"batch"``."""
        return tuple(batch if size == "batch" else size for size in self.shape)

    def _check_file(self) -> None:
        if Path(str(self.file)).suffix not in (".npz", ".safetensors"):
            raise ValueError(f"input {self.name}: file must be .npz or .safetensors, found {self.file!r}")
        if (self.distribution, self.low, self.high) != (None, None, None):
            raise ValueError(f"input {self.name}: distribution, low and high do not apply to a file")
        if "batch" in self.shape[1:]:
            raise ValueError(f"input {self.name}: 'batch' must come first if rows are read from a file")

    def _check_distribution(self) -> None:
        kind, where = self.drawn_from, f"input {self.name}"
        if kind not in DISTRIBUTIONS:
            raise ValueError(f"{where}: distribution {kind!r} is not one of {', '.join(DISTRIBUTIONS)}")
        if self.key is not None:
            raise ValueError(f"{where}: key names an entry of a file, and there is no file")
        if kind not in ("uniform", "integers", "mask") and (self.low, self.high) != (None, None):
            raise ValueError(f"{where}: low and high do not apply to distribution {kind}")
        if kind in ("normal", "uniform", "photograph") and "float" not in self.dtype:
            raise ValueError(f"{where}: distribution {kind} needs a floating dtype, found {self.dtype}")
        if kind == "integers" and self.high is None:
            raise ValueError(f"{where}: integers need 'high', the first value that is too large")
        if kind == "photograph" and not (len(self.shape) == 4 and self.shape[1] in (1, 2, 3, 4)):
            raise ValueError(f"{where}: a photograph has shape [batch, 1 to 4 channels, height, width]")
        if kind == "mask" and not (self.shape and isinstance(self.shape[-1], int)):
            raise ValueError(f"{where}: a mask needs a last dimension of fixed size")
        low, high = _bounds(self)
        if not (math.isfinite(low) and math.isfinite(high)) or low > high or (low == high and kind == "integers"):
            raise ValueError(f"{where}: low {low:g} must be below high {high:g}, both finite")
        if kind in ("integers", "mask") and not (low.is_integer() and high.is_integer()):
            raise ValueError(f"{where}: low and high must be whole numbers, found {low:g} and {high:g}")
        if kind == "mask" and not 1 <= low <= high <= int(self.shape[-1]):
            raise ValueError(f"{where}: a mask has 1 to {self.shape[-1]} ones, found {low:g} to {high:g}")
        if kind == "integers" and "int" in self.dtype:
            bits = int(self.dtype.removeprefix("u").removeprefix("int"))
            least, most = (0, 2**bits) if self.dtype[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1))
            if low < least or high > most:
                raise ValueError(f"{where}: {low:g} to {high:g} does not fit {self.dtype}")


def generate(
    specs: Sequence[InputSpec], batch: int, seed: int, count: int, role: Role
) -> "list[dict[str, torch.Tensor]]":
    """Make ``count`` sets of inputs on the CPU, from seed and role alone; the first sets do not depend on count.

    Inputs of files with the same number of rows take the same rows, and the rows of one set are distinct. The second
    half of a seeded order of the rows is for the role ``heldout`` alone, provided that half holds a batch and at least
    eight rows; a shorter file serves all roles from all its rows. ModelError if a file has too few rows.
    """
    if batch < 1 or count < 1:
        raise ValueError(f"batch and count must be at least 1, found {batch} and {count}")
    if role not in get_args(Role):
        raise ValueError(f"role {role!r} is not one of {', '.join(get_args(Role))}")
    if len({spec.name for spec in specs}) != len(specs):
        raise ModelError("each input needs a name of its own", found=", ".join(spec.name for spec in specs))
    tables = {spec.name: _read(spec) for spec in specs if spec.file is not None}
    takes = {len(table): batch for name, table in tables.items() if _spec(specs, name).shape[:1] == ("batch",)}
    rows = {
        length: _rows(length, takes.get(length, 1), seed, count, role, ", ".join(tables))
        for length in {len(table) for table in tables.values()}
    }
    sets: list[dict[str, torch.Tensor]] = []
    for index in range(count):
        values = {}
        for spec in specs:
            if spec.name in tables:
                table = tables[spec.name]
                chosen = table[rows[len(table)][index]]
                values[spec.name] = chosen if spec.shape[:1] == ("batch",) else chosen[0].clone()
            else:
                values[spec.name] = _draw(spec, batch, _generator(seed, role, spec.name, index))
        sets.append(values)
    return sets


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """The treatment of one input by :func:`perturbed`, in words, and whether its variants differ from it."""

    text: str
    is_varied: bool


def treatments(inputs: "Mapping[str, torch.Tensor]") -> dict[str, Treatment]:
    """Return the treatment of each input by :func:`perturbed`, for a refusal or a report."""
    return {name: _treatment(given) for name, given in inputs.items()}


def _treatment(given: "torch.Tensor") -> Treatment:
    import torch

    def kept(why: str) -> Treatment:
        return Treatment(text=f"kept as it was given, for {why}", is_varied=False)

    if not given.numel():
        return kept("it is empty")
    if not (given.is_floating_point() or given.dtype in _integer_dtypes()):
        return kept(f"it is of type {str(given.dtype).removeprefix('torch.')}")
    if given.is_floating_point() and not bool(torch.isfinite(given).all()):
        return kept("it holds values that are not finite, as a mask does")
    if bool((given == given.flatten()[0]).all()):
        return kept(f"all its values are {given.flatten()[0].item():g}, a constant")
    if bool(((given == 0) | (given == 1)).all()):
        return kept("it holds only 0 and 1, as a mask does")
    low, high = given.min().item(), given.max().item()
    if given.is_floating_point():
        how = f"varied in order, contrast, brightness and noise between {low:.4g} and {high:.4g}"
        return Treatment(text=how, is_varied=True)
    return Treatment(text=f"drawn anew between {low} and {high}", is_varied=True)


def _integer_dtypes() -> "tuple[torch.dtype, ...]":
    import torch

    return (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def perturbed(inputs: "Mapping[str, torch.Tensor]", count: int, seed: int) -> "list[dict[str, torch.Tensor]]":
    """Make ``count`` variants of one set of tensors, with their shapes, dtypes, devices and ranges of values.

    - floating: rows exchanged along the first dimension, contrast scaled by 0.5 to 1.5 about the mean, brightness moved
      by a normal step of half a standard deviation for each entry of the second dimension, and noise of half a standard
      deviation added; then clamped to the range of the given tensor;
    - integers: drawn anew within the range of each position along the first dimension if that has at least eight
      entries, otherwise within the range of the whole tensor;
    - kept as they are: bool, other dtypes, and numbers that look like a mask (only 0 and 1, one value throughout, or
      anything that is not finite).
    """
    variants: list[dict[str, torch.Tensor]] = []
    for index in range(count):
        variant = {}
        for name, given in inputs.items():
            generator = _generator(seed, "perturbed", name, index)
            variant[name] = _perturb(given.detach().cpu(), generator).to(given.device)
        variants.append(variant)
    return variants


def photographs(count: int, channels: int, height: int, width: int, generator: "torch.Generator") -> "torch.Tensor":
    """Make smooth float32 images [count, channels, height, width] that differ as photographs do.

    Each sums random fields from coarse to fine with amplitude falling as in natural images (about 1/frequency), shares
    most of them between the channels, and has a contrast, a brightness and a colour cast of its own; values are
    clamped to -2.2 ... 2.7, the range of photographs normalised by the usual ImageNet mean and deviation.
    """
    import torch
    from torch.nn import functional

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def even(*shape: int) -> torch.Tensor:
        return 2 * torch.rand(shape, generator=generator) - 1

    texture = torch.zeros(count, channels, height, width)
    cells = 2
    while cells <= max(2, min(height, width) // 4):
        size = (min(cells, height), min(cells, width))
        field = 0.9 * normal(count, 1, *size) + 0.45 * normal(count, channels, *size)
        roughness = (1.5 / cells) ** (0.7 + 0.6 * torch.rand((count, 1, 1, 1), generator=generator))
        texture += roughness * functional.interpolate(field, (height, width), mode="bilinear", align_corners=False)
        cells *= 2
    deviation, mean = torch.std_mean(texture, dim=(1, 2, 3), correction=0, keepdim=True)
    texture = (texture - mean) / deviation.clamp_min(1e-6)
    contrast = 0.8 * torch.exp(0.5 * even(count, 1, 1, 1))
    brightness = 0.7 * even(count, 1, 1, 1) + 0.4 * even(count, channels, 1, 1)
    return (contrast * texture + brightness).clamp(-2.2, 2.7)


def _bounds(spec: InputSpec) -> tuple[float, float]:
    """Return the range of values of a spec; of a mask, the range of its number of ones."""
    last = spec.shape[-1] if spec.shape else 1
    length = last if isinstance(last, int) else 1
    low, high = (max(1, length // 4), length) if spec.drawn_from == "mask" else (0, 1)
    return float(low if spec.low is None else spec.low), float(high if spec.high is None else spec.high)


def _spec(specs: Sequence[InputSpec], name: str) -> InputSpec:
    return next(spec for spec in specs if spec.name == name)


def _generator(seed: int, role: str, name: str, index: int) -> "torch.Generator":
    """Open a stream of its own for every (seed, role, input, index)."""
    import torch

    digest = hashlib.sha256(f"{seed}/{role}/{name}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _draw(spec: InputSpec, batch: int, generator: "torch.Generator") -> "torch.Tensor":
    import torch

    sizes, dtype = spec.sizes(batch), getattr(torch, spec.dtype)
    low, high = _bounds(spec)
    draws: dict[str, Callable[[], torch.Tensor]] = {
        "normal": lambda: torch.randn(sizes, generator=generator),
        "uniform": lambda: low + (high - low) * torch.rand(sizes, generator=generator, dtype=torch.float64),
        "photograph": lambda: photographs(sizes[0], sizes[1], sizes[2], sizes[3], generator),
        "integers": lambda: torch.randint(int(low), int(high), sizes, generator=generator),
        "mask": lambda: (
            torch.arange(sizes[-1]) < torch.randint(int(low), int(high) + 1, (*sizes[:-1], 1), generator=generator)
        ),
        "ones": lambda: torch.ones(sizes),
        "zeros": lambda: torch.zeros(sizes),
    }
    return draws[spec.drawn_from]().to(dtype)


def _read(spec: InputSpec) -> "torch.Tensor":
    """Read the whole table of a file input and check it against the spec; ModelError names the problem."""
    path, key = Path(str(spec.file)), spec.key or spec.name
    if not path.is_file():
        raise ModelError(f"input {spec.name} is read from {path}", found="no such file", expected="a file of rows")
    try:
        names, entry, read = _entry(path, key)
    except (*_DAMAGED, KeyError) as error:  # or an array of Python objects
        raise ModelError(f"input {spec.name} is read from {path}", found=str(error), expected="plain arrays") from error
    if entry is None:
        raise ModelError(
            f"input {spec.name} is the entry {key!r} of {path}",
            found=f"entries {', '.join(names)}",
            expected=f"one of them as 'key: {names[0] if names else '...'}' of the input",
        )
    row = spec.shape[1:] if spec.shape[:1] == ("batch",) else spec.shape
    if entry.dtype != spec.dtype or entry.shape[1:] != tuple(row) or len(entry.shape) != len(row) + 1:
        raise ModelError(
            f"input {spec.name} asks for {spec.dtype} rows of shape {list(row)}",
            found=f"{key!r} in {path}: {entry.dtype} of shape {list(entry.shape)}",
            expected=f"{spec.dtype} of shape {['rows', *row]}",
        )
    try:
        return read()
    except _DAMAGED as error:
        raise ModelError(f"input {spec.name} is read from {path}", found=str(error), expected="a whole file") from error


def _entry(path: Path, key: str) -> "tuple[list[str], Declared | None, Callable[[], torch.Tensor]]":
    """Return the names in a file, the declaration of the entry under a key, and its reader; never unpickles."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                names = list(file.keys())
                tensor = file.get_tensor(key) if key in names else torch.empty(0)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        entry = Declared(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
        return names, entry if key in names else None, lambda: tensor
    names, declared = npz_file.declared(path, key)
    return names, declared, lambda: torch.from_numpy(npz_file.read(path, key))


def _rows(length: int, take: int, seed: int, count: int, role: Role, names: str) -> "list[torch.Tensor]":
    """Choose ``take`` distinct rows out of ``length``, ``count`` times; held-out rows come from a half of their own."""
    import torch

    order = torch.randperm(length, generator=_generator(seed, "rows", "", length))
    half, apart = length // 2, max(take, LEAST_HELD_OUT)
    if half >= apart:
        order = order[length - half :] if role == "heldout" else order[: length - half]
    least = max(take, count) if role == "heldout" else take
    if len(order) < least:
        raise ModelError(
            f"inputs {names} take {take} distinct rows a set, {count} sets for role {role}",
            found=f"{length} rows, {len(order)} of them for this role",
            expected=f"a file of at least {2 * max(least, apart)} rows",
        )
    chosen: list[torch.Tensor] = []
    per_pass = len(order) // take
    for index in range(count):
        turn, slot = divmod(index, per_pass)
        shuffled = order[torch.randperm(len(order), generator=_generator(seed, role, "rows", turn))]
        chosen.append(shuffled[slot * take : (slot + 1) * take])
    return chosen


def _perturb(given: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """Make a variant of one tensor on the CPU by the rules of :func:`perturbed`."""
    import torch

    if not _treatment(given).is_varied:
        return given.clone()
    if not given.is_floating_point():
        by_row = given.dim() > 0 and given.shape[0] >= LEAST_HELD_OUT
        low, high = (given.amin(0), given.amax(0)) if by_row else (given.amin(), given.amax())
        share = torch.rand(given.shape, generator=generator, dtype=torch.float64)
        wide_low, wide_high = low.to(torch.int64), high.to(torch.int64)
        drawn = wide_low + (share * (wide_high - wide_low + 1)).floor().to(torch.int64)
        return torch.minimum(drawn, wide_high).to(given.dtype)
    values = given.to(torch.float64)
    mean, deviation = values.mean(), values.std()
    if values.dim() > 0:
        values = values[torch.randperm(values.shape[0], generator=generator)]
    contrast = 0.5 + torch.rand((), generator=generator, dtype=torch.float64)
    steps = [values.shape[axis] if axis == 1 else 1 for axis in range(values.dim())]
    brightness = 0.5 * deviation * torch.randn(steps, generator=generator, dtype=torch.float64)
    noise = 0.5 * deviation * torch.randn(values.shape, generator=generator, dtype=torch.float64)
    varied = mean + contrast * (values - mean) + brightness + noise
    return varied.clamp(given.min().to(torch.float64), given.max().to(torch.float64)).to(given.dtype)
