"""Capture and replay of CUDA graphs with PyTorch. See :mod:`gn_det.acceleration.cuda_graphs`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_WARMUP = 3  # runs before a capture, as PyTorch's documentation asks for
_MIN_FREE = 0.25  # share of the GPU's memory that must be free for a capture


class CudaBackend:
    """Decides whether a batch can be captured now, and captures it."""

    def supports(self, images: Tensor) -> bool:
        """Return whether the images are on a GPU, and no compiler, tracer or other capture is recording."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or not images.is_cuda:
            return False
        return not torch.cuda.is_current_stream_capturing()

    def has_memory(self, device: torch.device) -> bool:
        """Return whether a quarter of the memory of a GPU is free, or reserved by PyTorch and not in use."""
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused >= _MIN_FREE * total

    def capture(
        self, function: Callable, modules: Sequence[nn.Module], images: Tensor, training: bool, pool: Any
    ) -> "InferenceGraph | TrainingGraph":
        """Capture a call of a function.

        Args:
            function: maps the images to a nested structure of tensors.
            modules: what the function runs, with all its parameters.
            images: (N, 3, H, W). Later calls have the same shape, strides and dtype.
            training: whether to capture the backward pass too.
            pool: the memory pool of other graphs, or None for a new one. Graphs of one pool share the
                memory of activations, so they must not run at the same time.

        Returns:
            a callable that maps images to the outputs of the function. The next call overwrites them.
        """
        with torch.cuda.device(images.device):
            pool = pool or torch.cuda.graph_pool_handle()
            return (TrainingGraph if training else InferenceGraph)(function, modules, images, pool)


class InferenceGraph:
    """A captured call without gradients."""

    def __init__(self, function: Callable, modules: Sequence[nn.Module], images: Tensor, pool: Any):
        self.pool = pool
        self._images = images.clone()
        stream = _capture_stream(images.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP):
                function(self._images)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # "thread_local": another thread may pin memory meanwhile (gn_det.acceleration.prefetch).
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._outputs = function(self._images)

    def __call__(self, images: Tensor) -> Any:
        """Return the outputs for images of the captured shape."""
        self._images.copy_(images)
        self._graph.replay()
        return self._outputs


class TrainingGraph:
    """A captured call with its backward pass."""

    def __init__(self, function: Callable, modules: Sequence[nn.Module], images: Tensor, pool: Any):
        self.pool = pool
        self._graphed: Any = torch.cuda.make_graphed_callables(
            _Module(function, modules), (images.clone(),), num_warmup_iters=_WARMUP, allow_unused_input=True, pool=pool
        )

    def __call__(self, images: Tensor) -> Any:
        """Return the outputs for images of the captured shape, with gradients."""
        return self._graphed(images)


class _Module(nn.Module):
    """A function as a module, from which PyTorch takes the parameters that get gradients."""

    def __init__(self, function: Callable, modules: Sequence[nn.Module]):
        super().__init__()
        self._function, self._modules_in_use = function, nn.ModuleList(modules)

    def forward(self, images: Tensor) -> Any:
        return self._function(images)


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return one stream per GPU, because graphs share memory only if they are captured on the same stream."""
    return torch.cuda.Stream(device)
