"""A model's graph plus an input signature."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from autotune.records.plain import values_in
from autotune.records.schema import content, since, without_schema


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, shape and dtype (as torch writes it without its prefix: ``float32``, ``int64``) of one input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a tensor needs a name")
        if any(size < 0 for size in self.shape):
            raise ValueError(f"tensor {self.name}: no size may be negative, found {self.shape}")

    @property
    def is_floating(self) -> bool:
        """Whether its values are floating-point numbers."""
        return "float" in self.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model and the shapes it is called with.

    ``structure`` is the fingerprint of the graph with all node arguments except devices, and of shapes and dtypes: it
    decides speed. ``weights`` is the fingerprint of the parameter values: it decides whether an artifact can be reused.
    ``features`` name what the graph contains: ``convolution``, ``attention``, ``gemm``, ``norm``; and what a backend
    found in it, with a count: ``native.conv_bn:53``. ``former`` is the structure as fingerprint 1 gave it, if that is
    another one.

    ``flops`` and ``traffic_bytes`` are the work of one call as :class:`autotune.model.work.Work` describes it, for
    reports alone: no key depends on them, and they are ``None`` if nobody has counted them.
    """

    name: str
    batch: int
    structure: str
    weights: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    features: tuple[str, ...] = ()
    former: str = ""
    flops: int | None = field(default=None, metadata=since(2))
    traffic_bytes: int | None = field(default=None, metadata=since(2))

    def __post_init__(self) -> None:
        for name in ("structure", "weights"):
            value = getattr(self, name)
            if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
                raise ValueError(f"{name} must be a SHA-256 in hexadecimal, found {value!r}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, found {self.batch}")
        if not self.name or not self.inputs or not self.outputs:
            raise ValueError("a workload needs a name, an input and an output")
        for name in ("flops", "traffic_bytes"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 0):
                raise ValueError(f"{name} is a whole number that is not negative, found {value!r}")

    def matches(self, feature: str) -> int:
        """Return how often a backend found a feature in the graph; 0 if it did not, or did not look."""
        counts = (entry.rpartition(":") for entry in self.features)
        return sum(int(count) for name, _, count in counts if name == feature)

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {**content(self), **{name: tuple(map(asdict, getattr(self, name))) for name in ("inputs", "outputs")}}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Workload":
        """Read what :meth:`as_dict` wrote, also after a trip through JSON."""
        values = values_in(without_schema(cls, data, what="a workload"))
        for name in ("inputs", "outputs"):
            values[name] = tuple(
                TensorSpec(name=spec["name"], shape=tuple(spec["shape"]), dtype=spec["dtype"]) for spec in values[name]
            )
        values["features"] = tuple(values.get("features", ()))
        return cls(**values)
