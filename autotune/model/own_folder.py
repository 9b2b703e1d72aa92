"""A model file imports modules beside it, by any name that Python accepts for them, and leaves no trace.

The folder that imports start from, the *root*, is the one that holds the model file's top-most package, or the file
itself if it is in no package. It becomes a package under a name of its own, ``autotune_factory_<digest of the root>``,
and every module below it is loaded once, as a part of that package. Relative imports therefore work at any time. Within
:func:`own_folder` the plain names (``parts_beside``, ``mypkg.models.net``) are further names of the same modules;
afterwards ``sys.modules`` and ``sys.path`` are as before, so that two models may each have a ``utils.py`` beside them.
A package that the caller's own path leads to (one that is installed in editable mode, say) is imported as the caller
would import it, and stays: executed a second time, it would register its operators twice.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import NamedTuple

from autotune.model.own_files import IMPORTING, is_installed, is_of_python, is_own

PREFIX = "autotune_factory_"
_SYNTHETIC = re.compile(rf"{PREFIX}[0-9a-f]{{16}}\.?")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPlace:
    """The place of a model file: its root, and the names under which its folder and itself are loaded."""

    path: Path
    root: Path
    root_name: str
    folder_name: str
    name: str

    @classmethod
    def of(cls, path: Path) -> "OwnPlace":
        """Find the place of a file: packages are the folders with ``__init__.py``, from its own upwards."""
        path = path.resolve()
        root, packages = path.parent, list[str]()
        while (root / "__init__.py").is_file() and "." not in root.name and root != root.parent:
            packages.insert(0, root.name)
            root = root.parent
        root_name = PREFIX + hashlib.sha256(str(root).encode()).hexdigest()[:16]
        folder_name = ".".join([root_name, *packages])
        if path.name == "__init__.py" and packages:
            return cls(path=path, root=root, root_name=root_name, folder_name=folder_name, name=folder_name)
        stem = path.stem
        if not stem.isidentifier() or (path.parent / stem / "__init__.py").is_file():  # the name is the package's
            stem = re.sub(r"\W", "_", stem) + "_" + hashlib.sha256(path.name.encode()).hexdigest()[:8]
        return cls(path=path, root=root, root_name=root_name, folder_name=folder_name, name=f"{folder_name}.{stem}")


def plain_module(name: str) -> str:
    """Return the name under which a user knows a module that :func:`load` has loaded; other names stay as they are."""
    return _SYNTHETIC.sub("", name) if name.startswith(PREFIX) else name


@contextlib.contextmanager
def own_folder(path: Path) -> Iterator[OwnPlace]:
    """Let a model file and its callees import modules beside it; the path and the plain names end with the block.

    One thread at a time; blocks may be nested. A module that the caller has already imported from the same file is
    used. One of the same name from elsewhere is out of sight until the end.
    """
    place = OwnPlace.of(path)
    with _LOCK:
        if _ACTIVE and _ACTIVE[-1] == (place.root, place.path.parent):
            yield place
            return
        before = list(sys.path)
        if not _ACTIVE:
            _USUAL[:] = [os.path.abspath(entry) for entry in before]
        finder = _OwnNames(place)
        _ACTIVE.append((place.root, place.path.parent))
        sys.meta_path.insert(0, finder)
        sys.path[:] = [*_ADDED.get(place.root, ()), *before, *_absent_from(before, place.path.parent, place.root)]
        try:
            finder.enter()
            yield place
        finally:
            finder.leave()
            with contextlib.suppress(ValueError):
                sys.meta_path.remove(finder)
            _ACTIVE.pop()
            beside = {str(place.path.parent), str(place.root)}
            _ADDED[place.root] = [entry for entry in sys.path if entry not in before and entry not in beside]
            sys.path[:] = before


def load(place: OwnPlace) -> ModuleType:
    """Import a model file, once a process; to be called within :func:`own_folder`."""
    folder = importlib.import_module(place.folder_name)
    if place.name in sys.modules:
        return sys.modules[place.name]
    last = place.name.rpartition(".")[2]
    beside = PathFinder.find_spec(last, list(folder.__path__))
    if beside is not None and beside.origin == str(place.path):
        return importlib.import_module(place.name)
    spec = importlib.util.spec_from_file_location(
        place.name, place.path
    )  # its name is no identifier, or a folder's too
    if spec is None or spec.loader is None:
        raise ImportError(f"{place.path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[place.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(place.name, None)
        raise
    return sys.modules[place.name]


_LOCK = threading.RLock()
_ACTIVE: list[tuple[Path, Path]] = []
_USUAL: list[str] = []
"""The caller's own path, while any block is active."""
_ADDED: dict[Path, list[str]] = {}
"""Entries that the files of a root have put on ``sys.path`` at their import, which happens once a process."""


class _OwnNames:
    """Finds plain names in the folder and the root of a model, and gives them back their former meaning at the end."""

    def __init__(self, place: OwnPlace) -> None:
        self._root, self._folder = str(place.root), str(place.path.parent)
        self._root_name, self._folder_name = place.root_name, place.folder_name
        self._hidden: dict[str, ModuleType] = {}
        self._aliases: set[str] = set()

    def enter(self) -> None:
        """Make the root a package, add the caller's imports from it, and hide other modules of the same names."""
        if self._root_name not in sys.modules:
            spec = ModuleSpec(self._root_name, None, origin=self._root, is_package=True)
            spec.submodule_search_locations = [self._root]
            sys.modules[self._root_name] = importlib.util.module_from_spec(spec)
        for folder in (self._folder, self._root):
            cached = sys.path_importer_cache.get(folder)
            if cached is not None and hasattr(cached, "invalidate_caches"):
                cached.invalidate_caches()  # a file may be younger than the clock of the file system shows
        for name in [name for name in sys.modules if "." not in name]:
            own = self._own(name)
            if own is None:
                continue
            names = [name, *(part for part in sys.modules if part.startswith(f"{name}."))]
            if _is_same(sys.modules[name], own.spec):
                for part in names:
                    sys.modules.setdefault(own.name + part[len(name) :], sys.modules[part])
            else:
                self._hidden.update({part: sys.modules.pop(part) for part in names})

    def leave(self) -> None:
        """Remove the plain names, and restore the hidden modules."""
        for name in self._aliases:
            module = sys.modules.get(name)
            if module is not None and module.__name__ != name:
                del sys.modules[name]
        sys.modules.update(self._hidden)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module under its plain name; see :class:`importlib.abc.MetaPathFinder`."""
        above, _, last = name.rpartition(".")
        if name.startswith(PREFIX):
            return self._as_the_caller_does(name, above, last)
        if above:
            parent = sys.modules.get(above)
            if name in self._hidden and parent is self._hidden.get(above):
                return _again(name, self._hidden[name])
            if above in self._aliases and parent is not None and parent.__name__ != above:
                return self._alias(name, f"{parent.__name__}.{last}")
            return None
        own = self._own(name)
        if own is None or self._is_usual(name, own.spec):
            return None
        if not _is_imported_from(self._root):
            if name in self._hidden:
                return _again(name, self._hidden[name])
            if self._is_elsewhere(name):
                return None
        return self._alias(name, own.name)

    def _alias(self, name: str, own: str) -> ModuleSpec | None:
        if own not in sys.modules and importlib.util.find_spec(own) is None:
            return None
        self._aliases.add(name)
        return _again(name, importlib.import_module(own))

    def _own(self, name: str) -> "_Own | None":
        """Return the model's own module of a plain name, or ``None`` if it has none.

        Python's library comes first. In a folder that is no package a name then means a module beside the file, as for
        a script; in a package, an installed package of that name comes before a module beside the file.
        """
        if name in sys.stdlib_module_names or name in ("__main__", "autotune"):
            return None
        at_root = PathFinder.find_spec(name, [self._root])
        if at_root is not None and at_root.origin is not None:
            return _Own(f"{self._root_name}.{name}", at_root)
        beside = PathFinder.find_spec(name, [self._folder]) if self._folder != self._root else None
        if (at_root is None and beside is None) or _is_installed_name(name):
            return None
        if beside is not None:
            return _Own(f"{self._folder_name}.{name}", beside)
        return _Own(f"{self._root_name}.{name}", at_root) if at_root is not None else None

    def _as_the_caller_does(self, name: str, above: str, last: str) -> ModuleSpec | None:
        """Find a package of the root, or a part of one, by the caller's own path, if that leads to it."""
        parent = sys.modules.get(above)
        plain = None
        if above == self._root_name:
            own = self._own(last)
            plain = last if own is not None and own.name == name and self._is_usual(last, own.spec) else None
        elif parent is not None and not parent.__name__.startswith(PREFIX):
            plain = f"{parent.__name__}.{last}"
        if plain is None or importlib.util.find_spec(plain) is None:
            return None
        return _again(name, importlib.import_module(plain))

    def _is_usual(self, name: str, spec: ModuleSpec) -> bool:
        """Return whether it is a package to which the caller's own path leads, too.

        A module in no package can import relatively only as a part of the root's package.
        """
        if spec.origin is None or spec.submodule_search_locations is None:
            return False
        usual = self._by_others(name, _USUAL)
        return usual is not None and _paths_of(usual) == _paths_of(spec)

    def _is_elsewhere(self, name: str) -> bool:
        """Return whether a library that imports a name finds it without the model's folders."""
        of_models = {str(folder) for folders in _ACTIVE for folder in folders}
        path = [entry for entry in sys.path if entry in _USUAL or entry not in of_models]
        return self._by_others(name, path) is not None

    def _by_others(self, name: str, path: list[str]) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if not isinstance(finder, _OwnNames):
                spec = finder.find_spec(name, path if finder is PathFinder else None)
                if spec is not None:
                    return spec
        return None


class _Own(NamedTuple):
    name: str
    spec: ModuleSpec


class _Again(Loader):
    """Loads a module that is already loaded, under one more name."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module under its own name."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Return the module back its own specification, which the import system has replaced."""
        module.__spec__ = self._spec


def _again(name: str, module: ModuleType) -> ModuleSpec:
    return ModuleSpec(name, _Again(module), is_package=hasattr(module, "__path__"))


def _is_same(module: ModuleType, spec: ModuleSpec) -> bool:
    """Return whether a loaded module is the one that a specification leads to."""
    file = getattr(module, "__file__", None)
    places = [file] if file is not None else getattr(module, "__path__", ())
    return {os.path.realpath(place) for place in places} == _paths_of(spec)


def _paths_of(spec: ModuleSpec) -> set[str]:
    """Return the file of a specification, or the bare folders."""
    places = [spec.origin] if spec.origin is not None else spec.submodule_search_locations or ()
    return {os.path.realpath(place) for place in places}


def _is_imported_from(root: str) -> bool:
    """Return whether the import statement stands in a file below the root; libraries keep their own imports."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(IMPORTING) and f"{os.sep}importlib{os.sep}" not in file and file != __file__:
            return os.path.realpath(file).startswith(root + os.sep) and is_own(file)
        frame = frame.f_back
    return False


def _is_installed_name(name: str) -> bool:
    """Return whether a top-level name is an installed package or Python's, and more than a bare folder."""
    places = [entry for entry in sys.path if is_installed(entry + os.sep) or is_of_python(entry + os.sep)]
    spec = PathFinder.find_spec(name, places)
    return spec is not None and spec.origin is not None


def _absent_from(path: list[str], *folders: Path) -> list[str]:
    return [str(folder) for folder in dict.fromkeys(folders) if str(folder) not in path]
