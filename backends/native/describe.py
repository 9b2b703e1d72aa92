"""The record of a native artifact with its kernels in words that people know from the libraries."""

from collections.abc import Callable, Iterator, Mapping

from autotune.backends.native import cublaslt, library
from autotune.backends.native.native_record import NativeRecord, SiteEntry
from autotune.records.configuration import Configuration, Scalar
from autotune.search_spaces import cluster_gemm, cutlass_gemm, hopper_gemm, triton_gemm

Values = Mapping[str, Scalar]


def describe(record: NativeRecord) -> dict[str, object]:
    """Return a record with ``words`` beside the configuration of each GEMM's kernel and of its best library call."""
    return {**record, "sites": [_described(site) if site.get("problem") else site for site in record["sites"]]}


def kernel_words(configuration: Configuration) -> str:
    """Return the tile and launch of a kernel without default values: ``CUTLASS 128×64×64, cluster 2×1, pingpong``."""
    title, parts = _KINDS[configuration.backend]
    return f"{title} {', '.join(parts(dict(configuration.values)))}"


def _described(site: SiteEntry) -> dict[str, object]:
    described: dict[str, object] = dict(site)
    for name, kernel in (("kernel", site.get("kernel")), ("library", site.get("library"))):
        if kernel:
            described[name] = {**kernel, "words": kernel_words(Configuration.from_dict(kernel["configuration"]))}
    return described


def _cutlass(values: Values) -> Iterator[str]:
    yield _sides(values, "tile", "mnk")
    if "warp_m" in values:  # CUTLASS 2.x
        yield f"warp {_sides(values, 'warp', 'mn')}"
        yield f"{values['stages']} stages"
        return
    if (values["cluster_m"], values["cluster_n"]) != (1, 1):
        yield f"cluster {_sides(values, 'cluster', 'mn')}"
    yield str(values["schedule"])
    decomposition = values["decomposition"]
    if decomposition == "split_k":
        yield f"split-K {values['splits']}"
    elif decomposition != "data_parallel":
        yield "stream-K" if decomposition == "stream_k" else "stream-K if it helps"
    if values["reduction"] != "deterministic":
        yield "sums in any order"
    if values["swizzle"] != 1:
        yield f"swizzle {values['swizzle']}"
    if values["raster"] != "heuristic":
        yield str(values["raster"]).replace("_", " ")


def _triton(values: Values) -> Iterator[str]:
    yield f"{values['form']} {_sides(values, 'block', 'nk')} of B"
    if values["split_k"] != 1:
        yield f"split-K {values['split_k']}"
    yield f"{values['warps']} warps"
    yield f"{values['stages']} stages"


def _cluster(values: Values) -> Iterator[str]:
    yield _sides(values, "tile", "mnk")
    yield f"warps {_sides(values, 'warps', 'mn')}"
    yield f"{values['stages']} stages"
    if values["splits"] != 1:
        yield f"split-K {values['splits']} in a cluster"


def _hopper(values: Values) -> Iterator[str]:
    yield f"{_sides(values, 'tile', 'mnk')}, wgmma"
    if values["swapped"]:
        yield "rows for columns"
    if values["groups"] != 1:
        yield f"{values['groups']} groups"
    if (values["cluster_m"], values["cluster_n"]) != (1, 1):
        yield f"cluster {_sides(values, 'cluster', 'mn')}"
    yield f"{hopper_gemm.stages(values)} stages"
    if values["residents"] != 1:
        yield f"{values['residents']} blocks per SM"
    if values["splits"] != 1:
        yield f"split-K {values['splits']} in a cluster"


def _cublaslt(values: Values) -> Iterator[str]:
    yield f"heuristic's choice {int(values['rank']) + 1}"


def _torch(values: Values) -> Iterator[str]:
    yield str(values["form"])


def _sides(values: Values, name: str, sides: str) -> str:
    return "×".join(str(values[f"{name}_{side}"]) for side in sides)


_KINDS: Mapping[str, tuple[str, Callable[[Values], Iterator[str]]]] = {
    cutlass_gemm.NAME: ("CUTLASS", _cutlass),
    cluster_gemm.NAME: ("own kernel", _cluster),
    hopper_gemm.NAME: ("own kernel", _hopper),
    triton_gemm.NAME: ("Triton", _triton),
    cublaslt.NAME: ("cuBLASLt", _cublaslt),
    library.NAME: ("torch", _torch),
}
