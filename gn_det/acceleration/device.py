"""Choose between GPU and CPU."""

import torch

from ..errors import GNDetError


def choose_device(name: str | None = None, option: str = "The device") -> str:
    """Return the device to use: ``name``, or by default a GPU if there is one, else the CPU.

    Args:
        name: "cpu", "cuda" or "cuda:N".
        option: what the user set, for the error message, such as "MODEL.DEVICE" or "--device".

    Raises:
        GNDetError: the name is not such a device, or this machine does not have it.
    """
    gpus = torch.cuda.device_count()
    try:
        device = torch.device(name or ("cuda" if gpus else "cpu"))
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise GNDetError(f"{option} is {name!r}; it must be cpu, cuda, or cuda:N for GPU number N.")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        found = "no GPU" if not gpus else f"only {gpus} GPU{'s' * (gpus > 1)}"
        raise GNDetError(f"{option} is {name}, but PyTorch finds {found} here: omit it, or use cpu.")
    return str(device)
