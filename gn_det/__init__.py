"""Group Normalization (Wu & He, ECCV 2018, arXiv 1803.08494) for detectron2.

Importing the package registers its backbones and heads with detectron2.
"""

try:
    import detectron2
except ImportError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "gn_det needs detectron2, which is not on PyPI: install it from https://github.com/facebookresearch/detectron2 "
        "or conda-forge, or run 'make demo' in gn_det's checkout, which installs one (see packaging/README.md)."
    ) from None

from .quiet import quiet

with quiet():
    import detectron2.modeling  # noqa: F401

from . import _moved, model_zoo  # noqa: F401
from .config.checks import check_config  # noqa: F401
from .config.defaults import add_gn_det_config, get_cfg  # noqa: F401
from .data import coco  # noqa: F401
from .errors import GNDetError  # noqa: F401
from .modeling.backbone import build_gn_resnet_backbone, build_gn_resnet_fpn_backbone  # noqa: F401
from .modeling.roi_heads import FastRCNN4Conv1FCGNHead, MaskRCNNConvUpsampleGNHead, Res5GNROIHeads  # noqa: F401
from .prediction.predictor import Prediction, Predictor  # noqa: F401

_moved.install()

__version__ = "0.1.0"
