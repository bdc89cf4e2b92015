"""The norm that a config names, as detectron2 wants it: a callable from channels to a module.

Shapes: N samples, C channels, G groups, H x W pixels. For x of (N, C, H, W) every norm here computes
y = gamma * (x - mu) / sqrt(var + eps) + beta (Eq. 1, 2, 6 of the paper, arXiv 1803.08494); they differ in the set over
which mu and var are taken.
"""

import functools
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from detectron2.utils import comm
from torch import nn

from ..errors import GNDetError, did_you_mean

# Where detectron2 keeps the norm of a part.
NORM_KEYS = ("MODEL.RESNETS.NORM", "MODEL.FPN.NORM", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM")
# What is computed within one sample, and so does not see the batch: the paper's GN and its two extreme cases.
PER_SAMPLE = ("GN", "LN", "IN")
# FrozenBN is the paper's BN*. The last three are detectron2's own variants of SyncBN.
NORMS = (*PER_SAMPLE, "BN", "SyncBN", "FrozenBN", "", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


def get_key(cfg: CfgNode, key: str):
    """The value of a dotted key: ``get_key(cfg, "MODEL.FPN.NORM")``."""
    return functools.reduce(getattr, key.split("."), cfg)


def num_groups(gn: CfgNode, norm: str, channels: int) -> int | None:
    """G for a layer of C channels, or None where the groups do not divide them.

    GN (Eq. 7): ``MODEL.GN.NUM_GROUPS``, or C / ``MODEL.GN.CHANNELS_PER_GROUP`` (the two panels of Table 3);
    LN (Eq. 4): 1; IN (Eq. 5): C.

    Args:
        gn: the node ``MODEL.GN``.
    """
    if norm != "GN":
        return {"LN": 1, "IN": channels}[norm]
    by_number = gn.NUM_GROUPS > 0
    groups, rest = divmod(channels, gn.NUM_GROUPS if by_number else gn.CHANNELS_PER_GROUP)
    return None if rest else gn.NUM_GROUPS if by_number else groups


def norm_layer(cfg: CfgNode, key: str) -> str | Callable[[int], nn.Module]:
    """What the part whose norm is ``cfg.<key>`` hands to detectron2.

    Returns:
        a callable(channels) -> nn.Module, or "" for no norm (which detectron2's builders compare with "" to decide
        on the convolution's bias). GN, LN and IN are all an ``nn.GroupNorm``: type checks, state dicts and exporters see
        the module they know. A layer that the groups do not divide becomes a placeholder, which
        :func:`check_groups` turns into a sentence with the layer's name.

    Raises:
        GNDetError: the norm is unknown, or both or neither of the group keys are in force.
    """
    norm = get_key(cfg, key)
    if callable(norm):  # a config that went through with_norms already
        return norm
    check_norm(cfg, key)
    if norm == "SyncBN" and comm.get_world_size() > 1 and cfg.MODEL.DEVICE == "cpu":
        norm = "naiveSyncBN"  # nn.SyncBatchNorm has no CPU path between processes
    if norm not in PER_SAMPLE:
        return norm and functools.partial(get_norm, norm)

    def group_norm(channels: int) -> nn.Module:
        groups = num_groups(cfg.MODEL.GN, norm, channels)
        if groups is None:
            return _Undivided(channels, f"{key} is {norm}", cfg.MODEL.GN)
        layer = GroupNorm(groups, channels, eps=cfg.MODEL.GN.EPS)
        layer.follows_groups = norm == "GN"
        return layer

    return group_norm


def check_norm(cfg: CfgNode, key: str) -> None:
    """Raise GNDetError where ``cfg.<key>`` is no norm, or is GN with contradicting ``MODEL.GN`` keys."""
    norm = get_key(cfg, key)
    if norm not in NORMS:
        raise GNDetError(f"{key} is {norm!r}, which is no norm here{did_you_mean(norm, NORMS)}.")
    for name in ("NUM_GROUPS", "CHANNELS_PER_GROUP", "EPS"):
        if cfg.MODEL.GN[name] is None:
            raise GNDetError(f"MODEL.GN.{name} is None, and must be a number; -1 puts a group key out of force.")
    groups, per_group = cfg.MODEL.GN.NUM_GROUPS, cfg.MODEL.GN.CHANNELS_PER_GROUP
    if norm == "GN" and (groups > 0) == (per_group > 0):
        raise GNDetError(
            f"MODEL.GN.NUM_GROUPS is {groups} and MODEL.GN.CHANNELS_PER_GROUP is {per_group}: exactly one of them says how "
            "GN divides channels, so set the other to -1."
        )
    if cfg.MODEL.GN.EPS <= 0:
        raise GNDetError(f"MODEL.GN.EPS is {cfg.MODEL.GN.EPS}, and must be above 0; the paper's is 1e-5.")


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, also where a group is a single value (IN on a 1x1 map): that is its own mean, so y = beta."""

    follows_groups = True  # False for LN and IN, whose groups are not MODEL.GN's

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> the same; N may be 0."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class _Undivided(nn.Module):
    """Stands where a GroupNorm could not be built, until check_groups, which knows the layer's name, says so."""

    def __init__(self, channels: int, switch: str, gn: CfgNode):
        super().__init__()
        self.channels, self.switch, self.gn = channels, switch, gn


def check_groups(module: nn.Module, name: str) -> None:
    """Raise GNDetError, naming layer, channels and keys, where a layer of ``module`` is not divided by its groups.

    Args:
        name: what the module is called in the model, e.g. "backbone".
    """
    bad = [(n.removesuffix(".norm"), m) for n, m in module.named_modules() if isinstance(m, _Undivided)]
    if not bad:
        return
    layer, first = bad[0]
    key = "NUM_GROUPS" if first.gn.NUM_GROUPS > 0 else "CHANNELS_PER_GROUP"
    value = first.gn[key]
    # Values that every layer can do, so that the user is not sent from one layer to the next.
    good = {m.num_channels for m in module.modules() if isinstance(m, GroupNorm) and m.follows_groups}
    channels = good | {m.channels for _, m in bad}
    works = [d for d in range(1, first.channels + 1) if all(c % d == 0 for c in channels)]
    below, above = [d for d in works if d < value], [d for d in works if d > value]
    nearest = " or ".join(str(d) for d in below[-1:] + above[:1])
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    raise GNDetError(
        f"{name}.{layer}{more} has {first.channels} channels, which MODEL.GN.{key} {value} does not divide "
        f"({first.switch}): the nearest that does is {nearest}."
    )


def with_norms(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` in which each norm key holds :func:`norm_layer` of it.

    detectron2's builders pass these keys on to ``get_norm``, which takes a callable as well as a name. So they build
    the paper's norms as they are, without being copied here. Only builders see the copy.
    """
    copy = cfg.clone()
    for key in NORM_KEYS:
        node, name = key.rsplit(".", 1)
        # Not by attribute: CfgNode lets attributes be only what YAML can say.
        dict.__setitem__(get_key(copy, node), name, norm_layer(cfg, key))
    return copy


def zero_init_residual(module: nn.Module) -> None:
    """Set the scale of the last norm of every residual block in ``module`` to 0 (Section 4.1 of the paper).

    A block then starts as the identity. The paper does so for ImageNet; Detectron's COCO models from scratch do not.
    """
    for block in module.modules():
        if isinstance(block, BasicBlock | BottleneckBlock):
            last = block.conv2.norm if isinstance(block, BasicBlock) else block.conv3.norm
            weight = getattr(last, "weight", None)
            if isinstance(weight, nn.Parameter):
                nn.init.zeros_(weight)


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a normalisation layer, of whatever library: its class name says "Norm"."""
    return "norm" in type(module).__name__.lower()


_NAMES = {
    "BatchNorm2d": "BN",
    "SyncBatchNorm": "SyncBN",
    "NaiveSyncBatchNorm": "SyncBN",
    "FrozenBatchNorm2d": "FrozenBN",
}


def norm_name(module: nn.Module) -> str:
    """What a config calls the layer; GN, LN and IN are all an ``nn.GroupNorm``. One of elsewhere keeps its class's name."""
    if isinstance(module, nn.GroupNorm):
        return "GN" if getattr(module, "follows_groups", True) else "LN" if module.num_groups == 1 else "IN"
    return _NAMES.get(type(module).__name__, type(module).__name__)


def norm_parameters(model: nn.Module) -> set[torch.nn.Parameter]:
    """The scales and shifts of all norms in the model."""
    return {p for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)}
