"""Documents of a YAML file, and the line of everything in them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from npmerge.recipe.settings import Path


@dataclass(frozen=True)
class Document:
    """One document of a recipe file, to say where in it something stands.

    Attributes:
        file: its name.
        node: its syntax tree; None for what was made in memory.
    """

    file: str = "recipe"
    node: yaml.Node | None = field(default=None, repr=False, compare=False)

    def error(self, path: Path, message: str) -> ValueError:
        """The error of that message, after the file, the line and the keys down to what it is about."""
        line = "" if self.node is None else f":{_line(self.node, path)}"
        keys = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
        return ValueError(f"{self.file}{line}: {keys + ': ' if keys else ''}{message}")


def read_documents(text: str, file: str) -> Iterator[tuple[Document, Any]]:
    """The documents that are not empty, each with its content as Python's dicts, lists and scalars.

    Raises:
        ValueError: text that is no YAML, or a key that stands twice in one mapping (file and line).
    """
    for node in _nodes(text, file):
        document = Document(file, node)
        _check_keys(document, node, set())
        content = _content(node, document)
        if content is not None:
            yield document, content


def _nodes(text: str, file: str) -> list[yaml.Node]:
    try:
        return list(yaml.compose_all(text, yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{file}{line}: no valid YAML: {_said(error)}") from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"{file}: no valid YAML: {error.reason} at character {error.position}") from None
    except RecursionError:
        raise ValueError(f"{file}: no valid YAML: nested too deeply") from None


def _said(error: yaml.MarkedYAMLError) -> str:
    """What is wrong, in the words of those who write YAML where the parser speaks of its own symbols."""
    problem = error.problem or error.context or "it cannot be read"
    if "<block end>" in problem:
        since = f" than what began in line {error.context_mark.line + 1}" if error.context_mark else ""
        return f"this line is indented otherwise{since}"
    if "mapping values are not allowed" in problem:
        return "a second ': ' in one line, or a line that is indented more than the one before it"
    return problem


def _content(node: yaml.Node, document: Document) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or node.start_mark
        raise ValueError(f"{document.file}:{mark.line + 1}: no valid YAML: {error.problem}") from None
    except (ValueError, OverflowError, RecursionError) as error:  # dates that do not exist, integers of thousands of digits
        raise ValueError(f"{document.file}: no valid YAML: {error}") from None
    finally:
        loader.dispose()


def _line(node: yaml.Node, path: Path) -> int:
    """Of the value at the path, of its key if it is one of a mapping, or of the last thing on the way that there is."""
    line = node.start_mark.line
    for key in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line
        elif isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(key)]
            if not found:
                break
            line, node = found[-1][0].start_mark.line, found[-1][1]
        else:
            break
    return line + 1


def _check_keys(document: Document, node: yaml.Node | None, seen: set[int]) -> None:
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _check_keys(document, child, seen)
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        name = key.value if isinstance(key, yaml.ScalarNode) else str(key)
        if name in lines:
            raise ValueError(f"{document.file}:{line}: the key {name!r} stands twice, first in line {lines[name]}")
        lines[name] = line
        _check_keys(document, value, seen)
