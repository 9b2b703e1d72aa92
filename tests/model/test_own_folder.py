"""What a model file may import, whatever the current folder is, and that nothing of it stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autotune.errors import ModelError
from autotune.model.factory import folder_of, make_module, resolve
from autotune.model.own_folder import own_folder, plain_module

PARTS = "from torch import nn\nclass Part(nn.Linear):\n    def __init__(self): super().__init__(%d, %d)\n"
MAKE = "\ndef make():\n    return Part()\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path):
    """Every test runs in a folder that has nothing to do with the model's, and leaves Python's path as it was."""
    (tmp_path / "elsewhere").mkdir()
    folder, before, path, finders = Path.cwd(), set(sys.modules), list(sys.path), list(sys.meta_path)
    os.chdir(tmp_path / "elsewhere")
    yield
    os.chdir(folder)
    for name in [name for name in sys.modules if name not in before and not name.startswith("torch")]:
        del sys.modules[name]
    assert sys.path == path and sys.meta_path == finders


@pytest.fixture
def on_path(elsewhere):
    """Puts a folder first on Python's path until the end of the test."""
    added = []

    def add(folder):
        added.append(str(folder))
        sys.path.insert(0, str(folder))

    yield add
    for folder in added:
        sys.path.remove(folder)


def write(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def width(spec):
    return make_module(str(spec), 0).in_features


@pytest.mark.parametrize(
    "source",
    [
        f"from parts_beside import Part{MAKE}",
        f"from .parts_beside import Part{MAKE}",
        f"import parts_beside\nPart = parts_beside.Part{MAKE}",
        "def make():\n    from parts_beside import Part\n    return Part()",
        "def make():\n    from .parts_beside import Part\n    return Part()",
        "import importlib\ndef make():\n    return importlib.import_module('parts_beside').Part()",
        f"from deeper.parts import Part{MAKE}",
        f"from .deeper.parts import Part{MAKE}",
        f"import deeper.parts\nPart = deeper.parts.Part{MAKE}",
    ],
)
@pytest.mark.parametrize("file", ["model.py", "my-model.v2.py"])
def test_a_file_imports_what_lies_beside_it(tmp_path, source, file):
    folder = write(tmp_path / "models", parts_beside=PARTS % (7, 7), deeper__in__parts=PARTS % (7, 7))
    (folder / file).write_text(source)
    names = set(sys.modules)
    assert width(f"{folder / file}:make") == 7
    assert width(f"{os.path.relpath(folder / file)}:make") == 7
    assert not {"parts_beside", "deeper", "deeper.parts", "model"} & (set(sys.modules) - names)


@pytest.mark.parametrize(
    "line",
    [
        "from .parts import Part",
        "from ..common import Part",
        "from .. import common\nPart = common.Part",
        "from mypkg.models.parts import Part",
        "from mypkg.common import Part",
        "import mypkg.common as c\nPart = c.Part",
        "import mypkg.models.parts\nPart = mypkg.models.parts.Part",
        "from parts import Part",
        "from otherpkg import Part",
    ],
)
def test_a_file_of_a_package_imports_by_every_name(tmp_path, line):
    part = PARTS % (9, 9)
    folder = write(
        tmp_path / "project", mypkg__in____init__="", mypkg__in__models__in____init__="", mypkg__in__common=part,
        mypkg__in__models__in__parts=part, otherpkg=part, mypkg__in__models__in__net=line + MAKE,
        mypkg__in__models__in__late="def make():\n    " + line.replace("\n", "\n    ") + "\n    return Part()\n",
    )  # fmt: skip
    assert width(f"{folder}/mypkg/models/net.py:make") == 9
    assert width(f"{folder}/mypkg/models/late.py:make") == 9
    assert not {"mypkg", "parts", "otherpkg", "mypkg.common"} & set(sys.modules)


def test_every_name_of_a_module_is_one_module(tmp_path):
    """A class that is imported by three names is one class, and a registry is filled once."""
    folder = write(
        tmp_path, mypkg__in____init__="from . import net", mypkg__in__registry="known = []",
        mypkg__in__net="import mypkg.registry\nfrom .registry import known\nfrom mypkg import net as again\n"
        "import registry as beside, sys\nknown.append('net')\n"
        "def same():\n    registries = mypkg.registry.known, known, beside.known\n"
        "    return len({id(one) for one in registries}), again is sys.modules[__name__], len(known)",
    )  # fmt: skip
    assert resolve(f"{folder}/mypkg/net.py:same")() == (1, True, 1)
    assert plain_module(resolve(f"{folder}/mypkg/net.py:same").__module__) == "mypkg.net"
    assert plain_module("torch.nn") == "torch.nn"


def test_two_models_have_parts_of_the_same_name_beside_them(tmp_path):
    for size in (3, 4):
        write(tmp_path / f"model{size}", utils=PARTS % (size, size), model="from utils import Part" + MAKE)
    assert [width(f"{tmp_path}/model{size}/model.py:make") for size in (3, 4, 3)] == [3, 4, 3]


@pytest.mark.parametrize("name", ["utils", "yaml"])
def test_the_callers_module_of_the_same_name_is_neither_taken_nor_replaced(tmp_path, on_path, name):
    """Nor is one of an installed package, which the libraries that use it still get."""
    write(tmp_path / "theirs", utils="whose = 'the caller'", utils_more="")
    on_path(tmp_path / "theirs")
    mine = __import__(name)
    folder = write(tmp_path / "models", **{name: PARTS % (5, 5), "model": f"from {name} import Part{MAKE}"})
    assert width(f"{folder}/model.py:make") == 5
    assert sys.modules[name] is mine and __import__(name) is mine


def test_in_a_package_an_installed_package_comes_before_a_file_beside(tmp_path):
    source = "import yaml\ndef make():\n    import torch\n    return torch.nn.Linear(1 if yaml.safe_load else 2, 1)"
    folder = write(tmp_path, mypkg__in____init__="", mypkg__in__yaml="safe_load = 0", mypkg__in__net=source)
    assert width(f"{folder}/mypkg/net.py:make") == 1


def test_a_library_keeps_its_imports_while_the_model_is_made(tmp_path, on_path):
    """The model's folder has a file named as what a library imports later."""
    write(tmp_path / "site-packages", asks="def ask():\n    import sought\n    return sought.WHOSE", sought="WHOSE = 3")
    on_path(tmp_path / "site-packages")
    source = "import asks, torch\ndef make():\n    return torch.nn.Linear(asks.ask(), 1)"
    folder = write(tmp_path / "models", sought="raise ValueError('taken for the library')", model=source)
    assert width(f"{folder}/model.py:make") == 3


def test_what_the_caller_imported_from_the_same_file_is_used(tmp_path, on_path):
    folder = write(tmp_path, registry="known = []", model="from registry import known\ndef get():\n    return known")
    on_path(folder)
    import registry

    assert resolve(f"{folder}/model.py:get")() is registry.known
    assert sys.modules["registry"] is registry


@pytest.mark.parametrize("first", ["the caller", "the model"])
def test_a_package_on_the_callers_path_is_imported_once(tmp_path, on_path, first):
    """As if it were installed in editable mode: its operators can be registered only once."""
    folder = write(
        tmp_path, mypkg__in____init__="import torch\ncount = []", mypkg__in__parts=PARTS % (4, 4),
        mypkg__in__net="from . import count\nfrom .parts import Part\ncount.append('net')\n"
        "def make():\n    from parts import Part as P\n    assert P is Part\n    return P()\n",
    )  # fmt: skip
    on_path(folder)
    if first == "the caller":
        import mypkg.net
    module = make_module(f"{folder}/mypkg/net.py:make", 0)
    import mypkg.net

    assert isinstance(module, mypkg.net.Part) and sys.modules["mypkg"].count == ["net"]
    assert make_module(f"{folder}/mypkg/net.py:make", 0).__class__ is mypkg.net.Part
    assert "parts" not in sys.modules


def test_the_current_folder_may_be_the_models(tmp_path, on_path):
    source = "from .parts import Part as P\nfrom parts import Part\nassert P is Part" + MAKE
    folder = write(tmp_path / "models", model=source, parts=PARTS % (4, 4))
    os.chdir(folder)
    on_path("")
    assert width("model.py:make") == 4
    assert not {"model", "parts"} & set(sys.modules)


def test_a_file_that_puts_its_own_folder_on_the_path_leaves_nothing(tmp_path):
    source = "import os, sys\nsys.path.insert(0, os.path.dirname(__file__))\nfrom parts import Part" + MAKE
    for size in (3, 4):
        write(tmp_path / f"model{size}", parts=PARTS % (size, size), model=source)
    assert [width(f"{tmp_path}/model{size}/model.py:make") for size in (3, 4, 3)] == [3, 4, 3]
    assert "parts" not in sys.modules


def test_a_package_and_a_file_may_have_one_name(tmp_path):
    package = {"model__in____init__": "from .parts import Part" + MAKE, "model__in__parts": PARTS % (4, 4)}
    folder = write(tmp_path, model="from model.parts import Part as P\nclass Part(P): pass" + MAKE, **package)
    assert width(f"{folder}/model.py:make") == width(f"{folder}/model/__init__.py:make") == 4
    assert resolve(f"{folder}/model.py:make") is not resolve(f"{folder}/model/__init__.py:make")


def test_a_pickle_of_a_class_beside_the_file_is_read(tmp_path):
    """``torch.save(model)`` of a script names classes by the script's own imports."""
    folder = write(
        tmp_path, parts=PARTS % (6, 6),
        model="import torch\ndef make():\n    return torch.load(__file__ + '.pt', weights_only=False)",
        save="import torch, parts\ntorch.save(parts.Part(), 'model.py.pt')",
    )  # fmt: skip
    subprocess.run([sys.executable, "save.py"], cwd=folder, check=True)
    assert width(f"{folder}/model.py:make") == 6
    assert "parts" not in sys.modules


def test_folders_that_the_file_puts_on_the_path_serve_the_factory_alone(tmp_path):
    write(tmp_path / "shared", shared_first=PARTS % (8, 8), shared_later=PARTS % (8, 8))
    source = (
        f"import sys\nsys.path.insert(0, {str(tmp_path / 'shared')!r})\nfrom shared_first import Part\n" + MAKE
        + "def late():\n    from shared_later import Part\n    return Part()\n"
    )  # fmt: skip
    folder = write(tmp_path / "models", model=source)
    assert width(f"{folder}/model.py:make") == width(f"{folder}/model.py:late") == 8


def test_imports_of_a_forward_work_within_the_folder(tmp_path):
    source = (
        "from torch import nn\nclass Late(nn.Module):\n    def forward(self, x):\n"
        "        from helper import double\n        return double(x)\ndef make():\n    return Late()"
    )
    folder = write(tmp_path / "models", helper="def double(x): return 2 * x", model=source)
    module = make_module(f"{folder}/model.py:make", 0)
    with folder_of(f"{folder}/model.py:make"):
        assert module(torch.ones(1)).item() == 2
    with folder_of("torch.nn:Linear") as place:
        assert place is None


def test_blocks_are_nested_and_end_after_an_error(tmp_path):
    for size in (3, 4):
        write(tmp_path / f"model{size}", utils=f"SIZE = {size}", model="")
    with pytest.raises(ValueError, match="on purpose"), own_folder(tmp_path / "model3/model.py") as outer:
        with own_folder(tmp_path / "model4/model.py"), own_folder(tmp_path / "model4/model.py"):
            from utils import SIZE as inner_size
        from utils import SIZE as outer_size

        assert (inner_size, outer_size, outer.root) == (4, 3, tmp_path / "model3")
        raise ValueError("on purpose")
    assert "utils" not in sys.modules


def test_a_missing_module_is_named_with_the_path_and_how_to_add_to_it(tmp_path):
    folder = write(tmp_path / "models", model="from torch import nn\nfrom missing_parts import Part\n" + MAKE)
    with pytest.raises(ModelError) as caught:
        make_module(f"{folder}/model.py:make", 0)
    text = str(caught.value)
    assert "missing_parts" in text and str(folder) in text and "PYTHONPATH=" in text
    assert f"{folder}/model.py, line 2" in text and "doctor" not in text and "autotune_factory" not in text
