"""A YAML file as plain data with the line of each value."""

import re
from dataclasses import dataclass
from typing import Protocol

import yaml

from autotune.errors import StudyFileError

LARGEST_BYTES = 256 * 1024
DEEPEST = 16
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,400}|[0-9]{1,400}(\.[0-9]{0,400})?)([eE][-+]?[0-9]{1,4})?")
Place = tuple[str | int, ...]
"""The place of a value: keys and positions from the top of the document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlDocument:
    """The top-level mapping, sequences as tuples, and the line (from 1) of every key and item."""

    data: dict[str, object]
    lines: dict[Place, int]

    def line_of(self, place: Place) -> int:
        """Return the line of a value or, if it is not in the file, of the nearest value around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_yaml(text: str, subject: str) -> YamlDocument:
    """Read one mapping; StudyFileError (which begins with ``subject``) names the line of a part that is no plain data.

    Scalars follow YAML 1.2's core schema: ``1e-3`` is a number, and ``on``, ``no`` and ``1:30`` are texts. Tags,
    anchors, aliases and repeated keys are refused.
    """
    if len(text.encode(errors="surrogatepass")) > LARGEST_BYTES:
        raise StudyFileError(subject, found="a file that is too large", expected=f"at most {LARGEST_BYTES // 1024} KiB")
    try:
        root = _Composer(text, subject).get_single_node()
    except yaml.reader.ReaderError as error:
        raise StudyFileError(subject, found=f"{error.reason} at position {error.position}", expected="text") from error
    except (ValueError, OverflowError) as error:  # an escape such as "\\UFFFFFFFF" that names no character
        raise StudyFileError(subject, found=str(error), expected="valid YAML") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise _refused(subject, mark, problem, "valid YAML") from error
    if not isinstance(root, yaml.MappingNode):
        actual = "nothing" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise _refused(subject, root.start_mark if root else None, actual, "keys with values, such as 'name: resnet50'")
    lines: dict[Place, int] = {}
    return YamlDocument(data=_mapping(root, (), lines, subject), lines=lines)


class _Mark(Protocol):
    """A position in the text; PyYAML has two classes of them, in Python and in C."""

    line: int
    """The line, from 0."""


class _Composer(yaml.SafeLoader):
    """PyYAML's composer; it refuses aliases, tags and deep nesting early, before they can make the data grow."""

    def __init__(self, text: str, subject: str) -> None:
        super().__init__(text)
        self._subject, self._depth = subject, 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused(self._subject, event.start_mark, "an anchor or alias (& or *)", "the value written out")
        if tag := getattr(event, "tag", None):
            raise _refused(self._subject, event.start_mark, f"the tag {tag!r}", "a plain value")
        if self._depth >= DEEPEST:
            raise _refused(self._subject, event.start_mark, "values nested too deep", f"at most {DEEPEST} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _refused(subject: str, mark: _Mark | None, actual: str, expected: str) -> StudyFileError:
    place = f"{subject}, line {mark.line + 1}" if mark is not None else subject
    return StudyFileError(place, found=actual, expected=expected)


def _mapping(node: yaml.MappingNode, place: Place, lines: dict[Place, int], subject: str) -> dict[str, object]:
    data: dict[str, object] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _refused(subject, key_node.start_mark, "a list or mapping as a key", "a name as key")
        key = key_node.value
        if key in data:
            raise _refused(subject, key_node.start_mark, f"the key {key!r} a second time", "each key once")
        lines[(*place, key)] = key_node.start_mark.line + 1
        data[key] = _value(value_node, (*place, key), lines, subject)
    return data


def _value(node: yaml.Node, place: Place, lines: dict[Place, int], subject: str) -> object:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, lines, subject)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*place, index)] = item.start_mark.line + 1
        return tuple(_value(item, (*place, index), lines, subject) for index, item in enumerate(node.value))
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    return _scalar(node.value) if plain else node.value


def _scalar(text: str) -> str | int | float | bool | None:
    """Read a plain scalar; it is text if it is neither a number, a truth value nor null."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
