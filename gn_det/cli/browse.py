"""Draw samples of a data set as the model sees them, and check its annotations."""

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
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import build_augmentation, convert_image_to_rgb
from detectron2.utils.env import seed_all_rng

from ..data.checks import check_data, format_check
from ..errors import GNDetError
from ..launch.arguments import argument_parser
from ..launch.prepare import prepare

_COLUMNS, _WIDTH = 4, 400  # of the sheet; pixels of a picture on it
_MIN_SIDE = 480  # pixels of the shorter side of a single picture, so that names can be read
_NOT_HERE = ("resume", "eval_only", "num_gpus", "num_machines", "machine_rank", "dist_url")


def browse_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of a training run that concern its data, and those of the pictures."""
    parser = argument_parser(description)
    for action in parser._actions:
        if action.dest in _NOT_HERE:
            action.help = argparse.SUPPRESS
    group = parser.add_argument_group("what is drawn")
    group.add_argument("--split", choices=("train", "test"), help="which of DATASETS (default: train, if there is one)")
    group.add_argument(
        "--number", type=int, default=12, metavar="N", help="images drawn (default: 12); SEED chooses them"
    )
    group.add_argument("--out", metavar="DIR", help="where the pictures go (default: browse/DATASET)")
    group.add_argument("--no-augmentation", action="store_true", help="images as they are in their files")
    return parser


def browse(args: argparse.Namespace) -> Path:
    """Print the check of a data set, draw samples of it, and say where they lie.

    Nothing is written but the pictures: a run's ``OUTPUT_DIR`` is neither needed nor looked at.

    Returns:
        the folder of the pictures: ``sheet.jpg`` with all of them, and ``01.jpg``, ``02.jpg``, ...

    Raises:
        GNDetError: whatever in the arguments, the config or the data cannot work.
    """
    if args.number < 1:
        raise GNDetError(f"--number is {args.number}; it is how many images are drawn, and at least 1.")
    train = (args.split or ("train" if args.train_json or not args.val_json else "test")) == "train"
    if args.train_json and not args.val_json and not train:
        raise GNDetError("--split test needs --val-json and --val-images, as --train-json is given.")
    with _config_of_data(args, train) as cfg:
        names = cfg.DATASETS.TRAIN if train else cfg.DATASETS.TEST
        rows = [row for name in names for row in DatasetCatalog.get(name)]
        numbers = [str(number) for number in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
        classes = MetadataCatalog.get(names[0]).get("thing_classes", numbers)
        check = check_data(rows, classes, cfg, train)
        print(format_check(", ".join(names), check))
        chosen = choose(rows, check, args.number, max(cfg.SEED, 0))
        folder = Path(args.out or Path("browse") / names[0])
        draw_samples([(rows[index], words) for index, words in chosen], classes, _mapper(cfg, train, args), folder)
    print(f"\nPictures: {folder / 'sheet.jpg'} shows {len(chosen)} of {len(rows)} images; each is in {folder} too.")
    return folder


@contextlib.contextmanager
def _config_of_data(args: argparse.Namespace, train: bool) -> Iterator[CfgNode]:
    """The config with its data registered, whose cleaned JSON lies in a folder that goes away.

    What only training needs is put out of the way: the other split, weights, mixed precision.
    """
    with tempfile.TemporaryDirectory() as folder:
        other = "TEST" if train else "TRAIN"
        opts = ["OUTPUT_DIR", folder, f"DATASETS.{other}", "()", "SOLVER.AMP.ENABLED", "False"]
        changed = {"opts": [*args.opts, *opts], "eval_only": not train, "resume": False}
        if train and not args.train_json:
            changed |= {"val_json": None, "val_images": None}
        yield prepare(argparse.Namespace(**{**vars(args), **changed}), weights=False)


def choose(rows: list[dict], check: dict, number: int, seed: int) -> list[tuple[int, str]]:
    """(index, what is odd there) of the images to draw: odd ones of each kind up to half, and the rest by chance."""
    kinds = [[(index, finding.words) for index in finding.images] for finding in check["findings"] if finding.words]
    odd = dict(pair for pairs in zip_longest(*kinds) for pair in pairs if pair)
    chosen = dict(list(odd.items())[: number // 2])
    generator = random.Random(seed)
    rest = [index for index in range(len(rows)) if index not in chosen]
    chosen |= {index: odd.get(index, "") for index in generator.sample(rest, min(number - len(chosen), len(rest)))}
    return sorted(chosen.items())


def _mapper(cfg: CfgNode, train: bool, args: argparse.Namespace) -> DatasetMapper:
    """With annotations in testing too, where detectron2's would drop them. Its chance is the seed's."""
    seed_all_rng(max(cfg.SEED, 0))
    if args.no_augmentation:
        return DatasetMapper(cfg, is_train=True, augmentations=[])
    return DatasetMapper(cfg, is_train=True, **({} if train else {"augmentations": build_augmentation(cfg, False)}))


def draw_samples(samples: list[tuple[dict, str]], classes: list[str], mapper: DatasetMapper, folder: Path) -> None:
    """Write ``FOLDER/01.jpg``, ``02.jpg``, ... and ``sheet.jpg``.

    Args:
        samples: rows in detectron2's format, and a few words on each for its title.

    Raises:
        GNDetError: OpenCV is missing, or the folder cannot be written to.
    """
    try:
        from ..drawing.instances import contact_sheet
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        raise GNDetError("Drawing needs OpenCV: pip install opencv-python-headless.") from None
    singles, small, titles = [], [], []
    for row, words in samples:
        sample = mapper(row)
        titles.append(_title(row, sample, words))
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


def _title(row: dict, sample: dict, words: str) -> str:
    height, width = sample["image"].shape[1:]
    objects, left = sum(not a.get("iscrowd") for a in row.get("annotations", [])), len(sample.get("instances", ()))
    number = f"{objects} object{'s' * (objects != 1)}" if left == objects else f"{left} of {objects} objects left"
    name = Path(row["file_name"]).name + (f": {words}" if words else "")
    return f"{name}\n{row['width']} x {row['height']} -> {width} x {height}, {number}"


def _draw(sample: dict, classes: list[str], image_format: str, scale: float) -> np.ndarray:
    """(H, W, 3) RGB: boxes, masks and names, one colour a class."""
    from detectron2.utils.visualizer import Visualizer

    image = convert_image_to_rgb(sample["image"].permute(1, 2, 0).numpy(), image_format)
    canvas = Visualizer(image, scale=scale)
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
