import pytest
import torch
import yaml
from detectron2.config import CfgNode

from gn_det.benchmark import operations
from gn_det.benchmark.gpu import session as session_module
from gn_det.benchmark.gpu.candidates import save_weights
from gn_det.benchmark.gpu.data import register, register_in_worker, test_images, training_loader
from gn_det.benchmark.gpu.session import Session
from gn_det.benchmark.gpu.stage import benchmark_config
from gn_det.benchmark.gpu.worker import run_command
from gn_det.config.files import load_config
from gn_det.data.shapes import generate
from helpers.configs import SMALL

test_images.__test__ = False  # not a test


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """(config, weights of GN, data) of a small dataset of images of different sizes."""
    folder = tmp_path_factory.mktemp("benchmark")
    cfg = load_config("quickstart_R18_FPN_gn_scratch")
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(SMALL)))
    sizes = ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96]
    cfg.merge_from_list([*sizes, "DATALOADER.NUM_WORKERS", 0, "SEED", 3])
    json_file, images = generate(folder / "shapes", num_train=6, num_val=1, size=64, max_size=96)["train"]
    cfg = benchmark_config(cfg)
    data = register(cfg, folder, str(json_file), str(images))
    for norm in ("GN", "FrozenBN"):
        save_weights(cfg, norm, test_images(cfg, 1), folder / f"{norm}.pth")
    return cfg, folder, data


def open_session(benchmark, name: str, norm: str = "GN") -> Session:
    cfg, folder, _ = benchmark
    return Session(name, cfg, folder / f"{norm}.pth")


@pytest.mark.parametrize(("name", "norm"), [("stock fp32", "GN"), ("gn_det bf16 channels_last", "GN"),
                                            ("BN* stock bf16 channels_last", "FrozenBN")])  # fmt: skip
def test_a_session_starts_trains_and_predicts(benchmark, name, norm):
    session = open_session(benchmark, name, norm)
    start = session.start(batch=2, iterations=2)
    assert 0 < start["built"] < start["first_iteration"] < start["seconds"] and start["reserved"] is None
    assert run_command(session, {"do": "profile", "what": "train", "iterations": 1}) == {"result": None}
    row = session.train(batch=3, iterations=1, warmup=1)
    assert 0 < row["waiting"] < row["seconds"] and row["peak"] is None and 0 < row["foreground"] <= 24
    assert session.predict(iterations=2, warmup=1, images=2)["seconds"] > 0
    session.release()
    assert session._predictor is None


def test_outputs_of_gn_det_equal_those_of_stock(benchmark, tmp_path):
    for name, save in (("stock fp32", True), ("gn_det fp32", False)):
        session = open_session(benchmark, name)
        assert session.predict(iterations=1, warmup=0, images=2)["detections"] > 0
        difference = session.compare(str(tmp_path / "outputs.pth"), 2, save)
    assert difference["equal"]


def test_tf32_is_off_only_for_the_comparison_of_outputs():
    before = torch.backends.cudnn.allow_tf32
    with session_module._without_tf32():
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_all_candidates_train_on_the_same_images(benchmark):
    cfg = benchmark[0]
    names = []
    for _ in range(2):
        batches = iter(training_loader(cfg, batch=2, seed=5))
        names.append([(image["file_name"], image["image"].shape) for _ in range(5) for image in next(batches)])
    assert names[0] == names[1] and len(set(names[0])) > 1


def test_random_weights_give_as_many_foreground_rois_as_the_config_allows(benchmark):
    cfg, *rest = benchmark
    cfg = cfg.clone()
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 500
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 128
    session = open_session((cfg, *rest), "stock fp32")
    session.start(batch=2, iterations=1)
    allowed = 2 * 128 * cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION
    assert session.train(batch=2, iterations=1, warmup=0)["foreground"] >= 0.8 * allowed


def test_an_error_in_a_command_is_an_answer(benchmark):
    session = open_session(benchmark, "stock fp32")
    assert run_command(session, {"do": "train", "batch": 2, "iterations": 1, "warmup": 0}) == {
        "error": "AssertionError: start comes first"
    }


def test_operations_are_timed_in_bfloat16_and_channels_last(benchmark, monkeypatch):
    monkeypatch.setattr(operations, "_MIN_SECONDS", 0.0)
    session = open_session(benchmark, "gn_det bf16 channels_last")
    record = session.operations(height=64, width=96, batch=1, repeats=1)
    assert {row["variant"] for row in record["rows"]} == {"bfloat16 channels_last"} and len(record["rows"]) == 24


def test_the_dataset_is_registered_again_in_another_process(benchmark):
    cfg, _, data = benchmark
    before = test_images(cfg, 2)
    register_in_worker(data)
    assert [image["file_name"] for image in test_images(cfg, 2)] == [image["file_name"] for image in before]
    assert data["source"].endswith("train.json, read by detectron2's training loader")
