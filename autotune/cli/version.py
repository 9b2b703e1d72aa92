"""The text of ``autotune --version``."""

import subprocess
from pathlib import Path

from autotune import __version__

GIT_TIMEOUT_S = 10.0


def version_text(checkout: Path) -> str:
    """Return the version and, if ``checkout`` is a git checkout, its commit, such as ``0.2.0 (329dced+dirty)``."""
    commit = _commit(checkout)
    return f"{__version__} ({commit})" if commit else __version__


def _commit(checkout: Path) -> str:
    """Return the short hash of the commit, with ``+dirty`` if a tracked file has changed; empty if there is none."""
    if not (checkout / ".git").exists():  # git would also look in the folders above, which belong to something else
        return ""
    command = ["git", "--no-optional-locks", "describe", "--always", "--exclude=*", "--dirty=+dirty"]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
