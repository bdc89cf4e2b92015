"""Map the name of a parameter to its part of an R-CNN, and each part to the config key of its norm."""

# Prefix of names in the state dict, part, and config key of its norm or "". The longest match counts.
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
    """Return the part that a parameter or module belongs to, given its name in the model.

    For example, ``roi_heads.box_head.conv1.weight`` belongs to the "box head". If no part is known, the
    first component of the name is returned.
    """
    matches = [(prefix, part) for prefix, part, _ in PARTS if f"{name}.".startswith(prefix)]
    return max(matches, key=lambda row: len(row[0]))[1] if matches else name.split(".")[0]


def norm_keys(part: str) -> list[str]:
    """Return the config keys of the norm of a part; an empty list if it has no norm."""
    return list(dict.fromkeys(key for _, known, key in PARTS if known == part and key))
