"""The launches of a graph before and after it was rewritten: who computes each, and why it was not rewritten."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

Owner = Literal["own", "torch"]
"""A kernel of the backend's own, or a call of torch or one of its libraries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRefusal:
    """The function that left an operator as it was, such as ``sites.conv_problem``, and its reason in words."""

    function: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphLaunch:
    """One launch of a call: ``operator`` in words, ``node`` its name in the graph, ``place`` the path of its module.

    ``traffic_bytes`` are read or written, ``flops`` are those of products, convolutions and attention, two for a
    multiplication with its addition. ``is_product`` is true for products and convolutions, once for each.
    """

    operator: str
    node: str
    place: str
    owner: Owner
    traffic_bytes: int
    flops: int = 0
    is_product: bool = False
    refusals: tuple[OperatorRefusal, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {**asdict(self), "refusals": [asdict(refusal) for refusal in self.refusals]}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCoverage:
    """The launches of a call before and after the rewriting, in the order of the graph, and the fusions' matches."""

    before: tuple[GraphLaunch, ...]
    after: tuple[GraphLaunch, ...]
    fusions: Mapping[str, int]

    @property
    def products(self) -> int:
        """The number of products and convolutions after the rewriting."""
        return _products(self.after)

    @property
    def own_products(self) -> int:
        """The number of those that kernels of the backend's own can compute."""
        return _products(launch for launch in self.after if launch.owner == "own")


def _products(launches: Iterable[GraphLaunch]) -> int:
    return sum(launch.is_product for launch in launches)
