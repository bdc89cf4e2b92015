"""Find and load config files with overrides, and turn errors in them into one plain sentence."""

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..errors import GNDetError, did_you_mean
from .defaults import get_cfg
from .yaml_files import NOT_A_CONFIG, parse_yaml, read_config_file


def config_dir() -> Path:
    """Return the folder of the shipped configs: in the installed package, or next to it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def shipped_configs() -> dict[str, Path]:
    """Return the file of each shipped config by its name, including the configs in sub-folders."""
    return {path.stem: path for path in sorted(config_dir().rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """Return the path of a config file, given its path or the name of a shipped config.

    Args:
        name: path of a file, or name of a shipped config (``mask_rcnn_R50_FPN_gn``).

    Raises:
        GNDetError: if no such file or shipped config exists.
    """
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return path
    known = shipped_configs()
    shipped = known.get(path.stem)
    if shipped and path.parent.name in ("", "configs", shipped.parent.name):
        return shipped
    near = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the shipped configs are in {config_dir()}."
    raise GNDetError(f"There is no config {name}; {hint}")


class _LocalConfig(CfgNode):
    """detectron2's config, which merges local files only, read by :func:`read_config_file`."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        return read_config_file(filename)


def load_config(name: str, opts: Sequence[str] = ()) -> CfgNode:
    """Load a config file and apply overrides.

    Args:
        name: path of a file, or name of a shipped config.
        opts: overrides, alternately a key and its value: ``["SOLVER.BASE_LR", "0.01"]``.

    Raises:
        GNDetError: if the file does not exist or is not YAML, a key is unknown (the sentence names
            the nearest known key) or stands twice, a value has the wrong type, or a ``_BASE_`` or
            ``OUTPUT_DIR`` is not local.
    """
    cfg = _LocalConfig(get_cfg())
    path = find_config(name)
    with _errors_as_sentences(cfg, str(path)):
        cfg.merge_from_file(str(path))
    cfg = CfgNode(cfg)
    if len(opts) % 2:
        raise GNDetError(f"The overrides on the command line are KEY VALUE pairs, but {opts[-1]!r} has no value.")
    _check_keys_exist(cfg, opts[::2])
    with _errors_as_sentences(cfg, "the command line"):
        cfg.merge_from_list(list(opts))
    if "://" in cfg.OUTPUT_DIR:
        raise GNDetError(f"OUTPUT_DIR is {cfg.OUTPUT_DIR}, but must be a local folder.")
    # The config.yaml in the OUTPUT_DIR of a run already names the config that was trained.
    cfg.MODEL.GN.CONFIG = cfg.MODEL.GN.CONFIG or path.stem
    return cfg


def parse_config(text: str, where: str) -> CfgNode:
    """Parse a config from YAML text. Python tags and ``_BASE_`` are refused.

    Args:
        text: YAML text.
        where: how error sentences name the text.

    Raises:
        GNDetError: as for :func:`load_config`.
    """
    cfg, content = get_cfg(), parse_yaml(text, where)
    if not isinstance(content, dict):
        raise GNDetError(f"{where}: {NOT_A_CONFIG}")
    with _errors_as_sentences(cfg, where):
        cfg.merge_from_other_cfg(CfgNode(content))
    return cfg


@contextlib.contextmanager
def _errors_as_sentences(cfg: CfgNode, where: str) -> Iterator[None]:
    """Turn the errors that yacs and fvcore raise while merging into a GNDetError of one sentence.

    Args:
        cfg: config that is merged into; its keys are the known ones.
        where: file or other source of the merged config, for the sentence.
    """
    try:
        yield
    except GNDetError:
        raise
    except (RecursionError, MemoryError):
        raise GNDetError(f"{where}: a value is nested too deeply.") from None
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError) as error:
        raise GNDetError(f"{where}: {_explain(cfg, str(error).strip(chr(34) + chr(39)))}") from None


def _explain(cfg: CfgNode, message: str) -> str:
    """Return a plain clause for an error message of yacs or fvcore."""
    if key := re.search(r"Non-existent (?:config )?key: (\S+)", message):
        return _unknown_key(cfg, key[1].strip("'\""))
    types = (
        r"Type mismatch \(<class '([\w.]+)'> vs. <class '([\w.]+)'>\) with values \(.* vs. (.*)\) for config key: (\S+)"
    )
    if m := re.search(types, message, re.DOTALL):
        expected, actual, value, name = m.groups()
        if expected.endswith("CfgNode"):
            return f"{name} is a section that contains keys, so it takes no value."
        if actual.endswith("CfgNode"):
            return f"{name} takes a value of type {expected}, and contains no keys."
        hint = f" (write {value}.0)" if (expected, actual) == ("float", "int") else ""
        return f"{name} takes a value of type {expected}, not the {actual} {value}{hint}."
    if "is not iterable" in message or "has no attribute" in message:
        return NOT_A_CONFIG
    return message.splitlines()[0] if message else "this is not a config."


def _check_keys_exist(cfg: CfgNode, keys: Sequence[str]) -> None:
    """Raise GNDetError for an unknown key of the command line.

    yacs would raise a misleading error for a key below a value (``SOLVER.BASE_LR.X``).
    """
    for key in keys:
        node: object = cfg
        for part in key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                raise GNDetError(f"the command line: {_unknown_key(cfg, key)}")
            node = node[part]


def _unknown_key(cfg: CfgNode, name: str) -> str:
    if name.startswith("-"):
        return f"the option {name} must come before the KEY VALUE pairs."
    return f"there is no config key {name}{did_you_mean(name, _all_keys(cfg))}."


def _all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    """Return all dotted keys, including the sections."""
    keys: list[str] = []
    for name, value in node.items():
        keys += [prefix + name] + (_all_keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [])
    return keys
