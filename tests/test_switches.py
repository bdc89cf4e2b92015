import pytest

from gn_det import GNDetError
from gn_det.config import check_config, load_config
from gn_det.metrics import storage_key

PERIOD = ("TEST.EVAL_PERIOD", 10)
BEST = ("TRAIN.BEST", True)


def config(*opts):
    return load_config("quickstart_R18_FPN_gn_scratch", [str(word) for word in opts])


MISTAKES = {
    "best without evaluations": (BEST, "TRAIN.BEST is True, but TEST.EVAL_PERIOD is 0"),
    "early stop without evaluations": (("TRAIN.EARLY_STOP.PATIENCE", 3), "PATIENCE is 3, but TEST.EVAL_PERIOD is 0"),
    "best without a test set": (
        (*BEST, *PERIOD, "DATASETS.TEST", "()"),
        "TRAIN.BEST is True, but nothing is evaluated",
    ),
    "unknown metric": (
        (*BEST, *PERIOD, "TRAIN.METRIC", "segm/ap5"),
        r"TRAIN.METRIC is 'segm/ap5'.*did you mean 'segm/AP",
    ),
    "metric of a class that is not there": (
        (*BEST, *PERIOD, "TRAIN.METRIC", "bbox/AP-circl"),
        "did you mean 'bbox/AP-circle'",
    ),
    "mask metric without masks": (
        (*BEST, *PERIOD, "TRAIN.METRIC", "segm/AP", "MODEL.MASK_ON", False),
        "TRAIN.METRIC is 'segm/AP', which no evaluation here gives",
    ),
    "negative patience": (("TRAIN.EARLY_STOP.PATIENCE", -1), "TRAIN.EARLY_STOP.PATIENCE is -1"),
    "no patience": (("TRAIN.EARLY_STOP.PATIENCE", "None"), "TRAIN.EARLY_STOP.PATIENCE is None"),
    "negative gain": (("TRAIN.EARLY_STOP.MIN_DELTA", -0.5), "TRAIN.EARLY_STOP.MIN_DELTA is -0.5"),
    "gain that is no number": (("TRAIN.EARLY_STOP.MIN_DELTA", "1e400"), "MIN_DELTA is inf"),
    "negative pictures": (("TRAIN.PICTURES", -1), "TRAIN.PICTURES is -1"),
    "decay of 1": (("TRAIN.EMA.ENABLED", True, "TRAIN.EMA.DECAY", 1.0), "TRAIN.EMA.DECAY is 1.0"),
    "decay of 0": (("TRAIN.EMA.ENABLED", True, "TRAIN.EMA.DECAY", 0.0), "TRAIN.EMA.DECAY is 0.0"),
    "two ways to batch norm's statistics": (
        ("TRAIN.EMA.ENABLED", True, "TEST.PRECISE_BN.ENABLED", True),
        "set one of them to False",
    ),
    "reference that does not divide": (
        ("SOLVER.REFERENCE_WORLD_SIZE", 3),
        "3, which does not divide SOLVER.IMS_PER_BATCH 4",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name):
    opts, sentence = MISTAKES[name]
    with pytest.raises(GNDetError, match=sentence) as error:
        check_config(config(*opts))
    assert "\n" not in str(error.value)


def test_wandb_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GNDetError, match="wandb is not installed: pip install wandb"):
        check_config(config("TRAIN.WANDB.ENABLED", True))


def test_all_is_off_by_default_and_can_be_on():
    check_config(config())
    every = (*BEST, *PERIOD, "TRAIN.EARLY_STOP.PATIENCE", 2, "TRAIN.EMA.ENABLED", True)
    for metric in ("bbox/AP", "segm/AP50", "segm/ARl", "bbox/AP-triangle"):
        check_config(config(*every, "TRAIN.METRIC", metric))
    check_config(config("TRAIN.METRIC", "nonsense"))  # nobody reads it
    check_config(config(*BEST, "MODEL.WEIGHTS", "x"), eval_only=True)


def test_the_metric_of_several_test_sets_is_the_firsts():
    assert storage_key(config()) == "bbox/AP"
    assert storage_key(config("DATASETS.TEST", "('shapes_val', 'shapes_train')")) == "shapes_val/bbox/AP"
