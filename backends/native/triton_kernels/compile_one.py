"""The compiler as a program of its own: ``python compile_one.py REQUEST FOLDER``; REQUEST is a kernel as JSON.

Writes ``kernel.cubin`` and ``kernel.json`` into FOLDER, or ``refused`` with Triton's error message. The exit status is
not 0 if the kernel has no result: Triton does not work, or memory or disk is full. The program imports Triton only, so
it starts in a quarter of a second, and a compiler that crashes ends no other process.
"""

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

NO_REFUSAL = ("no space left on device", "out of memory", "cannot find ptxas", "cannot allocate memory")


class JitFunction(Protocol):
    """The part of ``triton.JITFunction`` that is used here."""

    arg_names: list[str]


class KernelMetadata(Protocol):
    """The part of a compiled kernel's metadata that is used here."""

    shared: int
    num_warps: int


class TritonKernel(Protocol):
    """The part of ``triton.compiler.CompiledKernel`` that is used here."""

    asm: Mapping[str, Any]
    metadata: KernelMetadata


def main(request_file: Path, folder: Path) -> None:
    """Compile one kernel for one compute capability."""
    # The folder of a program comes first on the path, and our modules there would hide others from Triton.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    request = json.loads(request_file.read_text())
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    try:
        function = _function(request, folder)
        target = GPUTarget("cuda", request["capability"], 32)
        # Contracting a·b + c rounds once instead of twice; its default differs between Triton's releases.
        options = {"num_warps": request["warps"], "num_stages": request["stages"], "enable_fp_fusion": True}
        source = ASTSource(function, *_arguments(request, function))
        compiled = triton.compile(source, target=target, options=options)
    except (ImportError, OSError, MemoryError):
        raise
    except Exception as error:  # any error of Triton: in the code, in a pass of MLIR, from ptxas
        message = f"{type(error).__name__}: {error}"
        if any(sign in message.lower() for sign in NO_REFUSAL):
            raise
        (folder / "refused").write_text(message)
        return
    cubin = compiled.asm["cubin"]
    record = _record(request, function, compiled, triton.__version__)
    (folder / "kernel.cubin").write_bytes(cubin)
    (folder / "kernel.json").write_text(json.dumps({**record, "cubin_sha256": hashlib.sha256(cubin).hexdigest()}))


def _function(request: Mapping[str, Any], folder: Path) -> "JitFunction":
    path = folder / "source.py"  # Triton reads a function's text from its file
    path.write_text(request["code"])
    spec = importlib.util.spec_from_file_location("kernel_source", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function: JitFunction = getattr(module, request["function"])
    return function


def _arguments(
    request: Mapping[str, Any], function: "JitFunction"
) -> tuple[dict[str, str], dict[str, object], dict[tuple[int], object]]:
    """Signature, constants and known divisibility as Triton 3.4 to 3.9 take them."""
    types, constants = dict(request["parameters"]), dict(request["constants"])
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    unknown = {*types, *constants} ^ set(function.arg_names)
    if unknown:
        raise ValueError(f"{request['function']} takes {function.arg_names}; too many or too few: {sorted(unknown)}")
    divisible = [["tt.divisibility", 16]]
    aligned = {name for name, kind in types.items() if kind.startswith("*")} | set(request["aligned"])
    return signature, constants, {(i,): divisible for i, name in enumerate(function.arg_names) if name in aligned}


def _record(
    request: Mapping[str, Any], function: "JitFunction", compiled: "TritonKernel", version: str
) -> dict[str, object]:
    """Return the data that a launch needs, read from the compiled code instead of the request.

    After its own parameters a kernel has some that Triton adds, addresses of scratch memory: one since 3.3, two since
    3.5. Only the code itself shows their number.
    """
    metadata, code = compiled.metadata, compiled.asm["ptx"]
    entry = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)\s*([^{]*)\{", code, re.DOTALL)
    target = re.search(r"^\.target\s+(sm_\w+)", code, re.MULTILINE)
    if entry is None or target is None:
        raise RuntimeError(f"no entry or target in the code of {request['function']}: {code[:500]!r}")
    types, passed = dict(request["parameters"]), re.findall(r"\.param\s+\.(\w+)", entry[2])
    hidden = passed[len(types) :]
    scratch = sum(getattr(metadata, f"{kind}_scratch_size", 0) for kind in ("global", "profile"))
    if len(passed) < len(types) or set(hidden) - {"u64"} or scratch:
        raise RuntimeError(f"{request['function']} takes {passed} and {scratch} bytes of scratch memory: not supported")
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", entry[3])
    return {
        "function": entry[1],
        "target": target[1],
        "threads": int(threads[1]) if threads else 32 * metadata.num_warps,
        "shared_bytes": metadata.shared,
        "parameters": [(name, types[name]) for name in function.arg_names if name in types],
        "hidden_pointers": len(hidden),
        "early": "griddepcontrol.wait" in code,
        "triton": version,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
