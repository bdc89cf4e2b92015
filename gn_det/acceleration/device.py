"""The choice between GPU and CPU."""

import torch

from ..errors import GNDetError


def choose_device(name: str | None = None, option: str = "The device") -> str:
    """Return the device that is asked for; without a name, a GPU where there is one, else the CPU.

    Args:
        name: "cpu", "cuda" or "cuda:N".
        option: what the user calls it, for the error: "MODEL.DEVICE", "--device".

    Raises:
        GNDetError: the name is no such device, or this machine does not have it.
    """
    gpus = torch.cuda.device_count()
    try:
        device = torch.device(name or ("cuda" if gpus else "cpu"))
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise GNDetError(f"{option} is {name!r}, which is no device here: use cuda, cuda:1 or cpu.")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        found = "no GPU" if not gpus else f"only {gpus} GPU{'s' * (gpus > 1)}"
        raise GNDetError(f"{option} is {name}, but PyTorch finds {found} here: leave it out, or use cpu.")
    return str(device)
