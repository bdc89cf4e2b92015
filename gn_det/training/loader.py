"""Training data loader whose order and random augmentations depend only on the seed and the position."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import _train_loader_from_config, trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..data.mapper import Mapper
from ..errors import GNDetError
from .overview import Counts
from .seeds import IMAGE, ORDER, derive, run_seed, seeded, set_seed

_Place = tuple[int, int]  # position in the endless order of all processes, and index of the image in the dataset


class TrainLoader:
    """Endless iterable of the batches of this process, which can begin at any iteration.

    Same as detectron2's training loader with its samplers and its grouping by aspect ratio, but the
    batches are the same for any number of data workers, and a resumed training reads the batches that
    it would have read without the interruption. For that, the images are grouped before they are
    read, and the random generators are seeded for each image by its position in the order.

    Args:
        cfg: config with the keys of the data loader, of the sampler and of the augmentations.
        rows: the training set in detectron2's format.
        options: other arguments of PyTorch's DataLoader.

    Raises:
        GNDetError: the processes cannot share ``SOLVER.IMS_PER_BATCH`` evenly.

    Attributes:
        seed: of the order and the augmentations.
        images: number of images of the training set.
        batch_size: number of images per batch and process.
        grouped: whether the images of a batch are either all wider than high or all not.
        counts: numbers of images and objects, for the overview; None if they were not counted.
    """

    counts: Counts | None = None

    def __init__(self, cfg: CfgNode, rows: Sequence[dict[str, Any]], **options: Any):
        self._cfg, self._options = cfg, options
        self._mapper = Mapper(cfg, is_train=True)
        self._rows = DatasetFromList(rows, copy=False)  # serialized, because a list would be copied by each worker
        self.seed, self.images = run_seed(cfg), len(rows)
        self.batch_size, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size())
        if rest:
            raise GNDetError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {comm.get_world_size()} processes cannot share "
                f"evenly: use a multiple of {comm.get_world_size()}."
            )
        self.grouped: bool = cfg.DATALOADER.ASPECT_RATIO_GROUPING
        self._wide = [row["width"] > row["height"] for row in rows] if self.grouped else []
        self._sampler = self._build_sampler(rows)
        self._origin, self._batches = 0, 0

    def seek(self, seed: int, origin: int, batches: int) -> None:
        """Set where the next iterator begins.

        Args:
            seed: of the order and the augmentations.
            origin: number of images at the beginning of the order of all processes that are left out.
            batches: number of batches of this process after ``origin`` that are left out.
        """
        self._origin, self._batches = origin, batches
        if seed != self.seed:
            self.seed = seed
            self._sampler = self._build_sampler(self._rows)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        workers = self._cfg.DATALOADER.NUM_WORKERS
        # Same numbers of images in memory as with detectron2, whose workers return batches if they are not grouped.
        ahead = (2 if self.grouped else 2 * self.batch_size) if workers else None
        loader = DataLoader(
            _SeededImages(MapDataset(self._rows, self._mapper), self.seed),
            batch_size=None,
            sampler=self._places(),
            num_workers=workers,
            collate_fn=trivial_batch_collator,
            generator=torch.Generator(),  # PyTorch would draw from the generator of the training otherwise
            prefetch_factor=ahead,
            **self._options,
        )
        images = iter(loader)
        while len(batch := list(itertools.islice(images, self.batch_size))) == self.batch_size:
            yield batch

    def _places(self) -> Iterator[_Place]:
        rank, world = comm.get_rank(), comm.get_world_size()
        whole = ((rank + world * number, index) for number, index in enumerate(self._sampler))
        order = itertools.islice(whole, -(-self._origin // world), None)
        batches = self._grouped(order) if self.grouped else _batched(order, self.batch_size)
        return itertools.chain.from_iterable(itertools.islice(batches, self._batches, None))

    def _build_sampler(self, rows: Sequence[dict[str, Any]] | Dataset) -> Sampler[int]:
        """Build the sampler of ``DATALOADER.SAMPLER_TRAIN``. detectron2 draws its seed from NumPy's generator."""
        with seeded(derive(self.seed, ORDER)):
            return _train_loader_from_config(self._cfg, mapper=self._mapper, dataset=rows)["sampler"]

    def _grouped(self, order: Iterable[_Place]) -> Iterator[list[_Place]]:
        """Yield batches of images that are either all wider than high or all not, as detectron2 groups them."""
        groups: dict[bool, list[_Place]] = {False: [], True: []}
        for place in order:
            group = groups[self._wide[place[1]]]
            group.append(place)
            if len(group) == self.batch_size:
                yield group[:]
                group.clear()


def _batched(order: Iterator[_Place], size: int) -> Iterator[list[_Place]]:
    while len(batch := list(itertools.islice(order, size))) == size:
        yield batch


class _SeededImages(Dataset):
    """Dataset that is indexed by a place in the order, and seeds the random generators for it."""

    def __init__(self, dataset: Dataset, seed: int):
        self._dataset, self._seed = dataset, seed

    def __getitem__(self, place: _Place) -> dict[str, Any]:
        position, index = place
        seed = derive(self._seed, IMAGE, position)
        if get_worker_info():
            set_seed(seed)
            return self._dataset[index]
        with seeded(seed):  # the generators of the training continue as with data workers
            return self._dataset[index]
