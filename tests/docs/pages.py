"""The Markdown files that users and contributors read, and the blocks of code in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """The texts of a page's blocks in one language."""
    return [text for name, text in _BLOCK.findall(page.read_text()) if name == language]


def prose(page):
    """The text of a page without its blocks of code."""
    return _BLOCK.sub("", page.read_text())


def shell_commands(page):
    """The commands of a page, without comments."""
    lines = [line.partition("  #")[0].strip() for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line]
