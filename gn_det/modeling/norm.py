"""Build the normalization layers that a config names (GN, LN, IN, BN and its variants).

Shapes: N samples, C channels, G groups, H x W pixels. For x (N, C, H, W), every norm computes
y = gamma * (x - mu) / sqrt(var + eps) + beta (Eq. 1, 2 and 6 of the paper, arXiv 1803.08494). The norms
differ in the set of values over which mu and var are computed.
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
from ..ops.padding import within_rectangles

# detectron2's config keys for the norms of the parts of a model.
NORM_KEYS = ("MODEL.RESNETS.NORM", "MODEL.FPN.NORM", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM")
# GN and its two extreme cases. They are computed per sample, so they do not depend on the batch.
PER_SAMPLE = ("GN", "LN", "IN")
# FrozenBN is the paper's BN*. The last three are detectron2's variants of SyncBN.
NORMS = (*PER_SAMPLE, "BN", "SyncBN", "FrozenBN", "", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


def get_key(cfg: CfgNode, key: str):
    """Return the value of a dotted key, as in ``get_key(cfg, "MODEL.FPN.NORM")``."""
    return functools.reduce(getattr, key.split("."), cfg)


def num_groups(gn: CfgNode, norm: str, channels: int) -> int | None:
    """Return the number of groups G of a layer with C channels, or None if the groups do not divide C.

    It is ``MODEL.GN.NUM_GROUPS`` or C / ``MODEL.GN.CHANNELS_PER_GROUP`` for GN (Eq. 7 and the two panels
    of Table 3), 1 for LN (Eq. 4) and C for IN (Eq. 5).

    Args:
        gn: the config node ``MODEL.GN``.
        norm: "GN", "LN" or "IN".
        channels: C.
    """
    if norm != "GN":
        return {"LN": 1, "IN": channels}[norm]
    by_number = gn.NUM_GROUPS > 0
    groups, rest = divmod(channels, gn.NUM_GROUPS if by_number else gn.CHANNELS_PER_GROUP)
    return None if rest else gn.NUM_GROUPS if by_number else groups


def norm_layer(cfg: CfgNode, key: str) -> str | Callable[[int], nn.Module]:
    """Return a function that builds a layer of the norm ``cfg.<key>``, for detectron2's builders.

    Returns:
        a function from the number of channels to an ``nn.Module``, or "" for no norm. (detectron2's
        builders compare the norm with "" to decide whether a convolution has a bias.) GN, LN and IN are
        all an ``nn.GroupNorm``, which type checks, state dicts and exporters know. If the groups do not
        divide the channels, the function returns a placeholder; :func:`check_groups` finds it and raises
        an error with the name of the layer.

    Raises:
        GNDetError: the norm is unknown, or not exactly one of the two group keys is set.
    """
    norm = get_key(cfg, key)
    if callable(norm):  # with_norms has already replaced it
        return norm
    check_norm(cfg, key)
    if norm == "SyncBN" and comm.get_world_size() > 1 and cfg.MODEL.DEVICE == "cpu":
        norm = "naiveSyncBN"  # nn.SyncBatchNorm cannot synchronize processes on CPUs
    if norm not in PER_SAMPLE:
        return norm and functools.partial(get_norm, norm)

    def group_norm(channels: int) -> nn.Module:
        groups = num_groups(cfg.MODEL.GN, norm, channels)
        if groups is None:
            return _IndivisibleChannels(channels, f"{key} is {norm}", cfg.MODEL.GN)
        layer = GroupNorm(groups, channels, eps=cfg.MODEL.GN.EPS)
        layer.uses_group_keys = norm == "GN"
        return layer

    return group_norm


def check_norm(cfg: CfgNode, key: str) -> None:
    """Check that ``cfg.<key>`` is a norm and that the ``MODEL.GN`` keys suit it.

    Raises:
        GNDetError: the norm is unknown, a ``MODEL.GN`` key has an invalid value, or the norm is GN and
            not exactly one of the two group keys is set.
    """
    norm = get_key(cfg, key)
    if norm not in NORMS:
        raise GNDetError(f"{key} is {norm!r}, which is not a known norm{did_you_mean(norm, NORMS)}.")
    for name in ("NUM_GROUPS", "CHANNELS_PER_GROUP", "EPS"):
        if cfg.MODEL.GN[name] is None:
            raise GNDetError(
                f"MODEL.GN.{name} is None; it must be a number (-1 turns off NUM_GROUPS or CHANNELS_PER_GROUP)."
            )
    groups, per_group = cfg.MODEL.GN.NUM_GROUPS, cfg.MODEL.GN.CHANNELS_PER_GROUP
    if norm == "GN" and (groups > 0) == (per_group > 0):
        raise GNDetError(
            f"MODEL.GN.NUM_GROUPS is {groups} and MODEL.GN.CHANNELS_PER_GROUP is {per_group}: exactly one of them must be "
            "above 0, so set the other to -1."
        )
    if cfg.MODEL.GN.EPS <= 0:
        raise GNDetError(f"MODEL.GN.EPS is {cfg.MODEL.GN.EPS}; it must be above 0 (the paper uses 1e-5).")


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm that also accepts groups of a single value (IN on a 1x1 map), for which y = beta."""

    uses_group_keys = True  # False for LN and IN, whose groups do not depend on the MODEL.GN keys

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalized x (N, C, H, W), in the same shape; N may be 0.

        The padding of a batch is left out, and becomes 0, within :func:`gn_det.ops.padding.extents_in_use`.
        """
        if torch.jit.is_scripting():
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        else:  # noqa: RET505 - an explicit else, so that TorchScript does not compile it
            return within_rectangles(self._normalize, x)

    @torch.jit.unused
    def _normalize(self, x: torch.Tensor, _: torch.Tensor | None = None) -> torch.Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class _IndivisibleChannels(nn.Module):
    """Placeholder for a norm whose groups do not divide its channels; check_groups raises the error."""

    def __init__(self, channels: int, setting: str, gn: CfgNode):
        super().__init__()
        self.channels, self.setting, self.gn = channels, setting, gn


def check_groups(module: nn.Module, name: str) -> None:
    """Check that the groups divide the channels of every norm in ``module``.

    Args:
        name: the name of the module in the model, such as "backbone".

    Raises:
        GNDetError: the groups do not divide the channels of a layer. The message names the layer, its
            channels, the config key, and the nearest values that suit all layers.
    """
    bad = [(n.removesuffix(".norm"), m) for n, m in module.named_modules() if isinstance(m, _IndivisibleChannels)]
    if not bad:
        return
    layer, first = bad[0]
    key = "NUM_GROUPS" if first.gn.NUM_GROUPS > 0 else "CHANNELS_PER_GROUP"
    value = first.gn[key]
    # Propose values that suit all layers, so that the next run does not stop at another layer.
    good = {m.num_channels for m in module.modules() if isinstance(m, GroupNorm) and m.uses_group_keys}
    channels = good | {m.channels for _, m in bad}
    works = [d for d in range(1, first.channels + 1) if all(c % d == 0 for c in channels)]
    below, above = [d for d in works if d < value], [d for d in works if d > value]
    nearest = " or ".join(str(d) for d in below[-1:] + above[:1])
    others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    raise GNDetError(
        f"{name}.{layer}{others} has {first.channels} channels, which MODEL.GN.{key} {value} does not divide "
        f"({first.setting}): set MODEL.GN.{key} to {nearest}."
    )


def with_norms(cfg: CfgNode) -> CfgNode:
    """Return a copy of ``cfg`` in which the value of each norm key is its :func:`norm_layer`.

    detectron2's builders pass these values to ``get_norm``, which accepts a function as well as a name.
    So the builders can create the paper's norms without a copy of their code. The returned config is
    for builders only.
    """
    copy = cfg.clone()
    for key in NORM_KEYS:
        node, name = key.rsplit(".", 1)
        # CfgNode does not allow functions as attributes, so the item is set directly.
        dict.__setitem__(get_key(copy, node), name, norm_layer(cfg, key))
    return copy


def zero_init_residual(module: nn.Module) -> None:
    """Set the scale of the last norm of every residual block to 0 (Section 4.1 of the paper).

    Each block is then the identity at the start of training. The paper does this on ImageNet;
    Detectron's COCO models from scratch do not.
    """
    for block in module.modules():
        if isinstance(block, BasicBlock | BottleneckBlock):
            last = block.conv2.norm if isinstance(block, BasicBlock) else block.conv3.norm
            weight = getattr(last, "weight", None)
            if isinstance(weight, nn.Parameter):
                nn.init.zeros_(weight)


def is_norm(module: nn.Module) -> bool:
    """Return whether the module is a norm of any library, by the word "norm" in its class name."""
    return "norm" in type(module).__name__.lower()


_CONFIG_NAMES = {
    "BatchNorm2d": "BN",
    "SyncBatchNorm": "SyncBN",
    "NaiveSyncBatchNorm": "SyncBN",
    "FrozenBatchNorm2d": "FrozenBN",
}


def norm_name(module: nn.Module) -> str:
    """Return the config name of a norm, such as "GN", or the class name of a norm of another library.

    GN, LN and IN are all an ``nn.GroupNorm``; their groups distinguish them.
    """
    if isinstance(module, nn.GroupNorm):
        return "GN" if getattr(module, "uses_group_keys", True) else "LN" if module.num_groups == 1 else "IN"
    return _CONFIG_NAMES.get(type(module).__name__, type(module).__name__)


def norm_parameters(model: nn.Module) -> set[torch.nn.Parameter]:
    """Return the scales and shifts of all norms in the model."""
    return {p for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)}
