"""The compiler as a program of its own: ``python compile_one.py ORDER FOLDER`` with one kernel in the JSON file ORDER.

Writes ``kernel.cubin`` and ``kernel.json`` into FOLDER, or ``refused`` with what Triton said against the kernel. Ends
with another status than 0 where nothing is known of the kernel: Triton is broken, or there is no memory or disk. It
imports Triton alone, so that it starts in a quarter of a second, and a compiler that crashes takes nobody along.
"""

import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

NO_REFUSAL = ("no space left on device", "out of memory", "cannot find ptxas", "cannot allocate memory")


def main(order: Path, folder: Path) -> None:
    """Compile one kernel for one compute capability."""
    # When this file is run as a program its folder comes first on the path, where our modules are not for Triton.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    asked = json.loads(order.read_text())
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    try:
        function = _function(asked, folder)
        target = GPUTarget("cuda", asked["capability"], 32)
        # Contracting a·b + c rounds once instead of twice; its default differs between Triton's releases.
        options = {"num_warps": asked["warps"], "num_stages": asked["stages"], "enable_fp_fusion": True}
        source = ASTSource(function, *_arguments(asked, function))
        compiled: Any = triton.compile(source, target=target, options=options)
    except (ImportError, OSError, MemoryError):
        raise
    except Exception as error:  # Triton's own border: errors in the code, in a pass of MLIR, from ptxas
        said = f"{type(error).__name__}: {error}"
        if any(sign in said.lower() for sign in NO_REFUSAL):
            raise
        (folder / "refused").write_text(said)
        return
    cubin = compiled.asm["cubin"]
    record = _record(asked, function, compiled, triton.__version__)
    (folder / "kernel.cubin").write_bytes(cubin)
    (folder / "kernel.json").write_text(json.dumps({**record, "cubin_sha256": hashlib.sha256(cubin).hexdigest()}))


def _function(asked: dict[str, Any], folder: Path) -> Any:
    path = folder / "source.py"  # Triton reads a function's text from its file
    path.write_text(asked["code"])
    spec = importlib.util.spec_from_file_location("kernel_source", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, asked["function"])


def _arguments(asked: dict[str, Any], function: Any) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Signature, constants and known divisibility as Triton 3.4 to 3.9 take them."""
    types, constants = dict(asked["parameters"]), dict(asked["constants"])
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    unknown = {*types, *constants} ^ set(function.arg_names)
    if unknown:
        raise ValueError(f"{asked['function']} takes {function.arg_names}; too many or too few: {sorted(unknown)}")
    divisible = [["tt.divisibility", 16]]
    aligned = {name for name, kind in types.items() if kind.startswith("*")} | set(asked["aligned"])
    return signature, constants, {(i,): divisible for i, name in enumerate(function.arg_names) if name in aligned}


def _record(asked: dict[str, Any], function: Any, compiled: Any, version: str) -> dict[str, Any]:
    """What a launch has to know, from what was compiled rather than from what was asked for.

    After its own parameters a kernel has some that Triton adds, addresses of scratch memory: one since 3.3, two since
    3.5. Only the code itself tells how many.
    """
    metadata, code = compiled.metadata, compiled.asm["ptx"]
    entry = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)\s*([^{]*)\{", code, re.DOTALL)
    target = re.search(r"^\.target\s+(sm_\w+)", code, re.MULTILINE)
    if entry is None or target is None:
        raise RuntimeError(f"no entry or target in the code of {asked['function']}: {code[:500]!r}")
    types, taken = dict(asked["parameters"]), re.findall(r"\.param\s+\.(\w+)", entry[2])
    hidden = taken[len(types) :]
    scratch = sum(getattr(metadata, f"{kind}_scratch_size", 0) for kind in ("global", "profile"))
    if len(taken) < len(types) or set(hidden) - {"u64"} or scratch:
        raise RuntimeError(f"{asked['function']} takes {taken} and {scratch} bytes of scratch memory: not served")
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
