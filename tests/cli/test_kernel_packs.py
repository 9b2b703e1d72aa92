"""The commands that compile, write, read and list kernels."""

import json

import pytest

from autotune.backends.native.cuda_kernels import kernel_sets
from autotune.backends.native.cuda_kernels.cubin_compiler import find_compiler

_STANDARD = kernel_sets._standard_tiles()
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="needs NVRTC or nvcc")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _few_tiles():
    return _STANDARD["sm_90a"]["hopper_gemm"][:1]


@needs_compiler
def test_kernels_are_compiled_written_and_read_without_a_gpu(autotune, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_sets, "_standard_tiles", lambda: {"sm_90a": {"hopper_gemm": _few_tiles()}})
    built = autotune("kernels", "build", "--arch", "sm_90a", "--dtype", "bf16", "--json")
    assert built.exit_code == 0, built.stderr
    assert json.loads(built.stdout) == {"architecture": "sm_90a", "kernels": 2, "compiled_now": 2, "refused": 0}
    assert (
        "2 kernels for sm_90a, 0 compiled now"
        in autotune("kernels", "build", "--arch", "sm_90a", "--dtype", "bf16").stdout
    )
    exported = autotune("kernels", "export", "k.tar.xz", "--json")
    digest = json.loads(exported.stdout)["digest"]
    assert digest[:16] in autotune("kernels", "list", "k.tar.xz").stdout
    listed = json.loads(autotune("kernels", "list", "k.tar.xz", "--json").stdout)
    assert {(row["kind"], row["group"], row["kernels"]) for row in listed["groups"]} == {
        ("hopper_gemm", "bf16 product", 1), ("hopper_gemm", "bf16 convolution", 1)
    }  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert "no compiled kernels" in autotune("kernels", "list", "--compiled").stdout
    imported = autotune("kernels", "import", "k.tar.xz")
    assert imported.exit_code == 0 and "2 kernels added, 0 were there" in imported.stdout
    assert "no study on this machine will use them" in imported.stdout
    assert json.loads(autotune("kernels", "list", "--compiled", "--json").stdout)["packs"] == [digest]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("build", "--arch", "sm_99"), "expected: one of sm_"),
        (("build",), "no GPU with a standard set"),
        (("build", "--arch", "sm_90a", "--dtype", "fp8"), "expected: one of fp16, bf16"),
        (("build", "--arch", "sm_90a", "--jobs", "0"), "expected: at least 1"),
        (("export", "k.tar.xz"), "run next: autotune kernels build"),
        (("import", "none.tar.xz"), "no such file"),
        (("import", "."), "found: a folder"),
        (("list", "none.tar.xz"), "reading the pack"),
    ],
)
def test_what_cannot_be_done_is_said(autotune, cache, command, words):
    refused = autotune("kernels", *command)
    assert refused.exit_code == 2 and words in refused.stderr, refused.stderr


@needs_compiler
def test_a_cache_that_cannot_be_written_is_said_and_is_not_the_packs_fault(autotune, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "whole"))
    monkeypatch.setattr(kernel_sets, "_standard_tiles", lambda: {"sm_90a": {"hopper_gemm": _few_tiles()}})
    assert autotune("kernels", "build", "--arch", "sm_90a", "--dtype", "fp16").exit_code == 0
    assert autotune("kernels", "export", "k.tar.xz").exit_code == 0
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for command in (("build", "--arch", "sm_90a"), ("import", "k.tar.xz")):
        refused = autotune("kernels", *command)
        assert refused.exit_code == 1 and "expected: a folder that this user can write" in refused.stderr
        assert "reading the pack" not in refused.stderr
