"""A simulated GPU: the values of its tensors are on the CPU, and all that the host would wait for is counted."""

from collections import Counter

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_READS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")


class GPUTensor(Tensor):
    """A tensor that says that it is on the meta device, which nothing else in the tests uses."""

    @staticmethod
    def __new__(cls, values: Tensor):
        return Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )

    def __init__(self, values: Tensor):
        self.values_on_cpu = values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("a GPUTensor is used outside of SimulatedGPU")


class SimulatedGPU(TorchDispatchMode):
    """Run operations on the simulated GPU in a ``with`` block.

    Attributes:
        waits: why the host waits -> how often. "copy to the host" and "copy from the host" are copies
            of tensors, and every other entry is the name of an operation.
        copies: number of copies from the host that are not waited for.
    """

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, GPUTensor)]
        target = kwargs.get("device")
        on_gpu = target == DEVICE if target is not None else bool(inputs)
        self._count(func, args, kwargs, bool(inputs), on_gpu)
        if target == DEVICE:
            kwargs["device"] = torch.device("cpu")
        out = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        if func.overloadpacket is torch.ops.aten.copy_:
            return args[0]
        if not on_gpu:
            return out
        known = {id(x.values_on_cpu): x for x in inputs}  # operations in place return their argument
        return tree_map(lambda x: _wrap(x, known) if isinstance(x, Tensor) else x, out)

    def _count(self, func, args, kwargs, from_gpu: bool, to_gpu: bool) -> None:
        name = func.overloadpacket.__name__
        if name == "copy_":
            from_gpu, to_gpu = isinstance(args[1], GPUTensor), isinstance(args[0], GPUTensor)
        if name in ("copy_", "_to_copy") and from_gpu != to_gpu:
            if to_gpu and (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])):
                self.copies += 1
            else:
                self.waits["copy from the host" if to_gpu else "copy to the host"] += 1
        elif from_gpu and self._waits(name, func, args, kwargs):
            self.waits[name] += 1
        elif from_gpu and name in ("index", "index_put_", "_index_put_impl_"):
            on_host = [i for i in args[1] if i is not None and not isinstance(i, GPUTensor)]
            if on_host:
                self.waits["copy from the host"] += len(on_host)

    @staticmethod
    def _waits(name: str, func, args, kwargs) -> bool:
        if name in _READS or func.namespace == "torchvision" and name == "nms":
            return True
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        if name in ("index", "index_put_", "_index_put_impl_"):
            by_mask = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
            is_fill = name != "index" and args[2].numel() == 1 and not isinstance(args[2], GPUTensor)
            return by_mask and not is_fill
        return False


def _wrap(x: Tensor, known: dict[int, GPUTensor]) -> GPUTensor:
    return known[id(x)] if id(x) in known else GPUTensor(x)


def _values(x):
    return x.values_on_cpu if isinstance(x, GPUTensor) else x


def to_simulated_gpu(model: nn.Module, gpu: SimulatedGPU) -> None:
    """Move the parameters and buffers of a model, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(GPUTensor(parameter.detach()), requires_grad=parameter.requires_grad)
                module._parameters[name] = moved
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = GPUTensor(buffer)
