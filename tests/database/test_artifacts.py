import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.database.artifacts import ArtifactStore
from autotune.database.artifacts import stored as verified
from autotune.database.manifest import ArtifactFile, digest_of, is_digest, manifest_files, manifest_json
from autotune.database.sweep import sweep
from autotune.errors import ArtifactError
from tests.database.records import digest, folder_with

names = st.lists(st.text(alphabet="abAB.-_ é", min_size=1, max_size=6), min_size=1, max_size=3).map("/".join)
contents = st.dictionaries(names, st.binary(max_size=40), min_size=1, max_size=5)


def storable(files: dict[str, bytes]) -> bool:
    folders = {"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)}
    return not folders & set(files) and not any(part in (".", "..") for name in files for part in name.split("/"))


def read(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stored(tmp_path: Path, files: dict[str, bytes]) -> tuple[ArtifactStore, str]:
    store = ArtifactStore(tmp_path / "store")
    return store, store.add(folder_with(tmp_path / "built", files))


@settings(max_examples=20, deadline=None)
@given(st.lists(contents.filter(storable), min_size=1, max_size=3))
def test_what_goes_in_comes_out_and_shared_files_are_kept_once(artifacts: list[dict[str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as text:
        root = Path(text)
        store = ArtifactStore(root / "store")
        digests = [store.add(folder_with(root / str(i), files)) for i, files in enumerate(artifacts)]
        assert store.digests() == sorted(set(digests))
        for files, each in zip(artifacts, digests, strict=True):
            assert read(store.open(each)) == files
            assert store.size_bytes(each) == sum(map(len, set(files.values())))
        different = {content for files in artifacts for content in files.values()}
        assert sum(1 for path in (store.root / "blobs").rglob("*") if path.is_file()) == len(different)
        assert store.size_bytes() == sum(map(len, different))
        store.remove(digests[0])
        for files, each in zip(artifacts, digests, strict=True):
            if each == digests[0]:
                assert not store.has(each)
            else:
                assert read(store.open(each)) == files
        for each in digests:
            store.remove(each)
        assert [path for path in (store.root / "blobs").rglob("*") if path.is_file()] == []
        assert store.digests() == os.listdir(store.root / "temporary") == os.listdir(store.root / "folders") == []


def test_the_digest_depends_on_names_and_bytes_only(tmp_path: Path) -> None:
    store, first = stored(tmp_path, {"a": b"1", "b/c": b"2"})
    assert is_digest(first)
    again = folder_with(tmp_path / "again", {"b/c": b"2", "a": b"1"})
    (again / "empty").mkdir()
    assert store.add(again) == first == digest_of(store.files(first))
    assert store.add(folder_with(tmp_path / "other", {"a": b"1", "b/d": b"2"})) != first


@pytest.mark.parametrize("damage", [b"", b"tampereD", b"tamper", b"tampered and longer"])
def test_a_damaged_file_is_refused_and_adding_it_again_heals(tmp_path: Path, damage: bytes) -> None:
    store, found = stored(tmp_path, {"model.so": b"tampered"})
    folder = store.open(found)
    blob = store.blob(store.files(found)[0].sha256)
    blob.chmod(0o600)
    blob.write_bytes(damage)
    with pytest.raises(ArtifactError, match="damaged"):
        store.open(found)
    assert store.add(tmp_path / "built") == found
    assert read(store.open(found)) == {"model.so": b"tampered"}
    assert store.open(found) == folder


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    store, found = stored(tmp_path, {"model.so": b"x"})
    store.blob(store.files(found)[0].sha256).unlink()
    with pytest.raises(ArtifactError, match="damaged"):
        store.open(found)


def test_an_opened_folder_that_was_changed_is_made_anew(tmp_path: Path) -> None:
    store, found = stored(tmp_path, {"model.so": b"x", "data/w": b"y"})
    folder = store.open(found)
    inode = (folder / "model.so").stat().st_ino
    assert store.open(found) == folder and (folder / "model.so").stat().st_ino == inode
    (folder / "evil.py").write_text("import os")
    assert read(store.open(found)) == {"model.so": b"x", "data/w": b"y"}
    (folder / "data/w").unlink()
    (folder / "data/w").symlink_to("/etc/hostname")
    assert read(store.open(found)) == {"model.so": b"x", "data/w": b"y"}
    assert not (folder / "data/w").is_symlink()


def test_the_manifest_cannot_name_another_artifacts_files(tmp_path: Path) -> None:
    store, found = stored(tmp_path, {"model.so": b"x"})
    other = store.add(folder_with(tmp_path / "other", {"model.so": b"y"}))
    manifest = store.manifest(found)
    manifest.chmod(0o600)
    manifest.write_bytes(store.manifest(other).read_bytes())
    with pytest.raises(ArtifactError, match="damaged"):
        store.open(found)


@pytest.mark.parametrize("name", ["../x", "x" * 64, "", digest("a").upper(), digest("a") + "/..", digest("a")[:-1]])
def test_what_is_no_digest_names_nothing(tmp_path: Path, name: str) -> None:
    store = ArtifactStore(tmp_path / "store")
    for method in (store.open, store.has, store.remove, store.files):
        with pytest.raises(ArtifactError, match="names no artifact"):
            method(name)


def test_links_and_special_files_are_not_stored(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    folder = folder_with(tmp_path / "built", {"a": b"1"})
    for target in ("/etc/hostname", tmp_path, None):
        if target is None:
            os.mkfifo(folder / "link")
        else:
            (folder / "link").symlink_to(target)
        with pytest.raises(ArtifactError, match="link or a special file"):
            store.add(folder)
        (folder / "link").unlink()
    (tmp_path / "linked").symlink_to(folder)
    for refused in (tmp_path / "linked", tmp_path / "absent", folder / "a"):
        with pytest.raises(ArtifactError):
            store.add(refused)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no file"):
        store.add(tmp_path / "empty")
    assert store.digests() == []


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "a//b", "./a", "a\\b", "a\nb", "a\x00", "a/" + "b" * 300])
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"name|character"):
        ArtifactFile(name=name, size_bytes=0, sha256=digest(""))


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '[{"name":"a"}]', "[" * 100_000])
def test_a_manifest_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        manifest_json(manifest_files(text))


def test_a_file_cannot_lie_below_a_file() -> None:
    files = [ArtifactFile(name=name, size_bytes=0, sha256=digest("")) for name in ("a", "a/b")]
    with pytest.raises(ValueError, match="same name"):
        manifest_json(files)


def test_a_store_that_others_could_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_text("")
    for name, found in (("open", "every user can write"), ("link", "symbolic link"), ("file", "a file")):
        with pytest.raises(ArtifactError, match=found):
            ArtifactStore(tmp_path / name)


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ArtifactStore(tmp_path / "file" / "store")
    assert store.digests() == []
    with pytest.raises(ArtifactError, match="cannot be used"):
        store.add(folder_with(tmp_path / "built", {"a": b"1"}))


def test_threads_that_open_and_add_and_remove_at_once_do_not_disturb_one_another(tmp_path: Path) -> None:
    store, found = stored(tmp_path, {"model.so": b"x" * 1000, "weights": b"w" * 1000})
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                own = folder_with(tmp_path / f"{number}-{turn}", {"weights": b"w" * 1000, "own": f"{number}".encode()})
                mine = store.add(own)
                assert read(store.open(mine))["weights"] == b"w" * 1000
                assert read(store.open(found)) == {"model.so": b"x" * 1000, "weights": b"w" * 1000}
                store.remove(mine)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.digests() == [found]


# Between verification and load


def swap(path: Path, content: bytes) -> None:
    """Put another file in the place of one, as an attacker or an editor does."""
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("place", ["blob", "folder"])
def test_a_file_swapped_after_it_was_verified_is_not_what_is_loaded(tmp_path: Path, place: str) -> None:
    store, found = stored(tmp_path, {"model.so": b"verified"})
    shared = store.open(found) / "model.so"
    target = shared if place == "folder" else store.blob(store.files(found)[0].sha256)
    with store.verified(found) as folder:
        swap(target, b"tampered")
        assert read(folder) == {"model.so": b"verified"}
    if place == "blob":
        with pytest.raises(ArtifactError, match="damaged"), store.verified(found):
            pytest.fail("nothing may be loaded")


@pytest.mark.parametrize("content", [b"tampered", b"longer than before", b""])
def test_a_file_written_to_while_it_is_loaded_is_told(tmp_path: Path, content: bytes) -> None:
    store, found = stored(tmp_path, {"model.so": b"verified", "data": b"1"})
    with pytest.raises(ArtifactError, match=r"model\.so was changed by another process"), store.verified(found):
        blob = store.blob(next(file.sha256 for file in store.files(found) if file.name == "model.so"))
        blob.chmod(0o600)
        blob.write_bytes(content)
        os.utime(blob, (1.0, 1.0))


def test_a_file_put_into_the_folder_of_a_load_itself_is_told(tmp_path: Path) -> None:
    store, found = stored(tmp_path, {"model.so": b"verified"})
    with pytest.raises(ArtifactError, match="was changed by another process"), store.verified(found) as folder:
        swap(folder / "model.so", b"tampered")


def test_loads_of_one_artifact_do_not_disturb_one_another(tmp_path: Path) -> None:
    store, found = stored(tmp_path, {"model.so": b"verified"})
    with store.verified(found) as first, store.verified(found) as second:
        assert first != second and read(first) == read(second)
        store.remove(found)
        assert read(first) == read(second) == {"model.so": b"verified"}
    assert os.listdir(store.root / "temporary") == []


def test_what_somebody_holds_is_not_removed_by_another(tmp_path: Path) -> None:
    """Two studies that built the same: the first drops it before the second could name it."""
    store, other = ArtifactStore(tmp_path / "store"), ArtifactStore(tmp_path / "store")
    built = folder_with(tmp_path / "built", {"model.so": b"the same"})
    found = store.add(built)
    with other.kept(built) as same:
        assert same == found
        store.remove(found)
        sweep(store, set(), before=float("inf"))
        assert read(store.open(found)) == {"model.so": b"the same"}
    store.remove(found)
    assert not store.has(found) and os.listdir(store.root / "temporary") == []


def test_the_death_of_a_holder_lets_go(tmp_path: Path) -> None:
    store, found = stored(tmp_path, {"model.so": b"of a dead builder"})
    code = (
        "import os, sys, pathlib; from autotune.database.artifacts import ArtifactStore\n"
        "with ArtifactStore(pathlib.Path(sys.argv[1])).held(sys.argv[2]): os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(store.root), found], check=False)
    assert dead.returncode == -9 and len(os.listdir(store.root / "temporary")) == 1
    store.remove(found)
    assert not store.has(found)


@pytest.mark.parametrize("damage", ["flipped", "missing", "link", "pipe", "manifest"])
def test_nothing_damaged_is_given_to_a_load(tmp_path: Path, damage: str) -> None:
    store, found = stored(tmp_path, {"model.so": b"verified"})
    store.open(found)
    blob = store.manifest(found) if damage == "manifest" else store.blob(store.files(found)[0].sha256)
    blob.unlink()
    if damage in ("flipped", "manifest"):
        blob.write_bytes(b"Verified")
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(b"verified")
        blob.symlink_to(tmp_path / "elsewhere")
    elif damage == "pipe":
        os.mkfifo(blob)
    with pytest.raises(ArtifactError, match="damaged"), store.verified(found):
        pytest.fail("nothing may be loaded")
    assert os.listdir(store.root / "temporary") == []


def test_a_worker_verifies_what_comes_from_a_store_and_takes_a_fresh_build_as_it_is(tmp_path: Path) -> None:
    store, found = stored(tmp_path, {"model.so": b"verified"})
    with verified(store.open(found)) as folder:
        assert folder != store.open(found) and read(folder) == {"model.so": b"verified"}
    with verified(tmp_path / "built") as folder:
        assert folder == tmp_path / "built"
    swap(store.blob(store.files(found)[0].sha256), b"tampered")
    with pytest.raises(ArtifactError, match="damaged"), verified(store.root / "folders" / found):
        pytest.fail("nothing may be loaded")


def test_a_store_with_a_folder_led_elsewhere_is_refused_and_nothing_is_written_there(tmp_path: Path) -> None:
    store, found = stored(tmp_path, {"model.so": b"x"})
    (tmp_path / "elsewhere").mkdir()
    sha256 = store.files(found)[0].sha256
    for name in ("blobs", "manifests", "folders", "temporary", f"blobs/{sha256[:2]}"):
        (store.root / name).rename(tmp_path / "kept")
        (store.root / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ArtifactError, match="symbolic link"):
            store.add(tmp_path / "built")
        (store.root / name).unlink()
        (tmp_path / "kept").rename(store.root / name)
    (store.root / "lock").unlink()
    (store.root / "lock").symlink_to(tmp_path / "elsewhere" / "lock")
    with pytest.raises(ArtifactError, match="cannot be used"):
        store.open(found)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_hard_link_is_not_stored(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    (tmp_path / "secret").write_text("of somebody else")
    folder = folder_with(tmp_path / "built", {"a": b"1"})
    os.link(tmp_path / "secret", folder / "b")
    with pytest.raises(ArtifactError, match="link or a special file"):
        store.add(folder)
    assert store.digests() == []
