"""Compile all Triton kernels that a model needs, for a GPU that need not be there.

    python tests/helpers/kernels.py 80 90

prints for each compute capability the number of kernels and the seconds that they take to compile.
"""

import itertools
import math
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gn_det.ops import fused, roi_align
from gn_det.ops.launcher import Kernel

# (stride, channels) of the norms of a ResNet-50 with FPN
MAPS = [
    (2, 64),
    (4, 64),
    (4, 256),
    (8, 128),
    (8, 512),
    (8, 256),
    (16, 256),
    (16, 1024),
    (32, 512),
    (32, 2048),
    (32, 256),
]
# Sizes of RoI features: of the box head and of the mask head
ROIS = [(256, 7), (256, 14)]
# Heights and widths of padded batches of images that are resized to 800 pixels
SIZES = [(800, 800), (800, 1088), (800, 1216), (800, 1344), (1088, 800), (1344, 800), (768, 1344), (640, 1344)]
_OPTIONS = ("num_warps", "enable_fp_fusion")


@dataclass(frozen=True)
class Variant:
    """A kernel with the types of its arguments and its constants, as ``Kernel`` tells variants apart."""

    function: Any = field(compare=False)
    name: str
    types: tuple[str | None, ...]  # None: the argument is None
    constants: tuple[tuple[str, int], ...]

    def compile(self, capability: int) -> Any:
        """Compile the variant for a compute capability, such as 90, and return what Triton returns."""
        names = self.function.arg_names
        types = dict(zip(names, self.types, strict=False))
        constants = {name: value for name, value in self.constants if name not in _OPTIONS}
        constants |= {name: None for name, kind in types.items() if kind is None}
        signature = {name: "constexpr" if name in constants else types[name] for name in names}
        pointers = [i for i, name in enumerate(names) if signature[name].startswith("*")]
        source = _source(self.function, signature, constants, pointers)
        options = {name: value for name, value in self.constants if name in _OPTIONS}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _source(function: Any, signature: dict, constants: dict, pointers: list[int]) -> ASTSource:
    """Return the source with the arguments at positions ``pointers`` aligned to 16 bytes."""
    try:
        attributes = {(i,): [["tt.divisibility", 16]] for i in pointers}
        return ASTSource(function, signature=signature, constexprs=constants, attrs=attributes)
    except TypeError:  # Triton 3.2
        from triton.backends.compiler import AttrsDescriptor

        descriptor = AttrsDescriptor()
        descriptor.arg_properties = {"tt.divisibility": pointers}
        names = {name: kind for name, kind in signature.items() if kind != "constexpr"}
        return ASTSource(function, signature=names, constants=constants, attrs=descriptor)


@contextmanager
def recorded_variants() -> Iterator[set[Variant]]:
    """Let the functions of ``fused`` record the variants that they would launch, and launch nothing."""
    found: set[Variant] = set()

    def record(kernel: Kernel, programs: int, stream: int, args: tuple, constants: tuple, aligned: bool) -> None:
        assert programs > 0
        names = [name for name, _ in constants if name not in _OPTIONS]
        assert names == kernel.function.arg_names[len(args) :]  # a compiled kernel takes them by position
        types = tuple(_type(value) for value in args)
        found.add(Variant(kernel.function, kernel.function.__name__, types, constants))

    meta = mock.patch.object(fused, "is_aligned", return_value=True)  # tensors without memory have no address
    with (
        mock.patch.object(Kernel, "__call__", record),
        meta,
        mock.patch.object(roi_align, "is_aligned", return_value=True),
    ):
        yield found


def _type(value: Any) -> str | None:
    if isinstance(value, torch.Tensor):
        return (
            "*"
            + {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32", "int64": "i64"}[
                str(value.dtype)[6:]
            ]
        )
    return None if value is None else "fp32" if isinstance(value, float) else "i32"


def variants_of_training(
    dtype: torch.dtype, channels_last: bool, batches: tuple[int, ...] = (1, 2, 16)
) -> set[Variant]:
    """Return the kernels of training and inference of an R50-FPN with GN at 800 pixels."""
    shapes = set()
    for (height, width), batch in itertools.product(SIZES, batches):
        shapes |= {(batch, c, math.ceil(height / s), math.ceil(width / s)) for s, c in MAPS}
        shapes |= {(512 * batch, c, side, side) for c, side in ROIS}
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    with recorded_variants() as found:
        for shape in shapes:
            x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=memory_format)
            weight = torch.empty(shape[1], device="meta")
            for residual, relu in ((None, True), (x, True), (None, False)):
                y, mean, rstd = fused.forward(x, residual, weight, weight, 32, 1e-5, relu)
                needs = (True, residual is not None, True, True)
                saved = None if residual is None else y
                fused.backward(x, x, saved, mean, rstd, weight, weight, 32, relu, needs)
        if channels_last:
            _pool(dtype)
    return found


def _pool(dtype: torch.dtype) -> None:
    """Run RoIAlign forward and backward on one feature map."""
    x = torch.empty((2, 256, 50, 76), dtype=dtype, device="meta", requires_grad=True)
    x = x.contiguous(memory_format=torch.channels_last)
    rois, levels = torch.empty((512, 5), device="meta"), torch.empty(512, dtype=torch.int64, device="meta")
    pooled = roi_align.roi_align_levels([x], rois, levels, (7, 7), [1 / 16], 2, True)
    pooled.backward(torch.empty_like(pooled))


def compile_all(variants: set[Variant], capability: int) -> list[tuple[float, Variant, Any]]:
    """Return (CPU seconds, variant, what Triton returns) of each variant, compiled without Triton's cache on disk."""
    results = []
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, TRITON_CACHE_DIR=folder):
        for variant in sorted(variants, key=repr):
            begun = _cpu_seconds()
            compiled = variant.compile(capability)
            results.append((_cpu_seconds() - begun, variant, compiled))
    return results


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of the assemblers that it has started."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    for capability in map(int, sys.argv[1:] or ["90"]):
        half = torch.bfloat16 if capability >= 80 else torch.float16
        for dtype, channels_last in ((half, True), (torch.float32, False)):
            results = compile_all(variants_of_training(dtype, channels_last), capability)
            seconds = [s for s, *_ in results]
            layout = "channels_last" if channels_last else "NCHW"
            print(f"Triton {triton.__version__}, sm_{capability}, {str(dtype)[6:]}, {layout}: {len(results)} kernels, "
                  f"{sum(seconds):.1f} s, longest {max(seconds):.2f} s", flush=True)  # fmt: skip
