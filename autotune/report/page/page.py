"""The page of a comparison as one HTML file without any reference to another: write_page."""

import base64
import contextlib
import gzip
import hashlib
import os
from importlib import import_module
from pathlib import Path

from autotune.comparison.comparison import DeviceComparison
from autotune.errors import RequestError, WorkError
from autotune.report.page.content import content_of
from autotune.report.page.plots import as_script

FOLDER = Path(__file__).parent
EXTRA = "pip install 'plotly>=6' 'jinja2>=3.1', or in a checkout: pip install -e '.[report]'"


def require_libraries() -> None:
    """Raise RequestError if a library that the page needs is not installed."""
    missing = []
    for name in ("jinja2", "plotly"):
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise RequestError(
            "the comparison was to become a page", found=f"no {' and no '.join(missing)}",
            expected="plotly and jinja2, which draw it", run=EXTRA,
        )  # fmt: skip


def write_page(comparison: DeviceComparison, path: Path) -> None:
    """Write the page of a comparison to a file, whole or not at all.

    Raises RequestError if plotly or jinja2 is not installed, and WorkError if the file cannot be written.
    """
    text = page(comparison)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise WorkError(
            f"the page was to be written to {path}", found=error.strerror or str(error),
            expected="a file in a folder that exists and can be written to",
        ) from error  # fmt: skip


def page(comparison: DeviceComparison) -> str:
    """Return the page of a comparison; RequestError if plotly or jinja2 is not installed."""
    require_libraries()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    drawing = get_plotlyjs()
    content = content_of(comparison)
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        content=content,
        policy=_policy(script, drawing),
        # Only these are not escaped: files of this package, and data in which no tag can open or close.
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        plots=Markup(as_script(content.plots)),
        drawing=Markup(_packed(drawing)) if content.plots else "",
    )


def _policy(*scripts: str) -> str:
    """Return a Content-Security-Policy under which these scripts run and no other, and nothing is loaded."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    # plotly writes its styles into the page, and an empty icon keeps a browser from a request for one.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _packed(script: str) -> str:
    """Return a script compressed, as text: 2.0 MB of plotly.js instead of 4.8, unpacked when the first plot is seen."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()
