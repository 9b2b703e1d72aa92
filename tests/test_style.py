"""How the code reads, as far as that can be counted: names of values, ``Any``, and the English of docstrings."""

import ast
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

NO_NAMES = {"found", "told", "made", "taken", "asked", "known", "like", "one", "each"}
"""Words that stand in for the name of a value; a loop inside of an expression may use them."""
MOST_NO_NAMES = 0.005
"""The greatest share of them in all names that are assigned."""

MOST_ANY = 8.0
"""The most annotations in 1,000 lines that are ``Any``, or contain it, under its own name or an alias."""

MOST_WHERE, MOST_TELLS = 2.0, 0.5
"""The most docstring words in 1,000 lines: "where" is for places and not for conditions, and programs report."""

WHAT = re.compile(r"(?:^|[.:;]\s+|\n\s*\n\s*)(What\b[^.:?]*[.:?]?)")
"""The beginning of a sentence, up to its end."""


@dataclass
class Module:
    path: str
    lines: int
    tree: ast.Module
    any_names: set[str] = field(default_factory=lambda: {"Any"})

    def __post_init__(self):
        for node in self.tree.body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if self.has_any(value):
                    self.any_names.add(name)

    def has_any(self, annotation):
        """Report whether an annotation contains ``Any``, be it in quotes."""
        words = "|".join(self.any_names)
        return any(
            (isinstance(node, ast.Name) and node.id in self.any_names)
            or (isinstance(node, ast.Constant) and re.search(rf"\b({words})\b", str(node.value)))
            for node in ast.walk(annotation)
        )

    def annotations(self):
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
                yield node.returns
            elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
                yield node.annotation

    def assigned(self):
        """Every name that is assigned in a statement."""
        inside = {
            id(name)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp)
            for generator in node.generators
            for name in ast.walk(generator.target)
        }
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in inside:
                yield node.id

    def docstrings(self):
        """Every string that stands alone, so those of variables as well."""
        for node in ast.walk(self.tree):
            match node:
                case ast.Expr(value=ast.Constant(value=str() as text)):
                    yield node.lineno, text


@pytest.fixture(scope="module")
def modules():
    found = []
    for top in ("autotune", "backends", "search_spaces"):
        for path in sorted((ROOT / top).rglob("*.py")):
            inside = path.relative_to(ROOT)
            if inside.parts[:2] not in (("autotune", "backends"), ("autotune", "search_spaces")):  # of a checkout
                text = path.read_text()
                found.append(Module(str(inside), text.count("\n"), ast.parse(text)))
    assert len(found) > 300
    return found


def worst(counts):
    """Name the modules with the highest counts."""
    return "\n".join(f"{count:4d}  {path}" for path, count in Counter(counts).most_common(15) if count)


def check_rate(modules, counts, most):
    lines = sum(module.lines for module in modules)
    rate = 1000 * sum(counts.values()) / lines
    assert rate <= most, f"{rate:.1f} in 1,000 lines, at most {most}:\n{worst(counts)}"


def test_values_have_names_of_their_own(modules):
    names = {module.path: list(module.assigned()) for module in modules}
    counts = {path: sum(name in NO_NAMES for name in assigned) for path, assigned in names.items()}
    share = sum(counts.values()) / sum(map(len, names.values()))
    assert share <= MOST_NO_NAMES, f"{share:.1%} of the names, at most {MOST_NO_NAMES:.1%}:\n{worst(counts)}"


def test_no_two_classes_share_a_name(modules):
    paths = {}
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                paths.setdefault(node.name, []).append(module.path)
    assert not {name: shared for name, shared in paths.items() if len(shared) > 1}


def test_few_annotations_are_any(modules):
    check_rate(modules, {module.path: sum(map(module.has_any, module.annotations())) for module in modules}, MOST_ANY)


def test_no_sentence_has_a_clause_with_what_for_its_subject(modules):
    sentences = [
        f"{module.path}:{line}: {sentence}"
        for module in modules
        for line, text in module.docstrings()
        for sentence in WHAT.findall(text)
        if not sentence.endswith("?")
    ]
    assert not sentences, f"{len(sentences)} sentences:\n" + "\n".join(sentences)


@pytest.mark.parametrize(("words", "most"), [("where", MOST_WHERE), ("tells?|told", MOST_TELLS)])
def test_a_condition_opens_with_if_and_programs_report(modules, words, most):
    counts = {
        module.path: sum(len(re.findall(rf"\b(?:{words})\b", text)) for _, text in module.docstrings())
        for module in modules
    }
    check_rate(modules, counts, most)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What a build costs.", ["What a build costs."]),
        ("Builds one. What fails is kept.", ["What fails is kept."]),
        ("Builds one.\n\n    What fails: nothing.", ["What fails:"]),
        ("Returns what it costs.", []),
        ("So what? Whatever it costs.", []),
    ],
)
def test_sentences_are_recognised(text, expected):
    assert WHAT.findall(text) == expected


def test_any_is_recognised_in_quotes_in_containers_and_under_an_alias():
    text = "Json = dict[str, Any]\ndef f(a: Any, b: 'list[Any]', c: Json, d: object, e: Anyone) -> int: ..."
    module = Module("x.py", 2, ast.parse(text))
    assert sum(map(module.has_any, module.annotations())) == 3
