"""Find file names of a dataset that lead out of its image folder."""

import functools
import os
from collections.abc import Iterable, Iterator, Sequence

from detectron2.data import MetadataCatalog

from ..errors import GNDetError

#: Environment variable: folders, separated as in $PATH, into which file names may lead.
ALLOWED_ROOTS = "GN_DET_IMAGE_ROOTS"


def names_outside(root: str | os.PathLike[str], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the file names that lead out of a folder: by ``..``, as an absolute path or URL, or by a symbolic link.

    The folder itself may be a link. Links in it may lead to other places in it, and into the folders of
    ``$GN_DET_IMAGE_ROOTS``. Each folder is listed once, and only links are resolved, so that large
    datasets are checked quickly.

    Args:
        root: the image folder.
        names: paths relative to it.

    Yields:
        the name, and the path that it leads to; the path is "" for a URL.
    """
    allowed = _allowed_folders(root)
    links_in = functools.cache(_links_in)
    is_folder_inside = functools.cache(functools.partial(_is_in_one_of, allowed))
    for name in names:
        if "://" in name or "\0" in name:
            yield name, ""
            continue
        path = os.path.join(root, name)
        folder, file = os.path.split(path)
        if not (_is_in_one_of(allowed, path) if file in links_in(folder) else is_folder_inside(folder)):
            yield name, os.path.realpath(path)


def is_inside(root: str | os.PathLike[str], name: str) -> bool:
    """Return whether :func:`names_outside` does not yield the name. For single files: the folder is not listed."""
    return "://" not in name and "\0" not in name and _is_in_one_of(_allowed_folders(root), os.path.join(root, name))


def _allowed_folders(root: str | os.PathLike[str]) -> tuple[str, ...]:
    extra = [folder for folder in os.environ.get(ALLOWED_ROOTS, "").split(os.pathsep) if folder]
    return tuple(os.path.realpath(os.path.expanduser(folder)) for folder in (root, *extra))


def _is_in_one_of(folders: tuple[str, ...], path: str) -> bool:
    real = os.path.realpath(path)
    return any(os.path.commonpath([real, folder]) == folder for folder in folders)


def _links_in(folder: str) -> frozenset[str]:
    """Return the names of the symbolic links in a folder; none if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return frozenset()


def describe_outside(target: str) -> str:
    """Return how an error sentence goes on after a name that :func:`names_outside` yields with this target."""
    if not target:
        return "is not a path in the image folder"
    return (
        f"leads out of the image folder to {target}: if this is intended, set ${ALLOWED_ROOTS} to "
        f"{os.path.dirname(target)}"
    )


def check_file_names(dataset_names: Sequence[str], rows: Iterable[dict]) -> None:
    """Check that the images of registered datasets are in their image folders.

    Args:
        dataset_names: names in detectron2's catalog. Images of a dataset without ``image_root`` in its
            metadata are not checked.
        rows: the images of all these datasets, as ``DatasetCatalog.get`` returns them.

    Raises:
        GNDetError: an image is elsewhere.
    """
    roots = [MetadataCatalog.get(name).get("image_root") for name in dataset_names]
    names: dict[str, list[str]] = {os.path.join(root, ""): [] for root in roots if root}
    for row in rows:
        # detectron2 has joined the image_root and the name in the JSON, of which an absolute name is left.
        file = row["file_name"]
        root = next((root for root in names if file.startswith(root)), None)
        if root is None and all(roots):
            root = next(iter(names))
        if root is not None:
            names[root].append(file.removeprefix(root))
    for root in names:
        for name, target in names_outside(root, names[root]):
            datasets = ", ".join(dataset_names)
            raise GNDetError(f"The file_name {name!r} in the annotations of {datasets} {describe_outside(target)}.")
