"""Name pictures after the images that they show."""

import os
from collections import Counter
from collections.abc import Sequence


def picture_names(files: Sequence[str]) -> list[str]:
    """Return a different name for each image file, without the suffix of a picture.

    The name is the path of the file below the folder that all files have in common, without its suffix. It
    keeps its suffix where files differ in nothing else.

    Args:
        files: paths of image files.
    """
    paths = [os.path.abspath(file) for file in files]
    common = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    relative = [os.path.relpath(path, common) for path in paths]
    stems = [os.path.splitext(name)[0] for name in relative]
    counts, taken = Counter(stems), set[str]()
    names = []
    for name, stem in zip(relative, stems, strict=True):
        chosen = base = stem if counts[stem] == 1 else name
        number = 2
        while chosen in taken:
            chosen, number = f"{base}-{number}", number + 1
        taken.add(chosen)
        names.append(chosen)
    return names
