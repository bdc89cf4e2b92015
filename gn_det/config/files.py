"""Find a config, load it with its overrides, and explain what is wrong in it."""

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from ..errors import GNDetError, did_you_mean
from .defaults import get_cfg


def config_dir() -> Path:
    """The folder of the shipped configs: in the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def shipped_configs() -> dict[str, Path]:
    """Name -> file of each shipped config, those in sub-folders among them."""
    return {path.stem: path for path in sorted(config_dir().rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """The file of a config: a path, or the name of a shipped one (``mask_rcnn_R50_FPN_gn``).

    Raises:
        GNDetError: there is no such file.
    """
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return path
    known = shipped_configs()
    shipped = known.get(path.stem)
    if shipped and path.parent.name in ("", "configs", shipped.parent.name):
        return shipped
    near = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the shipped ones lie in {config_dir()}."
    raise GNDetError(f"There is no config {name}; {hint}")


def load_config(name: str, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a file (or shipped name) with ``KEY VALUE`` overrides.

    Raises:
        GNDetError: no such file, not YAML, unknown key (with the nearest known one), or a value of the wrong type.
    """
    cfg = get_cfg()
    path = find_config(name)
    with _as_sentence(cfg, str(path)):
        # detectron2's default would run the Python tags of a YAML file.
        cfg.merge_from_file(str(path), allow_unsafe=False)
    if len(opts) % 2:
        raise GNDetError(f"The overrides on the command line are KEY VALUE pairs, but {opts[-1]!r} stands alone.")
    _check_keys(cfg, opts[::2])
    with _as_sentence(cfg, "the command line"):
        cfg.merge_from_list(list(opts))
    # A config.yaml that a run has left in its OUTPUT_DIR says which one it was.
    cfg.MODEL.GN.CONFIG = cfg.MODEL.GN.CONFIG or path.stem
    return cfg


def parse_config(text: str, where: str) -> CfgNode:
    """The config in a YAML text, with no tag and no ``_BASE_`` of it followed; ``where`` names it in errors.

    Raises:
        GNDetError: as :func:`load_config`.
    """
    cfg = get_cfg()
    with _as_sentence(cfg, where):
        cfg.merge_from_other_cfg(CfgNode.load_cfg(text))
    return cfg


@contextlib.contextmanager
def _as_sentence(cfg: CfgNode, where: str) -> Iterator[None]:
    """Turn what yacs, yaml and fvcore raise while they merge into one sentence."""
    try:
        yield
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise GNDetError(f"{where}{line} is not a plain YAML config: {problem}.") from None
    except FileNotFoundError as error:
        raise GNDetError(f"{where}: its _BASE_ {error.filename} is not there.") from None
    except OSError as error:
        raise GNDetError(f"{where}: its _BASE_ {error.filename} cannot be read ({error.strerror}).") from None
    except RecursionError:
        raise GNDetError(f"{where}: its _BASE_ leads back to itself.") from None
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError) as error:
        raise GNDetError(f"{where}: {_explain(cfg, str(error).strip(chr(34) + chr(39)))}") from None


def _explain(cfg: CfgNode, message: str) -> str:
    if key := re.search(r"Non-existent (?:config )?key: (\S+)", message):
        return _unknown_key(cfg, key[1].strip("'\""))
    types = (
        r"Type mismatch \(<class '([\w.]+)'> vs. <class '([\w.]+)'>\) with values \(.* vs. (.*)\) for config key: (\S+)"
    )
    if m := re.search(types, message, re.DOTALL):
        want, got, value, name = m.groups()
        if want.endswith("CfgNode"):
            return f"{name} is a section with keys of its own, and takes no value."
        if got.endswith("CfgNode"):
            return f"{name} takes a value of type {want}, and has no keys of its own."
        hint = f" (write {value}.0)" if (want, got) == ("float", "int") else ""
        return f"{name} takes a value of type {want}, not the {got} {value}{hint}."
    if "is not iterable" in message or "has no attribute" in message:
        return "holds no config (it is empty, or not KEY: VALUE lines)."
    return message.splitlines()[0] if message else "is not a config."


def _check_keys(cfg: CfgNode, keys: Sequence[str]) -> None:
    """Unknown keys of the command line, also those below a value, on which yacs stumbles."""
    for key in keys:
        node: object = cfg
        for part in key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                raise GNDetError(f"the command line: {_unknown_key(cfg, key)}")
            node = node[part]


def _unknown_key(cfg: CfgNode, name: str) -> str:
    if name.startswith("-"):
        return f"the option {name} must stand before the KEY VALUE pairs."
    return f"there is no config key {name}{did_you_mean(name, _all_keys(cfg))}."


def _all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    """All dotted keys, sections among them."""
    keys: list[str] = []
    for name, value in node.items():
        keys += [prefix + name] + (_all_keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [])
    return keys
