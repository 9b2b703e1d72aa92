"""A YAML file as plain data that remembers on which line each value stands."""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from autotune.errors import StudyFileError

LARGEST_BYTES = 256 * 1024
DEEPEST = 16
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,400}|[0-9]{1,400}(\.[0-9]{0,400})?)([eE][-+]?[0-9]{1,4})?")
Place = tuple[str | int, ...]
"""Where a value stands: keys and positions from the top of the document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlDocument:
    """The top-level mapping, sequences as tuples, and the line (from 1) of every key and item."""

    data: dict[str, Any]
    lines: dict[Place, int]

    def line_of(self, place: Place) -> int:
        """Return the line of a value, or of the nearest thing around it that is in the file."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_yaml(text: str, asked: str) -> YamlDocument:
    """Read one mapping; StudyFileError (beginning with ``asked``) names the line of whatever is not plain data.

    Scalars follow YAML 1.2's core schema: ``1e-3`` is a number, and ``on``, ``no`` and ``1:30`` are texts. Tags,
    anchors, aliases and repeated keys are refused.
    """
    if len(text.encode(errors="surrogatepass")) > LARGEST_BYTES:
        raise StudyFileError(asked, found="a file that is too large", expected=f"at most {LARGEST_BYTES // 1024} KiB")
    try:
        root = _Composer(text, asked).get_single_node()
    except yaml.reader.ReaderError as error:
        raise StudyFileError(asked, found=f"{error.reason} at position {error.position}", expected="text") from error
    except (ValueError, OverflowError) as error:  # an escape such as "\\UFFFFFFFF" that names no character
        raise StudyFileError(asked, found=str(error), expected="valid YAML") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        found = " ".join(part for part in (error.context, error.problem) if part)
        raise _refused(asked, mark, found, "valid YAML") from error
    if not isinstance(root, yaml.MappingNode):
        found = "nothing" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise _refused(asked, root.start_mark if root else None, found, "keys with values, such as 'name: resnet50'")
    lines: dict[Place, int] = {}
    return YamlDocument(data=_mapping(root, (), lines, asked), lines=lines)


class _Composer(yaml.SafeLoader):
    """PyYAML's composer, which refuses what a study file never needs, before it can grow."""

    def __init__(self, text: str, asked: str) -> None:
        super().__init__(text)
        self._asked, self._depth = asked, 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused(self._asked, event.start_mark, "an anchor or alias (& or *)", "the value written out")
        if getattr(event, "tag", None):
            raise _refused(self._asked, event.start_mark, f"the tag {event.tag!r}", "a plain value")
        if self._depth >= DEEPEST:
            raise _refused(self._asked, event.start_mark, "values nested too deep", f"at most {DEEPEST} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _refused(asked: str, mark: Any, found: str, expected: str) -> StudyFileError:
    where = f"{asked}, line {mark.line + 1}" if mark is not None else asked
    return StudyFileError(where, found=found, expected=expected)


def _mapping(node: yaml.MappingNode, place: Place, lines: dict[Place, int], asked: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _refused(asked, key_node.start_mark, "a list or mapping as a key", "a name as key")
        key = key_node.value
        if key in data:
            raise _refused(asked, key_node.start_mark, f"the key {key!r} a second time", "each key once")
        lines[(*place, key)] = key_node.start_mark.line + 1
        data[key] = _value(value_node, (*place, key), lines, asked)
    return data


def _value(node: yaml.Node, place: Place, lines: dict[Place, int], asked: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, lines, asked)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*place, index)] = item.start_mark.line + 1
        return tuple(_value(item, (*place, index), lines, asked) for index, item in enumerate(node.value))
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    return _scalar(node.value) if plain else node.value


def _scalar(text: str) -> str | int | float | bool | None:
    """Read a plain scalar; what is neither number, truth value nor null is text."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
