"""The training loader: the same batches for any number of workers, from any iteration on."""

import itertools

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.utils import comm

from gn_det.config.files import load_config
from gn_det.data import shapes
from gn_det.data.coco import register_coco_json
from gn_det.training.loader import TrainLoader

IMAGES = 11
UNGROUPED = ("DATALOADER.ASPECT_RATIO_GROUPING", False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    """A dataset in which every third image is higher than wide."""
    folder = tmp_path_factory.mktemp("shapes")
    shapes.generate(folder, num_train=IMAGES, num_val=1, seed=1, size=64)
    register_coco_json("rows", str(folder / "train.json"), str(folder / "train"), folder / "clean.json")
    rows = DatasetCatalog.get("rows")
    DatasetCatalog.remove("rows")
    for number, row in enumerate(rows):
        row["grouped_as"] = row["width"] > row["height"] or number % 3 > 0
    return rows


def loader(rows, *opts) -> TrainLoader:
    always = ["SEED", 3, "SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", "(48,64,80)", "DATALOADER.NUM_WORKERS", 0]
    cfg = load_config("quickstart_R18_FPN_gn_scratch", [str(word) for word in [*always, *opts]])
    built = TrainLoader(cfg, rows)
    if built.grouped:
        built._wide = [row["grouped_as"] for row in rows]
    return built


def read(loader, number: int) -> list[list[tuple[int, torch.Tensor]]]:
    return [[(row["image_id"], row["image"]) for row in batch] for batch in itertools.islice(loader, number)]


def ids(batches) -> list[list[int]]:
    return [[image_id for image_id, _ in batch] for batch in batches]


def equal(some, others) -> bool:
    pairs = zip(itertools.chain(*some), itertools.chain(*others), strict=True)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_can_begin_at_any_iteration(rows, workers, grouped, sampler):
    opts = ["DATALOADER.ASPECT_RATIO_GROUPING", grouped, "DATALOADER.SAMPLER_TRAIN", sampler]
    whole = read(loader(rows, *opts), 9)  # more than an epoch
    rest = loader(rows, *opts, "DATALOADER.NUM_WORKERS", workers)
    rest.seek(3, 0, 4)
    assert equal(read(rest, 5), whole[4:])


def test_each_epoch_is_a_permutation_with_new_augmentations(rows):
    places = [place for batch in read(loader(rows, *UNGROUPED), IMAGES) for place in batch]
    epochs = [dict(places[:IMAGES]), dict(places[IMAGES:])]
    assert len(places) == 2 * IMAGES and epochs[0].keys() == epochs[1].keys() and len(epochs[0]) == IMAGES
    assert list(epochs[0]) != list(epochs[1])
    assert any(epochs[0][key].shape != epochs[1][key].shape for key in epochs[0])


def test_images_are_grouped_as_by_detectron2(rows):
    """In the same order of single images, the batches are those of detectron2's AspectRatioGroupedDataset."""
    built = loader(rows)
    order = [
        {"place": index, "width": 1 + built._wide[index], "height": 1} for index in itertools.islice(built._sampler, 40)
    ]
    expected = list(AspectRatioGroupedDataset(order, 2))
    assert [[row["place"] for row in batch] for batch in expected] == [
        [index for _, index in batch] for batch in built._grouped(enumerate(row["place"] for row in order))
    ]


def test_the_seed_decides_the_order(rows):
    orders = [ids(read(loader(rows, "SEED", seed), 6)) for seed in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]
    other = loader(rows, "SEED", 4)
    other.seek(3, 0, 0)
    assert ids(read(other, 6)) == orders[0]


def test_processes_read_different_images_and_go_on_in_another_number(rows, monkeypatch):
    """Two processes, and then three, read no image of an epoch twice."""
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 1)
    read_ids = []
    for world, origin, batches in ((2, 0, 2), (3, 6, 1)):
        for rank in range(world):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            monkeypatch.setattr(comm, "get_world_size", lambda world=world: world)
            part = loader(rows, "SOLVER.IMS_PER_BATCH", world, *UNGROUPED)
            part.seek(3, origin, 0)
            read_ids += itertools.chain(*ids(read(part, batches)))
    assert len(read_ids) == 7 and len(set(read_ids)) == 7


def test_reading_does_not_change_the_generators_of_the_training(rows):
    state = torch.get_rng_state()
    read(loader(rows), 2)
    assert torch.equal(state, torch.get_rng_state())
