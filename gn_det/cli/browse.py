"""Draw samples of a dataset as the model sees them, and check its annotations."""

import argparse
import colorsys
import contextlib
import random
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import build_augmentation, convert_image_to_rgb
from detectron2.utils.env import seed_all_rng

from ..data.checks import check_data, format_check
from ..data.mapper import Mapper
from ..data.paths import check_file_names
from ..errors import GNDetError
from ..launch.arguments import argument_parser
from ..launch.output_dir import remove_staged_files
from ..launch.prepare import prepare

_COLUMNS, _WIDTH = 4, 400  # columns of the contact sheet; long side of each picture on it in pixels
_MIN_SIDE = 480  # minimum short side of a single picture in pixels, so that class names are readable
_HIDDEN_ARGUMENTS = ("resume", "eval_only", "num_gpus", "num_machines", "machine_rank", "dist_url")


def browse_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser for the data arguments of a training run and for the options of the pictures."""
    parser = argument_parser(description, _HIDDEN_ARGUMENTS)
    group = parser.add_argument_group("pictures")
    group.add_argument(
        "--split",
        choices=("train", "test"),
        help="DATASETS.TRAIN or DATASETS.TEST (default: train, or test if only --val-json is given)",
    )
    group.add_argument(
        "--number", type=int, default=12, metavar="N", help="number of images to draw (default: 12); SEED selects them"
    )
    group.add_argument("--out", metavar="DIR", help="folder for the pictures (default: browse/DATASET)")
    group.add_argument("--no-augmentation", action="store_true", help="draw the images as they are in their files")
    return parser


def browse(args: argparse.Namespace) -> Path:
    """Check a dataset, draw samples of it, and print the findings and the folder of the pictures.

    Only the pictures are written; ``OUTPUT_DIR`` is neither read nor written.

    Args:
        args: arguments from :func:`browse_parser`.

    Returns:
        the folder of the pictures ``01.jpg``, ``02.jpg``, ... and of ``sheet.jpg``, which shows them all.

    Raises:
        GNDetError: the arguments, the config, or the data are invalid.
    """
    if args.number < 1:
        raise GNDetError(f"--number is {args.number}; the number of images to draw must be at least 1.")
    train = (args.split or ("train" if args.train_json or not args.val_json else "test")) == "train"
    if args.train_json and not args.val_json and not train:
        raise GNDetError("--split test with --train-json also needs --val-json and --val-images.")
    with _config_of_data(args, train) as cfg:
        names = cfg.DATASETS.TRAIN if train else cfg.DATASETS.TEST
        rows = [row for name in names for row in DatasetCatalog.get(name)]
        check_file_names(names, rows)
        numbers = [str(number) for number in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
        classes = MetadataCatalog.get(names[0]).get("thing_classes", numbers)
        check = check_data(rows, classes, cfg, train)
        print(format_check(", ".join(names), check))
        chosen = choose_images(rows, check, args.number, max(cfg.SEED, 0))
        folder = Path(args.out or Path("browse") / names[0])
        draw_samples([(rows[index], caption) for index, caption in chosen], classes, _mapper(cfg, train, args), folder)
    print(
        f"\nPictures: {folder / 'sheet.jpg'} shows {len(chosen)} of {len(rows)} images; {folder} also contains a picture "
        "of each."
    )
    return folder


@contextlib.contextmanager
def _config_of_data(args: argparse.Namespace, train: bool) -> Iterator[CfgNode]:
    """Yield the config with its dataset registered, and delete the cleaned copies of its JSON files on exit.

    The other split, weights, and mixed precision are disabled, because drawing does not need them.
    """
    with tempfile.TemporaryDirectory() as folder:
        other = "TEST" if train else "TRAIN"
        opts = ["OUTPUT_DIR", folder, f"DATASETS.{other}", "()", "SOLVER.AMP.ENABLED", "False"]
        changed = {"opts": [*args.opts, *opts], "eval_only": not train, "resume": False}
        if train and not args.train_json:
            changed |= {"val_json": None, "val_images": None}
        try:
            yield prepare(argparse.Namespace(**{**vars(args), **changed}), needs_weights=False)
        finally:
            remove_staged_files()


def choose_images(rows: list[dict], check: dict, number: int, seed: int) -> list[tuple[int, str]]:
    """Choose the images to draw: up to half of them from the findings, and the rest at random.

    The images from the findings are taken from each kind of finding in turn.

    Args:
        check: the result of :func:`gn_det.data.checks.check_data`.

    Returns:
        index and caption of the finding ("" without a finding) of each image, sorted by index.
    """
    kinds = [[(index, finding.caption) for index in finding.images] for finding in check["findings"] if finding.caption]
    captions = dict(pair for pairs in zip_longest(*kinds) for pair in pairs if pair)
    chosen = dict(list(captions.items())[: number // 2])
    generator = random.Random(seed)
    rest = [index for index in range(len(rows)) if index not in chosen]
    chosen |= {index: captions.get(index, "") for index in generator.sample(rest, min(number - len(chosen), len(rest)))}
    return sorted(chosen.items())


def _mapper(cfg: CfgNode, train: bool, args: argparse.Namespace) -> Mapper:
    """Return a mapper that keeps the annotations in testing too, and seed its random augmentations."""
    seed_all_rng(max(cfg.SEED, 0))
    if args.no_augmentation:
        return Mapper(cfg, is_train=True, augmentations=[])
    return Mapper(cfg, is_train=True, **({} if train else {"augmentations": build_augmentation(cfg, False)}))


def draw_samples(samples: list[tuple[dict, str]], classes: list[str], mapper: Mapper, folder: Path) -> None:
    """Draw samples and write ``FOLDER/01.jpg``, ``02.jpg``, ..., and ``sheet.jpg``, which shows them all.

    Args:
        samples: for each image, its dict in detectron2's format and a caption for its title, or "".
        classes: the class names.
        mapper: converts each dict to the model's input.

    Raises:
        GNDetError: OpenCV is missing, or the folder cannot be written to.
    """
    try:
        from ..drawing.instances import contact_sheet
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        raise GNDetError("OpenCV is needed to draw pictures: pip install opencv-python-headless.") from None
    singles, small, titles = [], [], []
    for row, caption in samples:
        sample = mapper(row)
        titles.append(_title(row, sample, caption))
        height, width = sample["image"].shape[1:]
        singles.append(_draw(sample, classes, mapper.image_format, max(1.0, _MIN_SIDE / min(height, width))))
        small.append(_draw(sample, classes, mapper.image_format, _WIDTH / max(height, width)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        contact_sheet(small, titles, min(_COLUMNS, len(small)), _WIDTH).save(folder / "sheet.jpg", quality=92)
        for number, (image, title) in enumerate(zip(singles, titles, strict=True), start=1):
            contact_sheet([image], [title], 1, max(image.shape[:2])).save(folder / f"{number:02d}.jpg", quality=92)
    except OSError as error:
        raise GNDetError(f"--out {folder} cannot be written to: {error.strerror}.") from None


def _title(row: dict, sample: dict, caption: str) -> str:
    height, width = sample["image"].shape[1:]
    objects, kept = sum(not a.get("iscrowd") for a in row.get("annotations", [])), len(sample.get("instances", ()))
    number = f"{objects} object{'s' * (objects != 1)}" if kept == objects else f"{kept} of {objects} objects kept"
    name = Path(row["file_name"]).name + (f": {caption}" if caption else "")
    return f"{name}\n{row['width']} x {row['height']} -> {width} x {height}, {number}"


def _draw(sample: dict, classes: list[str], image_format: str, scale: float) -> np.ndarray:
    """Return the image with boxes, masks, and class names, one color per class: (H, W, 3), RGB, uint8."""
    from ..drawing.instances import LabelVisualizer

    image = convert_image_to_rgb(sample["image"].permute(1, 2, 0).numpy(), image_format)
    canvas = LabelVisualizer(image, scale=scale)
    instances = sample.get("instances")
    if not instances:  # None, or of length 0
        return canvas.get_output().get_image()
    labels = instances.gt_classes.tolist()
    return canvas.overlay_instances(
        boxes=instances.gt_boxes,
        masks=instances.gt_masks if instances.has("gt_masks") else None,
        labels=[classes[label] for label in labels],
        assigned_colors=[colorsys.hsv_to_rgb(label * 0.618 % 1, 0.9, 1) for label in labels],
        alpha=0.35,
    ).get_image()


def cli() -> None:
    """Run the command with the arguments of the process."""
    browse(browse_parser(__doc__).parse_args())
