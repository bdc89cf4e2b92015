"""check_config: each refusal of a training option (section TRAIN and SOLVER.AMP)."""

import pytest
from detectron2.utils import comm

from gn_det import GNDetError
from gn_det.config.checks import check_config
from gn_det.config.files import load_config
from gn_det.metrics import storage_key

PERIOD = ("TEST.EVAL_PERIOD", 10)
BEST = ("TRAIN.BEST", True)


def config(*opts):
    """Return the quick-start config with overrides."""
    return load_config("quickstart_R18_FPN_gn_scratch", [str(word) for word in opts])


MISTAKES = {
    "best without evaluations": (BEST, "TRAIN.BEST is True, but TEST.EVAL_PERIOD is 0"),
    "early stop without evaluations": (("TRAIN.EARLY_STOP.PATIENCE", 3), "PATIENCE is 3, but TEST.EVAL_PERIOD is 0"),
    "best without a test set": (
        (*BEST, *PERIOD, "DATASETS.TEST", "()"),
        "TRAIN.BEST is True, but the run has no test set: pass --val-json",
    ),
    "unknown metric": (
        (*BEST, *PERIOD, "TRAIN.METRIC", "segm/ap5"),
        r"TRAIN.METRIC is 'segm/ap5'.*did you mean 'segm/AP",
    ),
    "metric of an unknown class": (
        (*BEST, *PERIOD, "TRAIN.METRIC", "bbox/AP-circl"),
        "did you mean 'bbox/AP-circle'",
    ),
    "mask metric without masks": (
        (*BEST, *PERIOD, "TRAIN.METRIC", "segm/AP", "MODEL.MASK_ON", False),
        "TRAIN.METRIC is 'segm/AP', which the evaluations do not measure",
    ),
    "negative patience": (("TRAIN.EARLY_STOP.PATIENCE", -1), "TRAIN.EARLY_STOP.PATIENCE is -1"),
    "no patience": (("TRAIN.EARLY_STOP.PATIENCE", "None"), "TRAIN.EARLY_STOP.PATIENCE is None"),
    "negative improvement": (("TRAIN.EARLY_STOP.MIN_DELTA", -0.5), "TRAIN.EARLY_STOP.MIN_DELTA is -0.5"),
    "infinite improvement": (("TRAIN.EARLY_STOP.MIN_DELTA", "1e400"), "MIN_DELTA is inf"),
    "negative number of pictures": (("TRAIN.PICTURES", -1), "TRAIN.PICTURES is -1"),
    "decay of 1": (("TRAIN.EMA.ENABLED", True, "TRAIN.EMA.DECAY", 1.0), "TRAIN.EMA.DECAY is 1.0"),
    "decay of 0": (("TRAIN.EMA.ENABLED", True, "TRAIN.EMA.DECAY", 0.0), "TRAIN.EMA.DECAY is 0.0"),
    "EMA with precise BN": (
        ("TRAIN.EMA.ENABLED", True, "TEST.PRECISE_BN.ENABLED", True),
        "set one of them to False",
    ),
    "unknown precision": (
        ("SOLVER.AMP.ENABLED", True, "TRAIN.AMP_DTYPE", "half"),
        "TRAIN.AMP_DTYPE is 'half'; it must be bfloat16 or, on a GPU, float16",
    ),
    "no precision": (("SOLVER.AMP.ENABLED", True, "TRAIN.AMP_DTYPE", "None"), "TRAIN.AMP_DTYPE is None"),
    "float16 on a CPU": (
        ("SOLVER.AMP.ENABLED", True, "TRAIN.AMP_DTYPE", "float16", "MODEL.DEVICE", "cpu"),
        "TRAIN.AMP_DTYPE is float16, which needs a GPU, but MODEL.DEVICE is cpu",
    ),
    "parts that do not divide": (
        ("TRAIN.ACCUMULATE", 8, "SOLVER.IMS_PER_BATCH", 12),
        "8, which does not divide the 12 images .* SOLVER.IMS_PER_BATCH 12: use one of 1, 2, 3, 4, 6, 12",
    ),
    "more parts than images": (("TRAIN.ACCUMULATE", 8), "TRAIN.ACCUMULATE is 8, which does not divide the 4"),
    "no parts": (("TRAIN.ACCUMULATE", 0), "TRAIN.ACCUMULATE is 0, .* use one of 1, 2, 4"),
    "parts that are None": (("TRAIN.ACCUMULATE", "None"), "TRAIN.ACCUMULATE is None"),
    "parts of a scaled batch": (
        ("TRAIN.ACCUMULATE", 4, "SOLVER.REFERENCE_WORLD_SIZE", 2),
        "4, which does not divide the 2 images per process",
    ),
    "batch norm with recomputed activations": (
        ("TRAIN.CHECKPOINT_ACTIVATIONS", True, "MODEL.RESNETS.NORM", "BN"),
        "MODEL.RESNETS.NORM is BN, whose running statistics would count each batch twice",
    ),
    "reference world size that does not divide the batch": (
        ("SOLVER.REFERENCE_WORLD_SIZE", 3),
        "3, which does not divide SOLVER.IMS_PER_BATCH 4",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_reported_in_one_sentence(name):
    opts, sentence = MISTAKES[name]
    with pytest.raises(GNDetError, match=sentence) as error:
        check_config(config(*opts))
    assert "\n" not in str(error.value)


def test_wandb_must_be_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GNDetError, match="wandb is not installed: pip install wandb"):
        check_config(config("TRAIN.WANDB.ENABLED", True))


def test_options_are_off_by_default_and_can_be_combined():
    check_config(config())
    every = (*BEST, *PERIOD, "TRAIN.EARLY_STOP.PATIENCE", 2, "TRAIN.EMA.ENABLED", True)
    for metric in ("bbox/AP", "segm/AP50", "segm/ARl", "bbox/AP-triangle"):
        check_config(config(*every, "TRAIN.METRIC", metric))
    check_config(config("TRAIN.METRIC", "nonsense"))  # not used without TRAIN.BEST and TRAIN.EARLY_STOP
    check_config(config(*BEST, "MODEL.WEIGHTS", "x"), eval_only=True)
    for key in ("CHECKPOINT_ACTIVATIONS", "CHANNELS_LAST", "FEWER_SYNCS", "COMPILE"):
        every = (*every, f"TRAIN.{key}", True)
    every = (*every, "MODEL.GN.IGNORE_PADDING", False)  # TRAIN.COMPILE requires it
    check_config(config(*every, "SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cpu", "TRAIN.ACCUMULATE", 4))
    check_config(config("SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cuda", "TRAIN.AMP_DTYPE", "float16"))
    check_config(config("TRAIN.AMP_DTYPE", "nonsense"))


def test_accumulate_must_divide_the_images_of_one_process(monkeypatch):
    def check(processes, reference):
        monkeypatch.setattr(comm, "get_world_size", lambda: processes)
        check_config(config("TRAIN.ACCUMULATE", 2, "SOLVER.REFERENCE_WORLD_SIZE", reference))

    check(processes=2, reference=0)
    check(processes=4, reference=2)  # detectron2 scales the batch to 8: still 2 images per process
    with pytest.raises(GNDetError, match="does not divide the 1 images"):
        check(processes=4, reference=0)


def test_metric_is_that_of_the_first_test_set():
    assert storage_key(config()) == "bbox/AP"
    assert storage_key(config("DATASETS.TEST", "('shapes_val', 'shapes_train')")) == "shapes_val/bbox/AP"
