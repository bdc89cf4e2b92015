"""Generate the sample dataset 'shapes': images of simple shapes with COCO instance annotations.

Generation takes seconds and gives the same files each time. Textured shapes of three classes overlap on
textured backgrounds. Color, texture, area and position are independent of the class; only the outline
distinguishes the classes. The pixel in row 0 and column 0 covers x and y in [0, 1].
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from contourpy import contour_generator  # installed with matplotlib, which detectron2 requires
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from ..errors import GNDetError

# Per class: the number n of corners, and the first corner as x + iy with y down; rotations by 1/n turn give the others.
_OUTLINES = {"circle": (64, 1), "square": (4, 1 + 1j), "triangle": (3, -1j)}
CLASSES: tuple[str, ...] = tuple(_OUTLINES)
VERSION = 1  # of the generator: increase it when the same parameters give different files
SPLITS = ("train", "val")
EMPTY_SHARE = 0.03  # probability that an image has no objects
MIN_SIDE = 14.0  # lower limit for the square root of an object's area, in pixels; smaller shapes all look alike
MAX_SIDE = 0.65  # upper limit, as a share of the image's shorter side; at 192 px it exceeds COCO's 'large' (96 px)
MIN_VISIBLE = 0.65  # share of an object's area that must be inside the image and not covered by later objects
MIN_CONTRAST = 90.0  # RGB distance between an object and the pixels behind its outline
PLACEMENTS = 20  # positions to try before an object is left out
MAX_TURN = 0.06  # largest rotation from upright in either direction, in full turns
SUPERSAMPLING = 4  # factor for the resolution at which outlines are drawn, for anti-aliasing


def draw(
    rng: np.random.Generator, size: tuple[int, int] = (192, 192), max_objects: int = 9
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one random image.

    Args:
        rng: the only source of randomness.
        size: (H, W) in pixels.
        max_objects: the number of objects is drawn from 2..max_objects, or is 0 with probability
            ``EMPTY_SHARE``. An object for which no position is found is left out.

    Returns:
        The image, (H, W, 3) uint8 RGB, and a list with one tuple per object, from back to front: the
        index in ``CLASSES`` and the visible pixels, an (H, W) bool mask. The masks are disjoint and
        cover all objects in the image.
    """
    canvas = _background(rng, size)
    count = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(2, max_objects + 1))
    objects = _place(rng, size, count)
    for _, coverage, _ in objects:
        painted, rim = coverage > 0, (coverage > 0) & (coverage < 1)
        texture = _contrasting_color(rng, canvas[rim]) + _pattern(rng, size, contrast=rng.uniform(5, 20))
        canvas[painted] += coverage[painted, None] * (texture - canvas)[painted]
    canvas += rng.normal(scale=rng.uniform(2, 10), size=canvas.shape)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return image, [(class_index, visible) for class_index, _, visible in objects]


def generate(
    root: Path | str,
    *,
    num_train: int = 300,
    num_val: int = 60,
    seed: int = 0,
    size: int = 192,
    max_size: int | None = None,
    segmentation: str = "polygon",
) -> dict[str, tuple[Path, Path]]:
    """Write the dataset to ``root``, unless it is already there.

    The write is atomic, even if the process is killed or if several processes write at once. An image
    depends only on seed, split, index and sizes. A smaller dataset therefore has the first images of a
    larger one.

    Args:
        root: the folder. If it exists, it must be empty or contain the dataset with these parameters.
        num_train: number of training images, >= 1.
        num_val: number of validation images, >= 1.
        seed: >= 0.
        size: height and width of the images in pixels, >= 64.
        max_size: if given, the height and the width of each image are drawn from ``size`` to ``max_size``.
        segmentation: "polygon" or "rle" (compressed). detectron2 reads "rle" only with
            ``INPUT.MASK_FORMAT bitmask``.

    Returns:
        A dict with

        - "train": (path of the annotation file, path of the image folder)
        - "val": the same for the validation split

    Raises:
        GNDetError: a parameter is out of range, ``root`` has other content or cannot be written.
    """
    if (
        min(num_train, num_val) < 1
        or seed < 0
        or size < 64
        or (max_size or size) < size
        or segmentation not in ("polygon", "rle")
    ):
        raise GNDetError(
            f"The shapes dataset cannot have num_train={num_train}, num_val={num_val}, seed={seed}, size={size}, "
            f"max_size={max_size}, segmentation={segmentation!r}: use at least 1 image per split, a seed >= 0, a size "
            ">= 64, a max_size >= size and 'polygon' or 'rle'."
        )
    root = Path(root).resolve()
    manifest = {"version": VERSION, "classes": list(CLASSES), "seed": seed, "size": size, "segmentation": segmentation}
    manifest["num_images"] = {"train": num_train, "val": num_val}
    if max_size is not None:
        manifest["max_size"] = max_size
    if not _is_complete(root, manifest):
        _write(root, manifest)
    return {split: (root / f"{split}.json", root / split) for split in SPLITS}


def _is_complete(root: Path, manifest: dict) -> bool:
    """Return whether ``root`` contains all files of the dataset of this manifest."""
    try:
        found = json.loads((root / "shapes.json").read_text())
    except (OSError, ValueError):
        return False
    return found == manifest and all(
        (root / f"{split}.json").is_file() and len(list((root / split).glob("*.png"))) == count
        for split, count in manifest["num_images"].items()
    )


def _write(root: Path, manifest: dict) -> None:
    """Write the dataset to a temporary folder beside ``root`` and rename that folder to ``root``."""
    try:
        if any(root.iterdir()) if root.is_dir() else root.exists():
            raise FileExistsError(0, "the path exists and is not the complete dataset with these parameters")
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
            folder = Path(scratch, root.name)  # scratch itself can be read only by its owner
            folder.mkdir()
            contents = {split: _write_split(folder / split, split, manifest) for split in SPLITS}
            for name, content in (contents | {"shapes": manifest}).items():
                (folder / f"{name}.json").write_text(json.dumps(content, sort_keys=True) + "\n")
            os.rename(folder, root)  # fails if root is not empty, so that nothing is replaced
    except OSError as error:
        if not _is_complete(root, manifest):  # otherwise another process has just written it
            problem = f"The shapes dataset cannot be written to {root} ({error.strerror or error})"
            raise GNDetError(f"{problem}: use another folder, or empty this one.") from error


def _write_split(folder: Path, split: str, manifest: dict) -> dict:
    """Write the images of one split into the new ``folder`` and return its COCO annotations."""
    folder.mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(manifest["num_images"][split]):
        entropy = [manifest["seed"], SPLITS.index(split), index]
        height, width = _size(entropy, manifest)
        pixels, objects = draw(np.random.default_rng(entropy), (height, width))
        file_name = f"{index + 1:06d}.png"
        Image.fromarray(pixels).save(folder / file_name, compress_level=1)  # higher levels save little on noise
        images.append({"id": index + 1, "width": width, "height": height, "file_name": file_name})
        for class_index, mask in objects:
            ids = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": class_index + 1}
            annotations.append(ids | _annotate(mask, manifest["segmentation"]))
    return {
        "info": {"description": f"shapes, {split}", "version": str(VERSION)},
        "licenses": [],
        "images": images,
        "categories": [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES, 1)],
        "annotations": annotations,
    }


def _size(entropy: list[int], manifest: dict) -> tuple[int, int]:
    """Return the height and width of an image in pixels."""
    if "max_size" not in manifest:
        return manifest["size"], manifest["size"]
    sides = np.random.default_rng([*entropy, 1]).integers(manifest["size"], manifest["max_size"] + 1, size=2)
    return int(sides[0]), int(sides[1])


def _annotate(mask: np.ndarray, segmentation: str) -> dict:
    """Return the COCO fields that follow from an object's visible pixels, an (H, W) bool mask."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    fields = {"bbox": coco_mask.toBbox(rle).tolist(), "area": int(mask.sum()), "iscrowd": 0}
    text_rle = rle | {"counts": rle["counts"].decode("ascii")}
    return fields | {"segmentation": _polygons(mask) if segmentation == "polygon" else text_rle}


def _polygons(mask: np.ndarray, left: int = 0) -> list[list[float]]:
    """Return the outlines of an (H, W) bool mask as COCO polygons, shifted by ``left`` in x.

    COCO polygons cannot have holes, so a region with a hole is cut in two along a column through the hole.
    """
    # Padding closes outlines at the border but shifts them by 1; pixel centers are at .5, so 0.5 is left to subtract.
    outlines = contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    lines = [np.asarray(line) - 0.5 for line in outlines]
    for line in lines:
        if _area(line) < 0:
            cut = int(line[:, 0].max())
            return _polygons(mask[:, :cut], left) + _polygons(mask[:, cut:], left + cut)
    return [(line[:-1] + (left, 0)).ravel().tolist() for line in lines]


def _area(points: np.ndarray) -> float:
    """Return the signed area of a polygon of (N, 2) points; contourpy's outlines of holes have a negative area."""
    x, y = points.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _outline(rng: np.random.Generator, class_index: int) -> np.ndarray:
    """Return the outline of a slightly rotated and stretched shape of area 1 around (0, 0), as (N, 2) float x and y."""
    number, corner = _OUTLINES[CLASSES[class_index]]
    points = corner * np.exp(2j * np.pi * (rng.uniform(-MAX_TURN, MAX_TURN) + np.arange(number) / number))
    stretch = np.exp(rng.uniform(-0.1, 0.1))
    points = np.stack([points.real * stretch, points.imag / stretch], axis=1)
    return points / np.sqrt(_area(points))


def _place(rng: np.random.Generator, size: tuple[int, int], count: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Place up to ``count`` objects at random.

    Returns:
        One tuple per object, from back to front: the class index, the (H, W) coverage of the pixels in
        0..1, and the (H, W) bool mask of the visible pixels.
    """
    height, width = size
    objects: list[tuple[int, np.ndarray, np.ndarray]] = []
    min_areas: list[float] = []
    for _ in range(count):
        class_index = int(rng.integers(len(CLASSES)))
        side = np.exp(rng.uniform(np.log(MIN_SIDE), np.log(MAX_SIDE * min(size))))
        for _ in range(PLACEMENTS):
            points = side * _outline(rng, class_index) + rng.uniform((0, 0), (width, height))
            drawing = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
            ImageDraw.Draw(drawing).polygon((points * SUPERSAMPLING - 0.5).ravel().tolist(), fill=255)
            coverage = np.asarray(drawing.reduce(SUPERSAMPLING)) / 255
            mask = coverage >= 0.5
            placed = [(c, cov, visible & ~mask) for c, cov, visible in objects] + [(class_index, coverage, mask)]
            # A barely visible object would be label noise, annotated or not, so another position is tried.
            needed = [*min_areas, MIN_VISIBLE * side**2]
            if all(visible.sum() >= area for (_, _, visible), area in zip(placed, needed, strict=True)):
                objects, min_areas = placed, needed
                break
    return objects


def _contrasting_color(rng: np.random.Generator, behind: np.ndarray) -> np.ndarray:
    """Return a random RGB color at a distance of ``MIN_CONTRAST`` or more from 90% of the (N, 3) pixels ``behind``.

    If none of 20 colors is far enough, the farthest one is returned.
    """
    colors = rng.uniform(10, 245, size=(20, 1, 3))
    contrasts = np.percentile(np.linalg.norm(behind - colors, axis=2), 10, axis=1)
    return colors[np.argmax(np.minimum(contrasts, MIN_CONTRAST)), 0]  # the first color with enough contrast


def _pattern(rng: np.random.Generator, size: tuple[int, int], contrast: float) -> np.ndarray:
    """Return an (H, W, 3) texture to add to a color: noise, gradient, stripes or checks.

    Pixel values are multiples of one random RGB direction, with a length of up to about ``contrast``.
    """
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(6, 20)
    y, x = np.ogrid[: size[0], : size[1]]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind = rng.choice(["noise", "gradient", "stripes", "checks"])
    if kind == "noise":
        cells = Image.fromarray(rng.uniform(-1, 1, size=rng.integers(4, 16, size=2)).astype(np.float32))
        values = np.asarray(cells.resize(size[::-1], Image.Resampling.BICUBIC))
    elif kind == "gradient":
        values = 2 * (along - along.min()) / np.ptp(along) - 1
    else:
        values = np.sin(2 * np.pi / period * along)
        values = values if kind == "stripes" else values * np.sin(2 * np.pi / period * across)
    direction = rng.normal(size=3)
    return values[..., None] * (contrast / np.linalg.norm(direction) * direction)


def _background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return an (H, W, 3) float image of two textures with thin lines and blobs smaller than any object."""
    canvas = rng.uniform(30, 225, size=3) + sum(_pattern(rng, size, contrast=rng.uniform(5, 25)) for _ in range(2))
    drawing = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(drawing)
    for _ in range(rng.integers(0, 5)):
        ends = rng.uniform((0, 0), size[::-1], size=(2, 2))
        pen.line(ends.ravel().tolist(), fill=tuple(rng.integers(256, size=3).tolist()), width=int(rng.integers(1, 3)))
    for _ in range(rng.integers(0, 7)):
        blob = rng.uniform((0, 0), size[::-1]) + rng.uniform(-4, 4, size=(5, 2))
        pen.polygon(blob.ravel().tolist(), fill=tuple(rng.integers(256, size=3).tolist()))
    return np.asarray(drawing).astype(float)
