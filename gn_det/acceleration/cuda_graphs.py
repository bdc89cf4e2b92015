"""Replay the backbone and the head of the RPN as CUDA graphs, captured per size of the batch.

A detector of batch 1 launches thousands of short kernels, and the GPU waits for the host between them. A
CUDA graph launches all of them at once. The rest of the model, from the proposals on, depends on the
data and runs as before.

What is captured: batches in which no image is padded beyond its own rectangle
(:func:`gn_det.modeling.padding.ignore_padding`), which includes every batch of one image. With
``ignore_padding``, the sizes of the images are Python numbers in each operation, so that a graph of
images of different sizes could serve only batches with the very same sizes. Such batches run as before,
and padding images to fewer sizes would not make fewer graphs. Without ``ignore_padding``, the padded size
of the batch is all that counts.

:class:`FeatureGraphs` and :class:`GraphCache` decide, without a GPU. :class:`CudaBackend` captures.
"""

import contextlib
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.padding import extents_of
from .cuda_capture import CudaBackend

logger = logging.getLogger(__name__)
_CAPACITY = {False: 16, True: 4}  # number of graphs for inference and for training, which hold activations
_MIN_USES = 3  # a size that comes only once or twice is not worth a capture


class Key(NamedTuple):
    """What a graph depends on, besides the weights.

    Graphs of one thread are not replayed by another one, which could overwrite their outputs.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    autocast: torch.dtype | None
    inference_mode: bool
    thread: int


def key_of(images: Tensor) -> Key:
    """Return the key of a batch (N, 3, H, W) in the current precision, mode and thread."""
    kind = images.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return Key(
        tuple(images.shape),
        images.stride(),
        images.dtype,
        autocast,
        torch.is_inference_mode_enabled(),
        threading.get_ident(),
    )


class GraphCache:
    """At most ``capacity`` graphs by key.

    A new key replaces the least recently used one only if it has been used more often. So sizes that take turns
    do not lead to a capture at each batch.
    """

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._graphs: OrderedDict[Key, Any] = OrderedDict()
        self._uses: Counter[Key] = Counter()

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def pool(self) -> Any:
        """The memory pool that the graphs share; None if there are no graphs."""
        return next(iter(self._graphs.values())).pool if self._graphs else None

    def use(self, key: Key) -> Any:
        """Count a use of the key, and return its graph, or None."""
        self._uses[key] += 1
        if key in self._graphs:
            self._graphs.move_to_end(key)
        return self._graphs.get(key)

    def admits(self, key: Key) -> bool:
        """Return whether a graph should be captured for a key that has none."""
        if self._uses[key] < _MIN_USES:
            return False
        return len(self) < self._capacity or self._uses[key] > self._uses[next(iter(self._graphs))]

    def make_room(self) -> None:
        """Drop the least recently used graph if the cache is full."""
        if len(self) >= self._capacity:
            self._graphs.popitem(last=False)

    def add(self, key: Key, graph: Any) -> None:
        """Keep a graph, which has an attribute ``pool``."""
        self._graphs[key] = graph

    def clear(self) -> None:
        """Drop all graphs."""
        self._graphs.clear()


class FeatureGraphs:
    """The forward functions of a backbone and an RPN head, which replay graphs where that is possible.

    The feature maps that they return are overwritten by the next batch of the same size.

    Args:
        model: a model with ``backbone`` and, optionally, ``proposal_generator``, such as detectron2's
            GeneralizedRCNN and RetinaNet.
        modes: False for graphs of inference, True for graphs of training, with their backward pass.
        backend: captures the graphs; see :class:`CudaBackend`.
    """

    def __init__(self, model: Any, modes: set[bool], backend: Any):
        generator = getattr(model, "proposal_generator", None)
        self._backbone = model.backbone
        self._rpn = generator if hasattr(generator, "rpn_head") else None
        self._backbone_forward = model.backbone.forward
        self._head_forward = self._rpn.rpn_head.forward if self._rpn is not None else None
        self._backend = backend
        self._caches = {training: GraphCache(_CAPACITY[training]) for training in modes}
        self._weights: list[Tensor] = []  # the parameters and buffers that the graphs read
        self._addresses: list[int] = []
        self._stopped = False
        self._replayed: tuple[Any, Any] | None = None  # features and outputs of the head, until the head is called

    def __getstate__(self) -> dict:
        """Leave out the graphs, because a copy of the model has weights of its own."""
        empty = {training: GraphCache(_CAPACITY[training]) for training in self._caches}
        return self.__dict__ | {"_caches": empty, "_weights": [], "_replayed": None}

    def attach(self) -> None:
        """Replace the forward functions of the model by those of this object."""
        self._backbone.forward = self.run_backbone
        if self._rpn is not None:
            self._rpn.rpn_head.forward = self.run_head

    def run_backbone(self, images: Tensor) -> Any:
        """Return the output of the backbone for images (N, 3, H, W)."""
        graph = self._find_graph(images)
        if graph is None:
            return self._backbone_forward(images)
        features, head_outputs = graph(images)
        if self._rpn is not None:
            self._replayed = features, head_outputs
        return features

    def run_head(self, features: list[Tensor]) -> Any:
        """Return the output of the RPN head, which was computed with the features if a graph was replayed."""
        assert self._rpn is not None and self._head_forward is not None
        replayed, self._replayed = self._replayed, None
        if replayed is not None:
            of_graph = [replayed[0][name] for name in self._rpn.in_features]
            if len(features) == len(of_graph) and all(a is b for a, b in zip(features, of_graph, strict=True)):
                return replayed[1]
        return self._head_forward(features)

    def _run_both(self, images: Tensor) -> tuple[Any, Any]:
        features = self._backbone_forward(images)
        if self._rpn is None or self._head_forward is None:
            return features, ()
        return features, self._head_forward([features[name] for name in self._rpn.in_features])

    def _find_graph(self, images: Tensor) -> Any:
        """Return the graph for a batch, captured now if it is due; None to run without."""
        training = self._backbone.training
        cache = self._caches.get(training)
        if cache is None or training != torch.is_grad_enabled() or extents_of(images) is not None:
            return None
        if not self._backend.supports(images):
            return None
        self._drop_graphs_of_other_weights()
        key = key_of(images)
        graph = cache.use(key)
        if graph is None and not self._stopped and cache.admits(key):
            graph = self._capture(cache, key, images, training)
        return graph

    def _drop_graphs_of_other_weights(self) -> None:
        """Drop all graphs after, for example, ``model.to(memory_format=...)``, which moves the weights."""
        if not self._weights or self._weights[0] is not next(self._backbone.parameters()):
            self._weights = [t for module in self._modules() for t in (*module.parameters(), *module.buffers())]
        addresses = [weight.data_ptr() for weight in self._weights]
        if addresses != self._addresses:
            self._addresses = addresses
            self._clear()

    def _modules(self) -> list[nn.Module]:
        return [self._backbone] if self._rpn is None else [self._backbone, self._rpn.rpn_head]

    def _capture(self, cache: GraphCache, key: Key, images: Tensor, training: bool) -> Any:
        cache.make_room()
        if not self._backend.has_memory(images.device):
            self._stop("the GPU's memory is short")
            return None
        try:
            with _autocast_cache_disabled():
                graph = self._backend.capture(self._run_both, self._modules(), images, training, cache.pool)
        except Exception as error:  # the model then runs without graphs, and raises its own errors
            self._clear()
            self._stop(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return None
        cache.add(key, graph)
        return graph

    def _clear(self) -> None:
        for cache in self._caches.values():
            cache.clear()

    def _stop(self, reason: str) -> None:
        self._stopped = True
        logger.warning(f"No more CUDA graphs are captured ({reason}): batches of other sizes run without them.")


@contextlib.contextmanager
def _autocast_cache_disabled() -> Iterator[None]:
    """Let autocast convert the weights within the graph, because the copies that it caches are freed later."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def use_cuda_graphs(
    model: nn.Module, *, inference: bool, training: bool, backend: Callable[[], Any] = CudaBackend
) -> None:
    """Let a built model replay its backbone and RPN head as CUDA graphs, in place.

    Call it once, after all other changes to the model. Batches on a CPU run as before. Copies of the model
    capture their own graphs. If the weights are moved, graphs are captured anew. Replacing a single parameter
    by another object is not noticed.

    Args:
        inference: use graphs in evaluation mode without gradients.
        training: use graphs, with their backward pass, in training mode. The gradients of a batch are
            overwritten by the backward pass of the next one, so they cannot be accumulated.
    """
    modes = {mode for mode, used in ((False, inference), (True, training)) if used}
    if not modes:
        return
    FeatureGraphs(model, modes, backend()).attach()
