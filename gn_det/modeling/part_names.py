"""The part of an R-CNN that a parameter belongs to, and the config key of that part's norm."""

# Prefix of a name in the state dict, the part, and the key of its norm or "". The longest prefix that fits counts.
PARTS = (
    ("backbone.", "backbone", "MODEL.RESNETS.NORM"),
    ("stem.", "backbone", "MODEL.RESNETS.NORM"),  # a ResNet alone
    ("res", "backbone", "MODEL.RESNETS.NORM"),
    ("backbone.fpn_", "FPN", "MODEL.FPN.NORM"),
    ("backbone.top_block.", "FPN", "MODEL.FPN.NORM"),
    ("proposal_generator.", "RPN", ""),
    ("roi_heads.res5.", "C4 head", "MODEL.RESNETS.NORM"),
    ("roi_heads.box_head.", "box head", "MODEL.ROI_BOX_HEAD.NORM"),
    ("roi_heads.box_predictor.", "box predictor", ""),
    ("roi_heads.mask_head.", "mask head", "MODEL.ROI_MASK_HEAD.NORM"),
    ("roi_heads.mask_head.predictor.", "mask predictor", ""),
    ("roi_heads.keypoint_", "keypoint head", ""),
)


def part_of(name: str) -> str:
    """Return the part that a parameter or module belongs to, by its name in the model.

    Returns:
        "box head" for ``roi_heads.box_head.conv1.weight``; the first component of a name that fits no known part.
    """
    fitting = [(prefix, part) for prefix, part, _ in PARTS if f"{name}.".startswith(prefix)]
    return max(fitting, key=lambda row: len(row[0]))[1] if fitting else name.split(".")[0]


def norm_keys(part: str) -> list[str]:
    """The config keys of the norm of a part; [] for a part without one."""
    return list(dict.fromkeys(key for _, known, key in PARTS if known == part and key))
