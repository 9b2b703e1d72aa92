"""The changelog has an entry for this version, and names all that is deprecated."""

import re

import autotune
from autotune.renamed import NEW_NAMES
from tests.docs.pages import CHANGELOG

KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def sections():
    """The text of each version, by its heading."""
    parts = re.split(r"^## \[(.+?)\](.*)$", CHANGELOG.read_text(), flags=re.MULTILINE)[1:]
    return {name: (date, text) for name, date, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def test_versions_stand_from_the_newest_to_the_oldest_each_with_its_date():
    versions = sections()
    assert next(iter(versions)) == "Unreleased"
    released = list(versions)[1:]
    assert released[0] == autotune.__version__
    assert released == sorted(released, key=lambda name: tuple(map(int, name.split("."))), reverse=True)
    assert all(re.fullmatch(r" – \d{4}-\d{2}-\d{2}", versions[name][0]) for name in released)


def test_changes_are_of_the_usual_kinds():
    for name, (_, text) in sections().items():
        kinds = re.findall(r"^### (.+)$", text, re.MULTILINE)
        assert kinds == [kind for kind in KINDS if kind in kinds], name


def test_every_module_that_was_renamed_is_listed_as_deprecated():
    text = sections()["0.2.0"][1].split("### Deprecated", 1)[1].split("###", 1)[0]
    missing = [name for name in [*NEW_NAMES, *NEW_NAMES.values()] if f"`{name}`" not in text]
    # Eight names are listed together with the folder that they moved to, and three programs likewise.
    assert all(name.startswith(("autotune.records.", "autotune.programs.")) for name in missing)
    assert not set(NEW_NAMES) & set(missing)
