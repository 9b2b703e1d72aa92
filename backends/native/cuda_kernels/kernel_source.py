"""The source of one kernel of ours: a line that names a template of a header, with what the header includes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from autotune.backends.native.cuda_kernels.launch_arguments import ABI
from autotune.records.canonical import digest
from autotune.search_spaces.split_gemm import SplitBuild

HERE = Path(__file__).parent
STANDARD = "c++17"


@dataclass(frozen=True, kw_only=True)
class KernelSource:
    """A kernel of a build: ``macro`` of ``header`` with ``arguments``, launched by blocks of ``threads``.

    The compiler checks that ``threads`` and ``shared_bytes`` are those of the template.
    """

    build: SplitBuild
    header: str
    macro: str
    arguments: tuple[str, ...]
    threads: int
    shared_bytes: int

    @cached_property
    def key(self) -> str:
        """SHA-256 of all that decides the code and its launch: of the headers, only those that enter it."""
        return digest(
            {
                "abi": ABI, "architecture": self.build.architecture, "headers": headers_digest(self.header),
                "line": self._line("kernel"), "standard": STANDARD,
            }
        )  # fmt: skip

    @property
    def function(self) -> str:
        """The name of the kernel in its cubin."""
        return f"kernel_{self.key[:16]}"

    @property
    def text(self) -> str:
        """The unit that is compiled."""
        return f'#include "{self.header}"\n{self._line(self.function)}\n'

    def _line(self, name: str) -> str:
        return f"{self.macro}({', '.join((name, str(self.threads), str(self.shared_bytes), *self.arguments))})"


@cache
def headers_of(header: str) -> Mapping[str, str]:
    """Return the texts of a header of ours and of all that it includes, by name; files do not change meanwhile."""
    texts: dict[str, str] = {}
    waiting = [header]
    while waiting:
        name = waiting.pop()
        if name not in texts:
            texts[name] = (HERE / name).read_text()
            waiting += re.findall(r'^#include "([^"]+)"', texts[name], re.MULTILINE)
    return dict(sorted(texts.items()))


@cache
def headers_digest(header: str) -> str:
    """Return the digest of :func:`headers_of`."""
    return digest(headers_of(header))
