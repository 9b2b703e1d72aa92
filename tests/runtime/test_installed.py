"""The command that installs what is missing names packages that PyPI has."""

import re
from importlib import metadata

import pytest

from autotune.runtime.installed import install_command


@pytest.mark.parametrize(("extra", "package"), [("cpu", "onnxruntime"), ("openvino", "openvino"), ("native", "triton")])
def test_the_packages_of_an_extra_are_installed_by_name(extra, package):
    assert re.fullmatch(r"pip install( '[\w-]+(\[\w+\])?[<>=][^']+')+", install_command(extra))
    assert f"'{package}>=" in install_command(extra)


def test_an_extra_that_is_not_known_or_a_tree_that_was_never_installed_is_installed_from_the_checkout(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    assert install_command("nothing") == "pip install -e '.[nothing]'"
    monkeypatch.setattr(metadata, "requires", missing)
    assert install_command("cpu") == "pip install -e '.[cpu]'"
