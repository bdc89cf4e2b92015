"""CUDA graphs: what is captured, kept and dropped, with a fake capture; on a GPU, outputs equal those without graphs."""

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from gn_det.acceleration import cuda_graphs
from gn_det.acceleration.cuda_graphs import GraphCache, key_of, use_cuda_graphs
from gn_det.acceleration.inference import apply_model_options
from gn_det.modeling.padding import ignore_padding

R18 = "quickstart_R18_FPN_gn_scratch"


class FakeGraph:
    """Runs the function on a copy of the images, and counts its replays."""

    def __init__(self, function: Callable, images: torch.Tensor, pool: object):
        self.function, self.images, self.pool, self.replays = function, images.clone(), pool or object(), 0

    def __call__(self, images: torch.Tensor) -> object:
        self.replays += 1
        return self.function(self.images.copy_(images))

    def __deepcopy__(self, memo: dict) -> None:
        raise TypeError("a CUDA graph cannot be copied")


class FakeBackend:
    """Captures on a CPU; ``fails`` is the error of a capture."""

    def __init__(self, memory: bool = True, fails: Exception | None = None):
        self.memory, self.fails, self.graphs, self.pools = memory, fails, [], []

    def __deepcopy__(self, memo: dict) -> "FakeBackend":
        return self

    def supports(self, images: torch.Tensor) -> bool:
        return True

    def has_memory(self, device: torch.device) -> bool:
        return self.memory

    def capture(self, function, modules, images, training, pool) -> FakeGraph:
        assert not torch.is_autocast_cache_enabled()
        if self.fails:
            raise self.fails
        self.pools.append(pool)
        self.graphs.append(FakeGraph(function, images, pool))
        return self.graphs[-1]

    @property
    def replays(self) -> list[int]:
        return [graph.replays for graph in self.graphs]


@pytest.fixture
def make(tiny_cfg):
    """Return a function that builds a small model with fake graphs, and its backend."""

    def build(inference: bool = True, training: bool = False, padding: bool = False, **fake) -> tuple:
        model = build_model(tiny_cfg(R18)).eval()
        if padding:
            ignore_padding(model)
        backend = FakeBackend(**fake)
        use_cuda_graphs(model, inference=inference, training=training, backend=lambda: backend)
        return model, backend

    return build


@torch.no_grad()
def detect(model: nn.Module, images: list[dict], times: int = 1) -> list:
    return [model(images) for _ in range(times)][-1]


def same(one: list, other: list) -> bool:
    """Compare the detections of a batch bit by bit."""
    pairs = [(a["instances"], b["instances"]) for a, b in zip(one, other, strict=True)]
    return all(
        torch.equal(a.scores, b.scores) and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor) for a, b in pairs
    )


def test_a_size_is_captured_at_its_third_use_and_replayed(make, batch):
    model, backend = make()
    wide, high = batch(1), batch(1, height=128, width=96)
    expected = detect(model, wide), detect(model, high)
    assert not backend.graphs and not same(*expected)
    detect(model, wide)
    assert not backend.graphs
    assert same(detect(model, wide, 3), expected[0]) and backend.replays == [3]
    assert same(detect(model, high, 2), expected[1]) and backend.replays == [3, 1]
    assert backend.pools == [None, backend.graphs[0].pool]  # graphs share memory


def test_the_head_is_part_of_the_graph(make, batch):
    model, backend = make()
    calls = []
    detect(model, batch(1), 3)
    (graph,) = backend.graphs
    with torch.no_grad():
        outputs = graph(graph.images)
    graph.function = lambda images: outputs  # a graph runs no Python code
    model.proposal_generator.rpn_head.conv.register_forward_hook(lambda *_: calls.append(1))
    detect(model, batch(1))
    assert not calls
    with torch.no_grad():
        features = model.backbone(torch.zeros(1, 3, 96, 128))
        other = model.proposal_generator.rpn_head([feature.clone() for feature in features.values()])
    assert calls and other[0][0].shape[0] == 1  # features of another origin: the head runs


@pytest.mark.parametrize("padding", [True, False])
def test_images_of_different_sizes_run_without_graphs_if_the_padding_is_ignored(make, batch, padding):
    model, backend = make(padding=padding)
    mixed = batch(1) + batch(1, height=64, width=64)
    detect(model, mixed, 4)
    assert backend.replays == ([] if padding else [2])
    detect(model, batch(1, 1), 4)
    assert backend.replays == ([2] if padding else [6])  # the batch has the same padded size


def test_gradients_and_training_run_without_graphs_of_inference(make, batch):
    model, backend = make(inference=True)
    for _ in range(4):
        model(batch(1))
    model.train()
    with EventStorage():
        for _ in range(4):
            model(batch(1, 2, classes=3))
    assert not backend.graphs


def test_training_has_graphs_and_the_same_losses(make, batch):
    model, backend = make(inference=False, training=True)
    images = batch(1, 2, classes=3)
    model.train()

    def losses() -> dict:
        torch.manual_seed(1)
        with EventStorage():
            found = model(images)
        sum(found.values()).backward()
        return found

    expected = losses()
    assert all(torch.equal(losses()[name], expected[name]) for _ in range(3) for name in expected)
    assert len(backend.graphs) == 1 and backend.replays[0] > 0
    detect(model.eval(), images, 4)
    assert len(backend.graphs) == 1


def test_precision_mode_and_layout_have_graphs_of_their_own():
    images = torch.zeros(2, 3, 64, 64)
    keys = [key_of(images), key_of(images.contiguous(memory_format=torch.channels_last)), key_of(images.double())]
    with torch.autocast("cpu", torch.bfloat16):
        keys.append(key_of(images))
    with torch.inference_mode():
        keys.append(key_of(images))
    assert len(set(keys)) == 5 and key_of(images.clone()) == keys[0]


def test_moved_weights_drop_the_graphs(make, batch):
    model, backend = make()
    detect(model, batch(1), 3)
    old = [parameter.data for parameter in model.parameters()]  # so that the memory is not used again
    model.proposal_generator.rpn_head.double().float()
    detect(model, batch(1))
    assert len(backend.graphs) == 2
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    detect(model, batch(1))
    assert len(backend.graphs) == 3 and old


def test_a_copy_of_a_model_captures_its_own_graphs(make, batch):
    model, backend = make()
    images = batch(1)
    detect(model, images, 3)
    other = copy.deepcopy(model)
    assert other.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        for parameter in other.backbone.parameters():
            parameter.mul_(1.1)
    expected = detect(other, images)
    assert same(detect(other, images, 3), expected) and not same(expected, detect(model, images))
    assert len(backend.graphs) == 2 and backend.pools == [None, None]


@pytest.mark.parametrize("fake", [{"memory": False}, {"fails": RuntimeError("CUDA error:\nnot permitted")}])
def test_short_memory_and_failed_captures_end_the_captures_with_a_warning(make, batch, caplog, fake):
    model, backend = make(**fake)
    expected = detect(model, batch(0))
    with caplog.at_level(logging.WARNING, "gn_det"):
        detect(model, batch(1), 5), detect(model, batch(1, 1), 5)
    assert len(caplog.records) == 1 and "No more CUDA graphs" in caplog.text and not backend.graphs
    assert ("memory is short" if "memory" in fake else "CUDA error: not permitted") in caplog.text
    assert len(expected) == 1


def test_the_cache_replaces_the_least_recently_used_by_more_frequent_sizes():
    cache = GraphCache(2)
    graph = FakeGraph(len, torch.zeros(1), None)
    for key in "aab":
        for _ in range(3):
            cache.use(key)
        if cache.admits(key):
            cache.make_room()
            cache.add(key, graph)
    assert len(cache) == 2
    assert cache.use("c") is None and not cache.admits("c")
    for _ in range(2):
        cache.use("c")
    assert not cache.admits("c")  # as often as b, but not more often than a, the least recently used
    for _ in range(4):
        cache.use("c")
    assert cache.admits("c")
    cache.use("a")  # b is the least recently used now
    cache.make_room()
    cache.add("c", graph)
    assert cache.use("a") and cache.use("c") and not cache.use("b")


def test_many_sizes_in_turn_are_not_captured_each_time(make, batch, monkeypatch):
    monkeypatch.setitem(cuda_graphs._CAPACITY, False, 2)
    model, backend = make()
    sizes = [batch(1, height=height, width=64) for height in (32, 64, 96)]
    for _ in range(6):
        for images in sizes:
            detect(model, images)
    assert len(backend.graphs) <= 3


def test_batches_on_a_cpu_run_as_before(tiny_cfg, batch):
    model = build_model(tiny_cfg(R18)).eval()
    expected = detect(model, batch(1))
    torch.manual_seed(0)
    use_cuda_graphs(model, inference=True, training=True)
    images = batch(1)
    assert same(detect(model, images), detect(model, images, 4)) and len(expected) == 1


@pytest.mark.parametrize(
    ("inference", "training", "for_training", "modes"),
    [(True, True, True, {False, True}), (True, True, False, {False}), (False, True, True, {True})],
)
def test_keys_of_the_config_select_the_modes(tiny_cfg, inference, training, for_training, modes):
    """The device "meta" stands for a GPU."""
    cfg = tiny_cfg(R18, "INFERENCE.CUDA_GRAPHS", inference, "TRAIN.CUDA_GRAPHS", training)
    model = apply_model_options(cfg, build_model(cfg).to("meta"), for_training)
    assert model.backbone.forward.__self__._caches.keys() == modes
    for changed in (apply_model_options(cfg, build_model(cfg), for_training), build_model(tiny_cfg(R18)).to("meta")):
        assert getattr(changed.backbone.forward, "__name__", "") != "run_backbone"


def test_models_without_an_rpn_have_graphs_of_the_backbone(tiny_cfg):
    model = build_model(tiny_cfg(R18, "MODEL.META_ARCHITECTURE", "ProposalNetwork")).eval()
    model.proposal_generator = None
    backend = FakeBackend()
    use_cuda_graphs(model, inference=True, training=False, backend=lambda: backend)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.backbone(images)
        found = [model.backbone(images) for _ in range(3)][-1]
    assert backend.replays == [2] and all(torch.equal(found[name], expected[name]) for name in expected)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_graphs_on_a_gpu_give_the_same_features(tiny_cfg, dtype):
    cfg = tiny_cfg(R18, "MODEL.DEVICE", "cuda")
    model = apply_model_options(cfg, build_model(cfg)).eval()
    batches = [torch.randn(1, 3, height, 128, device="cuda") for height in (64, 96)]

    def features() -> list[torch.Tensor]:
        with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype is not None):
            return [value.clone() for images in batches for value in model.backbone(images).values()]

    expected = features()
    use_cuda_graphs(model, inference=True, training=False)
    for _ in range(5):
        found = features()
    graphs = model.backbone.forward.__self__
    assert len(graphs._caches[False]) == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@needs_gpu
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_graphs_on_a_gpu_give_the_same_gradients(tiny_cfg, batch, dtype):
    cfg = tiny_cfg(R18, "MODEL.DEVICE", "cuda")
    model = apply_model_options(cfg, build_model(cfg), for_training=True).train()
    images = [sample | {"instances": sample["instances"].to("cuda")} for sample in batch(1, 2, classes=3)]

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model.zero_grad()
        with EventStorage(), torch.autocast("cuda", dtype, enabled=dtype is not None):
            losses = model(images)
        sum(losses.values()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    expected = gradients()
    use_cuda_graphs(model, inference=False, training=True)
    for _ in range(5):
        found = gradients()
    assert len(model.backbone.forward.__self__._caches[True]) == 1
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-2 * gradient.norm() + 1e-6, name
