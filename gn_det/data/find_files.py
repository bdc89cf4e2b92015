"""Find image files whose names other systems write in another way."""

import functools
import os
import unicodedata
from pathlib import Path

_Listing = dict[str, str | None]


class FileFinder:
    """Finds the files of an image folder.

    Args:
        root: the folder.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self._root = str(root)
        self._list = functools.cache(_list_folder)

    def has(self, name: str) -> bool:
        """Return whether a file has exactly this name, a path below the folder."""
        return is_below(name) and os.path.isfile(os.path.join(self._root, name))

    def same_path(self, name: str) -> str | None:
        r"""Return the name of the file that this path means on another system; None if there is none.

        Separators may be ``\``; letters may be in another case, or in another Unicode form.
        """
        return self._find(_parts(name)) if is_below(name.replace("\\", "/")) else None

    def same_end(self, name: str) -> str | None:
        """Return the name of the file that has the last parts of this path, as many as possible; None if there is none."""
        parts = _parts(name.rpartition("?d=")[2])
        suffixes = (parts[start:] for start in range(len(parts)))
        return next((found for suffix in suffixes if (found := self._find(suffix))), None)

    def _find(self, parts: list[str]) -> str | None:
        name = ""
        for part in parts:
            if part == "..":
                return None
            found = self._list(os.path.join(self._root, name)).get(_fold(part))
            if found is None:
                return None
            name = os.path.join(name, found)
        return name if name and os.path.isfile(os.path.join(self._root, name)) else None


def is_below(name: str) -> bool:
    """Return whether a name is a relative path without ``..``."""
    return bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts and "://" not in name


def _parts(name: str) -> list[str]:
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _list_folder(folder: str) -> _Listing:
    """Return {folded name: name} of a folder; the name is None where two names are folded to the same."""
    listing: _Listing = {}
    try:
        for name in os.listdir(folder):
            listing[_fold(name)] = None if _fold(name) in listing else name
    except OSError:
        pass
    return listing
