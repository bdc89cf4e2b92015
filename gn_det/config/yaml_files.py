"""Read YAML that may come from a stranger: config files with their ``_BASE_`` files, and configs in checkpoints.

Files are local. What small text could use to take all memory is bounded: aliases, nesting and the number
of ``_BASE_`` files. detectron2's own reader is not used, because it downloads a ``_BASE_`` that is a URL.
"""

import os
from typing import Any

import yaml

from ..errors import GNDetError

NOT_A_CONFIG = "this is not a config; a config consists of KEY: VALUE lines."  # end of an error sentence

_BASE = "_BASE_"
_MAX_CHARACTERS = 2**18  # per file; the full config of a run has about 2**13
_MAX_VALUES = 20_000  # with aliases expanded; the full config of a run has about 1,000, and aliases too
_MAX_DEPTH = 30
_MAX_FILES = 50  # a config and all its _BASE_ files


def parse_yaml(text: str, where: str) -> Any:
    """Return the content of YAML text. Python tags are refused.

    Args:
        text: YAML text of one document.
        where: how error sentences name the text.

    Raises:
        GNDetError: the text is not plain YAML, is too large or nested too deeply, or has a key twice in
            one mapping.
    """
    if len(text) > _MAX_CHARACTERS:
        raise GNDetError(f"{where} has more than {_MAX_CHARACTERS} characters, which is too much for a config.")
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _Measure(where).measure(root)
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise GNDetError(f"{where}{line} is not a plain YAML config: {problem}.") from None
    except GNDetError:
        raise
    except (ValueError, OverflowError) as error:  # a date or a number that Python does not have
        raise GNDetError(f"{where} is not a plain YAML config: {error}.") from None
    except RecursionError:
        raise _too_deep(where) from None


class _Measure:
    """Measure YAML nodes without expanding their aliases, and refuse what is too large."""

    def __init__(self, where: str):
        self._where = where
        self._known: dict[int, tuple[int, int]] = {}  # (values, depth) by the id of the node; (0, 0) while measured

    def measure(self, node: yaml.Node) -> tuple[int, int]:
        """Return the number of values in a node, including itself, and its depth; both with aliases expanded."""
        if isinstance(node, yaml.ScalarNode):
            return 1, 1
        if id(node) in self._known:
            if self._known[id(node)] == (0, 0):
                raise GNDetError(f"{self._at(node)} is not a plain YAML config: an alias contains itself.")
            return self._known[id(node)]
        self._known[id(node)] = 0, 0
        children: list[yaml.Node] = node.value
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            children = [child for pair in node.value for child in pair]
        sizes = [self.measure(child) for child in children]
        values, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
        if values > _MAX_VALUES:
            raise GNDetError(f"{self._at(node)} has more than {_MAX_VALUES} values, which is too much for a config.")
        if depth > _MAX_DEPTH:
            raise _too_deep(self._where)
        self._known[id(node)] = values, depth
        return values, depth

    def _check_keys(self, node: yaml.MappingNode) -> None:
        """Refuse a mapping that has a key twice, of which PyYAML would take the last value."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise GNDetError(f"{self._at(key)} has the key {key.value} twice: remove one of the two.")
                seen.add((key.tag, key.value))

    def _at(self, node: yaml.Node) -> str:
        return f"{self._where}, line {node.start_mark.line + 1}"


def _too_deep(where: str) -> GNDetError:
    return GNDetError(f"{where} is not a config: its values are nested too deeply.")


def read_config_file(path: str) -> dict[str, Any]:
    """Return the content of a config file, merged over that of its ``_BASE_`` files.

    Args:
        path: a local file. A ``_BASE_`` in it is a path relative to its folder, or a list of such paths,
            of which the later ones take precedence.

    Raises:
        GNDetError: as for :func:`parse_yaml`; or a file does not exist, is not a mapping, or is its own
            ``_BASE_``.
    """
    return _read(path, (), [])


def _read(path: str, above: tuple[str, ...], opened: list[str]) -> dict[str, Any]:
    """Read a file with its bases.

    Args:
        above: real paths of the files that led to this one through ``_BASE_``.
        opened: all files that were read so far; extended here.
    """
    real = os.path.realpath(path)
    if real in above:
        raise GNDetError(f"{path}: its _BASE_ files form a cycle.")
    if len(opened) == _MAX_FILES:
        raise GNDetError(f"{path}: the config has more than {_MAX_FILES} _BASE_ files.")
    opened.append(path)
    content = parse_yaml(_text_of(path), path)
    if not isinstance(content, dict):
        raise GNDetError(f"{path}: {NOT_A_CONFIG}")
    merged: dict[str, Any] = {}
    for base in _bases(content.pop(_BASE, []), path):
        _merge(_read(base, (*above, real), opened), merged, path)
    _merge(content, merged, path)
    return merged


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(_MAX_CHARACTERS + 1)
    except OSError as error:
        raise GNDetError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise GNDetError(f"{path} is not a plain YAML config: it is not text in UTF-8.") from None


def _bases(value: object, path: str) -> list[str]:
    """Return the paths of the files that a ``_BASE_`` names.

    Raises:
        GNDetError: one of them is not a local file.
    """
    names = value if isinstance(value, list) else [value]
    bases = []
    for name in names:
        if not isinstance(name, str) or not name:
            raise GNDetError(f"{path}: its _BASE_ is {name!r}, which is not the path of a file.")
        if "://" in name:
            raise GNDetError(
                f"{path}: its _BASE_ is the URL {name}, but configs are read from local files only: download the file, "
                "and write its path into _BASE_."
            )
        base = os.path.join(os.path.dirname(path), os.path.expanduser(name))
        if not os.path.exists(base):
            raise GNDetError(f"{path}: its _BASE_ {base} does not exist.")
        if not os.path.isfile(base):  # a device may have no end
            raise GNDetError(f"{path}: its _BASE_ {base} is not a file.")
        bases.append(base)
    return bases


def _merge(new: dict[str, Any], into: dict[str, Any], path: str) -> None:
    """Merge a mapping into another one. Its values take precedence."""
    for key, value in new.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise GNDetError(f"{path}: {key} is a section, but a value in its _BASE_.")
            _merge(value, into[key], path)
        else:
            into[key] = value
