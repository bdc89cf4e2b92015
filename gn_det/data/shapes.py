"""The sample data set 'shapes': drawn images with COCO instance annotations, made in seconds and the same each time.

Textured shapes of three classes overlap on textured backgrounds. Colour, texture, area and position are drawn
independently of the class: only the outline tells it. Pixel (row 0, column 0) covers x and y in [0, 1].
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from contourpy import contour_generator  # comes with matplotlib, which detectron2 needs
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from ..errors import GNDetError

# Per class, the number of corners and the first of them (x + iy, y down); turns by 1/n give the others.
_OUTLINES = {"circle": (64, 1), "square": (4, 1 + 1j), "triangle": (3, -1j)}
CLASSES: tuple[str, ...] = tuple(_OUTLINES)
VERSION = 1  # of the drawing: raise it when the same parameters give other bytes
SPLITS = ("train", "val")
EMPTY_SHARE = 0.03  # of the images have no object
MIN_SIDE = 14.0  # square root of an object's area in pixels; the class of a smaller one could not be told
MAX_SIDE = 0.65  # likewise, as a share of the image's shorter side: at 192 px beyond COCO's 'large' (96 px)
MIN_VISIBLE = 0.65  # share of an object's own area that later objects and the image's border must leave
MIN_CONTRAST = 90.0  # RGB distance between an object and what is behind its outline
PLACEMENTS = 20  # tried before an object is given up
MAX_TURN = 0.06  # of a full turn, either way from upright
SUPERSAMPLING = 4


def draw(
    rng: np.random.Generator, size: tuple[int, int] = (192, 192), max_objects: int = 9
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one image, everything random in it from ``rng``.

    Args:
        size: (H, W) in pixels.
        max_objects: the number is drawn from 2..max_objects, or 0 with ``EMPTY_SHARE``; what finds no place is left out.

    Returns:
        the image, uint8 RGB of (H, W, 3), and per object from back to front (index in ``CLASSES``, its visible pixels
        as a bool mask of (H, W)). The masks are disjoint, and every object in the image is among them.
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
    segmentation: str = "polygon",
) -> dict[str, tuple[Path, Path]]:
    """Write the data set to ``root``, or find it there.

    It appears under ``root`` complete or not at all, also where a run is killed or several processes write at once.
    An image depends on seed, split, its index and size only, so fewer images are the first of more.

    Args:
        root: the folder; may exist if it is empty or holds this very data set.
        size: H = W of the images in pixels, >= 64.
        segmentation: "polygon", or "rle" (compressed), which detectron2 reads with ``INPUT.MASK_FORMAT bitmask`` only.

    Returns:
        {"train": (annotation file, image folder), "val": likewise}.

    Raises:
        GNDetError: a parameter is out of range, ``root`` holds anything else, or it cannot be written.
    """
    if min(num_train, num_val) < 1 or seed < 0 or size < 64 or segmentation not in ("polygon", "rle"):
        raise GNDetError(
            f"no shapes data set has num_train={num_train}, num_val={num_val}, seed={seed}, size={size}, segmentation="
            f"{segmentation!r}: give 1 image or more each, a seed >= 0, a size >= 64 and 'polygon' or 'rle'."
        )
    root = Path(root).resolve()
    manifest = {"version": VERSION, "classes": list(CLASSES), "seed": seed, "size": size, "segmentation": segmentation}
    manifest["num_images"] = {"train": num_train, "val": num_val}
    if not _is_complete(root, manifest):
        _write(root, manifest)
    return {split: (root / f"{split}.json", root / split) for split in SPLITS}


def _is_complete(root: Path, manifest: dict) -> bool:
    """Whether ``root`` holds the data set of this manifest, with all its files."""
    try:
        found = json.loads((root / "shapes.json").read_text())
    except (OSError, ValueError):
        return False
    return found == manifest and all(
        (root / f"{split}.json").is_file() and len(list((root / split).glob("*.png"))) == count
        for split, count in manifest["num_images"].items()
    )


def _write(root: Path, manifest: dict) -> None:
    """Make the data set in a temporary folder beside ``root`` and rename it."""
    try:
        if any(root.iterdir()) if root.is_dir() else root.exists():
            raise FileExistsError(0, "it holds something else than the complete data set of these parameters")
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
            folder = Path(scratch, root.name)  # not scratch itself, which only its owner may read
            folder.mkdir()
            contents = {split: _write_split(folder / split, split, manifest) for split in SPLITS}
            for name, content in (contents | {"shapes": manifest}).items():
                (folder / f"{name}.json").write_text(json.dumps(content, sort_keys=True) + "\n")
            os.rename(folder, root)  # fails where root is not empty: nothing is replaced
    except OSError as error:
        if not _is_complete(root, manifest):  # else another process was faster
            problem = f"cannot write the shapes data set to {root} ({error.strerror or error})"
            raise GNDetError(f"{problem}: give another folder, or clear this one.") from error


def _write_split(folder: Path, split: str, manifest: dict) -> dict:
    """Write the images of one split into the new ``folder``; returns its COCO annotations."""
    folder.mkdir()
    size: int = manifest["size"]
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(manifest["num_images"][split]):
        pixels, objects = draw(np.random.default_rng([manifest["seed"], SPLITS.index(split), index]), (size, size))
        file_name = f"{index + 1:06d}.png"
        Image.fromarray(pixels).save(folder / file_name, compress_level=1)  # noise hardly compresses
        images.append({"id": index + 1, "width": size, "height": size, "file_name": file_name})
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


def _annotate(mask: np.ndarray, segmentation: str) -> dict:
    """The COCO fields that follow from an object's visible pixels, a bool mask of (H, W)."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    fields = {"bbox": coco_mask.toBbox(rle).tolist(), "area": int(mask.sum()), "iscrowd": 0}
    text_rle = rle | {"counts": rle["counts"].decode("ascii")}
    return fields | {"segmentation": _polygons(mask) if segmentation == "polygon" else text_rle}


def _polygons(mask: np.ndarray, left: int = 0) -> list[list[float]]:
    """The outlines of a bool mask of (H, W) as COCO polygons, x shifted by ``left``.

    A polygon cannot say a hole: a region with one is cut in two through it, along a column.
    """
    # Padded, because outlines do not close at the border; that and the pixels' centres at .5 shift them by half a pixel.
    outlines = contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    lines = [np.asarray(line) - 0.5 for line in outlines]
    for line in lines:
        if _area(line) < 0:
            cut = int(line[:, 0].max())
            return _polygons(mask[:, :cut], left) + _polygons(mask[:, cut:], left + cut)
    return [(line[:-1] + (left, 0)).ravel().tolist() for line in lines]


def _area(points: np.ndarray) -> float:
    """Signed area of the polygon of (N, 2) points; negative around a hole, as contourpy turns."""
    x, y = points.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _outline(rng: np.random.Generator, class_index: int) -> np.ndarray:
    """The outline (x, y), float of (N, 2), of a slightly turned and stretched shape of area 1 around (0, 0)."""
    number, corner = _OUTLINES[CLASSES[class_index]]
    points = corner * np.exp(2j * np.pi * (rng.uniform(-MAX_TURN, MAX_TURN) + np.arange(number) / number))
    stretch = np.exp(rng.uniform(-0.1, 0.1))
    points = np.stack([points.real * stretch, points.imag / stretch], axis=1)
    return points / np.sqrt(_area(points))


def _place(rng: np.random.Generator, size: tuple[int, int], count: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Up to ``count`` objects (class index, coverage in 0..1 of (H, W), visible pixels) from back to front."""
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
            # An object that hardly shows would be noise, annotated or not: rather place this one elsewhere.
            needed = [*min_areas, MIN_VISIBLE * side**2]
            if all(visible.sum() >= area for (_, _, visible), area in zip(placed, needed, strict=True)):
                objects, min_areas = placed, needed
                break
    return objects


def _contrasting_color(rng: np.random.Generator, behind: np.ndarray) -> np.ndarray:
    """A random RGB colour at ``MIN_CONTRAST`` from nine tenths of the (N, 3) pixels behind, or the best of 20."""
    colors = rng.uniform(10, 245, size=(20, 1, 3))
    contrasts = np.percentile(np.linalg.norm(behind - colors, axis=2), 10, axis=1)
    return colors[np.argmax(np.minimum(contrasts, MIN_CONTRAST)), 0]  # the first that suffices


def _pattern(rng: np.random.Generator, size: tuple[int, int], contrast: float) -> np.ndarray:
    """A texture of (H, W, 3) to add to a colour: noise, gradient, stripes or checks of +-``contrast``."""
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
    """Two textures and a little clutter (thin lines, blobs below any object's size), float of (H, W, 3)."""
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
