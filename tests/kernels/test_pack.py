"""Packs of compiled kernels: what is written is read, and what is damaged, foreign or strange adds nothing."""

import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from autotune.backends.native.cuda_kernels.cubin_cache import CubinCache
from autotune.backends.native.native_kernels import KERNELS
from autotune.errors import RequestError
from autotune.kernel import PacksKernels
from autotune.kernels.compiled import compiled_for, runs_on
from autotune.kernels.pack import MANIFEST, export_pack, import_pack, imported_packs, read_manifest
from autotune.records.device import Device
from tests.backends.native.cuda_kernels.test_cubin_cache import FakeCompiler, sources

HOPPER = Device(kind="cuda", name="NVIDIA H200", uuid="gpu", capability=(9, 0))
COUNT = 3


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    CubinCache(folder / "hopper_gemm").compile(FakeCompiler(), sources(COUNT))
    return folder


@pytest.fixture
def pack(cache: Path, tmp_path: Path) -> Path:
    path = tmp_path / "kernels.tar.xz"
    export_pack(KERNELS, "native", cache, path)
    return path


def rewritten(path: Path, change: Callable[[dict[str, bytes]], Mapping[str, bytes]]) -> Path:
    """Write the pack again with other members."""
    with lzma.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        members = {}
        while (member := archive.next()) is not None:
            content = archive.extractfile(member)
            assert content is not None
            members[member.name] = content.read()
    other = path.with_name("other.tar.xz")
    with lzma.open(other, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        for name, content in change(members).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return other


def test_a_pack_brings_kernels_that_a_search_finds_compiled(cache: Path, pack: Path, tmp_path: Path) -> None:
    assert isinstance(KERNELS, PacksKernels)
    target = tmp_path / "target"
    result = import_pack(KERNELS, "native", pack, target)
    assert (result.added, result.present) == (COUNT, 0)
    assert CubinCache(target / "hopper_gemm").builds() == CubinCache(cache / "hopper_gemm").builds()
    assert imported_packs(target, "sm_90a") == (result.manifest.digest,) == (read_manifest(pack).digest,)
    assert imported_packs(target, "sm_80") == ()
    again = import_pack(KERNELS, "native", pack, target)
    assert (again.added, again.present) == (0, COUNT)


def test_the_same_kernels_are_the_same_bytes(cache: Path, pack: Path, tmp_path: Path) -> None:
    other = tmp_path / "again.tar.xz"
    export_pack(KERNELS, "native", cache, other, architectures=["sm_90a"])
    assert other.read_bytes() == pack.read_bytes()
    with pytest.raises(RequestError, match="none of sm_80 that this release launches"):
        export_pack(KERNELS, "native", cache, other, architectures=["sm_80"])


def test_a_pack_that_is_damaged_anywhere_adds_nothing(pack: Path, tmp_path: Path) -> None:
    whole = pack.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 40):
        pack.write_bytes(whole[:length])
        with pytest.raises(RequestError, match="reading the pack"):
            import_pack(KERNELS, "native", pack, tmp_path / "target")
    assert CubinCache(tmp_path / "target" / "hopper_gemm").builds() == {}
    assert imported_packs(tmp_path / "target") == ()


def test_a_pack_with_other_members_than_its_manifest_lists_is_refused(pack: Path, tmp_path: Path) -> None:
    def with_one_more(members: dict[str, bytes]) -> Mapping[str, bytes]:
        return {**members, "../../escaped": b"x"}

    def with_one_less(members: dict[str, bytes]) -> Mapping[str, bytes]:
        return {name: members[name] for name in list(members)[:-1]}

    def with_one_changed(members: dict[str, bytes]) -> Mapping[str, bytes]:
        return {**members, list(members)[1]: b"\x7fELF of another"}

    def with_a_way_out(members: dict[str, bytes]) -> Mapping[str, bytes]:
        manifest = members[MANIFEST].decode().replace("hopper_gemm/", "../hopper_gemm/")
        return {**members, MANIFEST: manifest.encode()}

    for change, reason in (
        (with_one_more, "does not list"), (with_one_less, "is missing"), (with_one_changed, "is damaged"),
        (with_a_way_out, "not those of its kernels"), (lambda members: dict(list(members.items())[1:]), "begin with"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=reason):
            import_pack(KERNELS, "native", rewritten(pack, change), tmp_path / "target")
    assert not (tmp_path.parent / "escaped").exists() and imported_packs(tmp_path / "target") == ()


@pytest.mark.parametrize(("field", "value"), [("abi", 99), ("backend", "other")])
def test_a_pack_of_another_abi_or_backend_is_named_and_not_used(
    field: str, value: object, pack: Path, tmp_path: Path
) -> None:
    def change(members: dict[str, bytes]) -> Mapping[str, bytes]:
        return {**members, MANIFEST: json.dumps({**json.loads(members[MANIFEST]), field: value}).encode()}

    with pytest.raises(RequestError, match=f"{value}.*\n.*expected: kernels of native, ABI"):
        import_pack(KERNELS, "native", rewritten(pack, change), tmp_path / "target")


def test_kernels_count_for_the_gpus_that_they_run_on(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    result = import_pack(KERNELS, "native", pack, tmp_path / "home" / "autotune" / "kernels")
    assert compiled_for(HOPPER) == (COUNT, (result.manifest.digest,))
    ampere = Device(kind="cuda", name="A100", uuid="gpu", capability=(8, 0))
    assert compiled_for(ampere) == (0, ())
    assert runs_on("sm_80", ampere) and not runs_on("sm_90a", ampere)


def test_a_pack_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grown(members: dict[str, bytes]) -> Mapping[str, bytes]:
        name = next(name for name in members if name.endswith(".cubin"))
        content = members[name] + bytes(2 * len(members[MANIFEST]))
        manifest = json.loads(members[MANIFEST])
        manifest["files"][name] = hashlib.sha256(content).hexdigest()
        return {**members, MANIFEST: json.dumps(manifest).encode(), name: content}

    large = rewritten(pack, grown)
    with lzma.open(large) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        manifest_bytes = next(iter(archive)).size
    for limit in (manifest_bytes - 1, manifest_bytes + 1):  # less than the manifest, and less than a kernel
        monkeypatch.setattr("autotune.kernels.pack.MOST_BYTES", limit)
        with pytest.raises(RequestError, match="it unpacks to more than"):
            import_pack(KERNELS, "native", large, tmp_path / "target")
    assert CubinCache(tmp_path / "target" / "hopper_gemm").builds() == {}
