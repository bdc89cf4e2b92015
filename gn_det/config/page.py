"""Make docs/config_keys.md: tables of all config keys that gn_det adds (run by ``make pages``)."""

from .defaults import KEYS, Key

_HEAD = """# Config keys

<!-- Written by `make pages` from gn_det/config/defaults.py. -->
These are all the keys that gn_det adds to detectron2's
([its own](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references)). Set them in a config
file, or as `KEY VALUE` pairs at the end of a command. An invalid value is refused with an error before anything runs.

The last column tells whether a key is part of the recipe, by which [result records](records.md) are compared: *always*; *if
changed*, only where it is not the default; or *never*, because it changes how a result is computed and not what is computed.
"""
_SECTIONS = {
    "MODEL.GN": "Norms and weights",
    "TRAIN": "Training",
    "GPU": "GPUs",
    "INFERENCE": "Inference",
    "TEST": "Evaluation",
}


def keys_page() -> str:
    """Return the page: one table per section of the config, one row per key."""
    tables = []
    for section, title in _SECTIONS.items():
        rows = [_row(key) for key in KEYS if key.name.startswith(f"{section}.")]
        tables.append(
            "\n".join([f"## {title}\n", "| key | default | meaning | recipe |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join([_HEAD, *tables])


def _row(key: Key) -> str:
    return f"| `{key.name}` | `{key.default!r}` | {key.text} | {key.recipe} |"


if __name__ == "__main__":
    print(keys_page(), end="")
