"""gn_det.ops.group_norm on a CPU, compared with the equations in float64 and with PyTorch's operations.

test_triton_kernels.py tests the kernels for CUDA.
"""

import copy
import logging
import pickle
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from gn_det.errors import GNDetError, KernelError
from gn_det.ops import FusedGroupNorm, function, group_norm, native, reference, select

# (N, C, *) and groups
SHAPES = [
    ((2, 8, 5, 7), 4),
    ((2, 96, 3, 4), 32),  # 3 channels per group
    ((1, 48, 6, 1), 3),
    ((3, 6, 1, 5), 1),
    ((2, 6, 4, 4), 6),
    ((4, 12), 4),
    ((2, 12, 9), 2),
    ((2, 4, 2, 3, 5), 2),
    ((3, 8, 1, 1), 8),  # a single value per group
    ((0, 8, 7, 7), 4),
]
EPS = 1e-5


@pytest.fixture(autouse=True)
def no_forced_implementation(monkeypatch):
    monkeypatch.setattr(select, "forced", None)


def make(shape, dtype=torch.float32) -> list[torch.Tensor]:
    """Return x, weight, bias and residual."""
    values = [3 + torch.randn(shape), torch.randn(shape[1]), torch.randn(shape[1]), torch.randn(shape)]
    return [value.to(dtype).requires_grad_() for value in values]


def equations(x, groups, weight, bias, residual, activation) -> torch.Tensor:
    """Eq. 1, 2, 6 and 7 of the paper, group by group in float64; then the sum and the ReLU."""
    x, weight, bias, residual = (t.detach().double() for t in (x, weight, bias, residual))
    y = residual.clone()
    width = x.shape[1] // groups
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            s = x[n, c // width * width : (c // width + 1) * width]
            mu = s.sum() / s.numel()
            sigma = (((s - mu) ** 2).sum() / s.numel() + EPS) ** 0.5
            y[n, c] += weight[c] * (x[n, c] - mu) / sigma + bias[c]
    return y.clamp(min=0) if activation else y


def stock(x, groups, weight, bias, residual=None, activation=None) -> torch.Tensor:
    """The operations of detectron2's blocks."""
    y = torch.group_norm(x, groups, weight, bias, EPS)
    y = y if residual is None else y + residual
    return F.relu(y) if activation else y


def with_gradients(operation, x, groups, weight, bias, residual, activation) -> list[torch.Tensor]:
    """Return y and its gradients with respect to all inputs that are given."""
    y = operation(x, groups, weight, bias, residual=residual, activation=activation)
    dy = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    inputs = [t for t in (x, weight, bias, residual) if t is not None]
    return [y, *torch.autograd.grad(y, inputs, dy)]


def layout(x: torch.Tensor, last: bool) -> torch.Tensor:
    """Return x in channels_last (if ``last``) or contiguous memory format."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    x = x.detach()
    x = x.contiguous(memory_format=formats[x.dim()]) if last and x.dim() in formats else x.contiguous()
    return x.requires_grad_()


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_group_norm_matches_equations(shape, groups, activation):
    x, weight, bias, residual = make(shape)
    want = equations(x, groups, weight, bias, residual, activation)
    y = group_norm(x, groups, weight, bias, EPS, residual, activation)
    tolerance = 1e-5 if x.shape[1:].numel() > groups else 2e-4  # 1 / sqrt(eps) is 316
    torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=tolerance)
    x, weight, bias, residual = (t.double() for t in (x, weight, bias, residual))
    for operation in (group_norm, reference.group_norm):
        y = operation(x, groups, weight, bias, EPS, residual, activation)
        torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("mask_from_output", [False, True])
def test_backward_matches_finite_differences(monkeypatch, last, activation, with_residual, mask_from_output):
    """In float64. The autograd node is called directly, because group_norm uses the reference for float64."""
    monkeypatch.setattr(native, "SAVES_OUTPUT", mask_from_output)
    x, weight, bias, residual = make((2, 6, 3, 4), torch.float64)
    x, residual = layout(x, last), layout(residual, last) if with_residual else None

    def run(x, residual, weight, bias):
        return function._GroupNorm.apply("native", x, residual, weight, bias, 3, EPS, activation == "relu")

    assert torch.autograd.gradcheck(run, (x, residual, weight, bias))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_group_norm_matches_pytorch_in_float32(shape, groups, with_residual, activation, last):
    x, weight, bias, residual = make(shape)
    x, residual = layout(x, last), layout(residual, not last) if with_residual else None
    got = with_gradients(group_norm, x, groups, weight, bias, residual, activation)
    want = with_gradients(stock, x, groups, weight, bias, residual, activation)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert not x.numel() or got[0].stride() == got[1].stride() == x.stride()


@pytest.mark.parametrize("affine", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_and_bias_are_optional(affine, dtype):
    x, *pair, residual = make((2, 8, 3, 5), dtype)
    weight, bias = (t if wanted else None for t, wanted in zip(pair, affine, strict=True))
    wide = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias, residual)]
    got = with_gradients(group_norm, x, 4, weight, bias, residual, None)
    want = with_gradients(stock, wide[0], 4, *wide[1:], None)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("affine_dtype", [torch.float32, None])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("last", [False, True])
def test_half_precision_error_is_not_above_that_of_pytorch(dtype, affine_dtype, activation, last):
    x, weight, bias, residual = make((2, 32, 9, 11), dtype)
    x = layout(x, last)
    weight, bias = (t.detach().to(affine_dtype or dtype).requires_grad_() for t in (weight, bias))
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias, residual)]
    want = with_gradients(stock, wide[0], 8, *wide[1:], activation)
    got = with_gradients(group_norm, x, 8, weight, bias, residual, activation)
    by_pytorch = with_gradients(stock, x, 8, weight, bias, residual, activation)
    assert [t.dtype for t in got] == [dtype, dtype, weight.dtype, bias.dtype, dtype]
    for a, b, exact in zip(got, by_pytorch, want, strict=True):
        assert (a - exact).norm() <= 1.05 * (b - exact).norm() + 1e-3 * exact.norm()


def test_half_precision_has_float32_statistics():
    for weight, bias in ((None, None), (torch.ones(8).bfloat16(), None)):
        _, mean, rstd = native.forward(torch.randn(2, 8, 5, 5).bfloat16(), None, weight, bias, 4, EPS, False)
        assert mean.dtype == rstd.dtype == torch.float32


def test_autocast_does_not_change_the_input_dtype():
    x, weight, bias, residual = make((2, 8, 5, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert group_norm(x, 4, weight, bias, residual=residual).dtype == torch.float32
        y = group_norm(x.bfloat16(), 4, weight, bias, residual=residual, activation="relu")
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == residual.grad.dtype == torch.float32


def test_large_mean_causes_no_cancellation():
    x, weight, bias, _ = make((2, 8, 32, 32))
    x = (1000 + torch.randn_like(x)).requires_grad_()
    y = group_norm(x, 4, weight, bias)
    want = equations(x, 4, weight, bias, torch.zeros_like(x), None)
    torch.testing.assert_close(y.double(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("last", [False, True])
def test_noncontiguous_inputs(last):
    """A crop, a transposed map, and an expanded gradient, whose strides are 0."""
    x, weight, bias, residual = make((2, 8, 6, 9))
    whole = layout(torch.randn(2, 8, 12, 12), last).detach()
    views = {"crop": whole[:, :, 1:7, 2:11], "transposed": whole[:, :, :9, :6].transpose(2, 3)}
    for name, view in views.items():
        assert not view.is_contiguous() and view.shape == x.shape
        got, want = view.clone().requires_grad_(), view.contiguous().requires_grad_()
        y = group_norm(view.requires_grad_(), 4, weight, bias, residual=residual, activation="relu")
        y.sum().backward()  # its gradient is a single expanded number
        stock(want, 4, weight, bias, residual, "relu").sum().backward()
        torch.testing.assert_close(y, stock(got, 4, weight, bias, residual, "relu"))
        torch.testing.assert_close(view.grad, want.grad, rtol=1e-5, atol=1e-5, msg=name)
        assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format), name
        views[name] = whole.detach()


def test_only_required_gradients_are_computed(monkeypatch):
    requested = []
    backward = native.backward
    monkeypatch.setattr(native, "backward", lambda *args: requested.append(args[-1]) or backward(*args))
    for wanted in ("x", "weight bias", "residual", "x residual weight"):
        values = dict(zip(("x", "weight", "bias", "residual"), make((2, 8, 3, 3)), strict=True))
        for name, value in values.items():
            value.requires_grad_(name in wanted.split())
        group_norm(groups=4, activation="relu", **values).sum().backward()
        assert all((value.grad is not None) == value.requires_grad for value in values.values())
        assert requested.pop() == [name in wanted.split() for name in ("x", "residual", "weight", "bias")]
    with torch.no_grad():
        assert group_norm(groups=4, **values).grad_fn is None


def saved_bytes(x, weight, bias, residual, activation) -> int:
    saved: dict[int, int] = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = group_norm(x, 4, weight, bias, residual=residual, activation=activation)
    # The output is not counted: it stays in memory as the input of the next layer.
    return sum(size for pointer, size in saved.items() if pointer != y.data_ptr())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("mask_from_output", [False, True])
def test_saved_tensors(monkeypatch, dtype, activation, with_residual, mask_from_output):
    """Saved are x, mean and rstd of (N, G), weight and bias, but not the residual or the input of the ReLU."""
    monkeypatch.setattr(native, "SAVES_OUTPUT", mask_from_output)
    x, weight, bias, residual = make((2, 8, 9, 9))
    x, residual = x.to(dtype), residual.to(dtype) if with_residual else None
    affine = 8 * 4
    shift = affine if activation and not (with_residual or mask_from_output) else 0
    size = x.numel() * x.element_size() + 2 * (2 * 4) * 4 + affine + shift
    assert saved_bytes(x, weight, bias, residual, activation) == size


def test_gradient_of_residual_is_not_copied():
    x, weight, bias, residual = make((2, 8, 3, 3))
    y = group_norm(x, 4, weight, bias, residual=residual)
    dy = torch.randn_like(y)
    assert torch.autograd.grad(y, residual, dy)[0].data_ptr() == dy.data_ptr()


def test_second_derivative_is_refused():
    x, weight, bias, _ = make((2, 8, 3, 3))
    (dx,) = torch.autograd.grad(group_norm(x, 4, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_nan_is_propagated():
    x, weight, bias, _ = make((1, 8, 3, 3))
    y = group_norm(x.detach().index_fill(1, torch.tensor(0), float("nan")), 4, weight, bias, activation="relu")
    assert y[:, :2].isnan().all() and y[:, 2:].isfinite().all()


X = torch.zeros(2, 8, 3, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(8)}, r"x has shape \(8,\) and dtype float32; it must have shape \(N, C, \*\)"),
        ({"x": X.long()}, "dtype int64; it must have"),
        ({"groups": 3}, "groups is 3; it must be 1 or more and divide the 8 channels"),
        ({"groups": 0}, "groups is 0; it must be 1 or more"),
        ({"weight": torch.ones(4)}, r"weight has shape \(4,\) and dtype float32; for 8 channels"),
        ({"bias": torch.ones(8, 1)}, r"bias has shape \(8, 1\)"),
        ({"residual": X[:1]}, "their shapes must be equal"),
        ({"activation": "gelu"}, "activation is 'gelu'; it must be None or 'relu'"),
    ],
)
def test_wrong_arguments_are_refused(changed, message):
    with pytest.raises(ValueError, match=message) as error:
        group_norm(**({"x": X, "groups": 4} | changed))
    assert not isinstance(error.value, GNDetError)  # a mistake in the calling code keeps its traceback


# The choice of the implementation


def test_unknown_implementation_is_refused(monkeypatch):
    monkeypatch.setattr(select, "forced", "cuda")
    with pytest.raises(
        GNDetError, match="GN_DET_OPS is 'cuda'; it must be one of reference, native, triton, or unset."
    ):
        group_norm(X, 4)


def test_forcing_triton_on_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(select, "forced", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    message = (
        "GN_DET_OPS is triton, but the input is on cpu and the Triton kernels need CUDA: unset GN_DET_OPS, or set it to "
        "native."
    )
    with pytest.raises(GNDetError, match=message):
        group_norm(X, 4)


@pytest.mark.parametrize("name", ["reference", "native", None])
def test_forced_implementation_runs(monkeypatch, name):
    called = []
    for module, attribute in ((reference, "group_norm"), (native, "forward")):
        original = getattr(module, attribute)
        record = lambda *args, module=module, f=original: called.append(module) or f(*args)  # noqa: E731
        monkeypatch.setattr(module, attribute, record)
    monkeypatch.setattr(select, "forced", name)
    group_norm(X, 4)
    assert called == [reference if name == "reference" else native]
    called.clear()
    group_norm(X.double(), 4)
    group_norm(X[:0], 4)
    assert called == [reference, reference]


def failing_triton(monkeypatch, error: Exception) -> list[str]:
    """Let the Triton kernels fail. Returns a list with one item per attempt."""
    tried = []

    def fail(*args):
        tried.append("tried")
        raise error

    kernels = types.SimpleNamespace(forward=fail, backward=fail)
    monkeypatch.setattr(select, "_import_fused", lambda: kernels)
    return tried


def triton_group_norm(*args, **options):
    return group_norm(*args, **options, implementation="triton")


def test_default_on_cuda_is_pytorch():
    x = types.SimpleNamespace(dtype=torch.float32, is_cuda=True, numel=lambda: 8)
    assert select.choose(x) == "reference"
    assert select.choose(X) == "native"


def test_failed_kernel_is_replaced_by_native(monkeypatch):
    tried = failing_triton(monkeypatch, KernelError("Failed to find C compiler."))
    x, weight, bias, residual = make((2, 8, 3, 3))
    got = with_gradients(triton_group_norm, x, 4, weight, bias, residual, "relu")
    for a, b in zip(got, with_gradients(stock, x, 4, weight, bias, residual, "relu"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert tried == ["tried"] * 2  # forward and backward; the launcher counts the attempts of a kernel


def test_triton_failing_in_backward_falls_back_to_native(monkeypatch):
    """The tensors that the forward pass of the kernels saved are enough for the native backward pass."""
    failing_triton(monkeypatch, KernelError("no"))
    monkeypatch.setattr(select._import_fused(), "forward", native.forward)
    x, weight, bias, _ = make((2, 8, 3, 3))
    got = with_gradients(triton_group_norm, x, 4, weight, bias, None, "relu")
    for a, b in zip(got, with_gradients(stock, x, 4, weight, bias, None, "relu"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_missing_triton_is_replaced_by_native_with_one_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("gn_det.ops.")]:
        if name.split(".")[-1] in ("fused", "launcher") or "triton" in name:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("gn_det.ops.fused", raising=False)
    select._import_fused.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "gn_det"):
            for _ in range(2):
                torch.testing.assert_close(triton_group_norm(X, 4), F.group_norm(X, 4))
    finally:
        select._import_fused.cache_clear()
    (record,) = caplog.records
    assert record.getMessage().startswith("Triton cannot be imported, so GN uses PyTorch's kernels (")


class Subclass(torch.Tensor):
    pass


def test_unreadable_tensors_do_not_reach_the_kernels(monkeypatch):
    tried = failing_triton(monkeypatch, KernelError("no"))
    triton_group_norm(X.as_subclass(Subclass), 4)
    assert triton_group_norm(torch.empty(2, 4, 2**15, 2**14, device="meta"), 4).shape[0] == 2
    assert tried == []
    triton_group_norm(X, 4)
    assert tried == ["tried"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), KernelError("no"), RuntimeError("no")])
def test_some_triton_errors_are_raised(monkeypatch, error):
    """Out of memory, an error of CUDA, and any failure if Triton is forced."""
    failing_triton(monkeypatch, error)
    if isinstance(error, KernelError):
        monkeypatch.setattr(select, "forced", "triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(type(error), match="no"):
        triton_group_norm(X, 4)


# Tracers, compilers, exporters


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning", "error::torch.jit.TracerWarning")
def test_trace_contains_pytorch_operations():
    layer = FusedGroupNorm(4, 8, activation="relu")
    traced = torch.jit.trace(layer, (X, X))
    kinds = [node.kind() for node in traced.inlined_graph.nodes() if node.kind().startswith("aten::")]
    assert kinds == ["aten::group_norm", "aten::add", "aten::relu"]
    x = torch.randn(3, 8, 4, 4)
    torch.testing.assert_close(traced(x, x), layer(x, x))
    scripted = torch.jit.script(layer)
    torch.testing.assert_close(scripted(x, x), layer(x, x))


def test_export_contains_pytorch_operations(monkeypatch):
    program = torch.export.export(FusedGroupNorm(4, 8, activation="relu"), (X, X))
    kinds = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert kinds == ["aten.group_norm.default", "aten.add.Tensor", "aten.relu.default"]
    assert select.choose(X) == "native"
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)  # on CUDA too
    assert select.choose(X, "triton") == "reference"


@pytest.mark.parametrize("with_residual", [False, True])
def test_operator_passes_opcheck(with_residual):
    """The declared shapes, memory formats and gradients are the real ones, also with dynamic sizes."""
    x, weight, bias, residual = make((2, 8, 3, 5))
    x, residual = layout(x, True), layout(residual, True) if with_residual else None
    torch.library.opcheck(torch.ops.gn_det.group_norm, ("native", x, residual, weight, bias, 4, EPS, True))


def test_group_norm_compiled_for_cuda_is_one_operator(monkeypatch):
    monkeypatch.setattr(select, "choose", lambda x, implementation: "native")  # as on CUDA with Triton
    graphs = []
    compiled = torch.compile(group_norm, backend=lambda graph, _: graphs.append(graph.code) or graph, fullgraph=True)
    x, weight, bias, residual = make((2, 8, 3, 5))
    for last in (False, True):
        args = (layout(x, last), 4, weight, bias, residual, "relu")
        for a, b in zip(with_gradients(compiled, *args), with_gradients(stock, *args), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert graphs and all(code.count("gn_det.group_norm") == 1 and "relu" not in code for code in graphs)


# The module


def test_fused_group_norm_is_an_nn_group_norm():
    layer, plain = FusedGroupNorm(4, 8, eps=1e-3, activation="relu"), nn.GroupNorm(4, 8, eps=1e-3)
    nn.init.normal_(plain.weight)
    assert isinstance(layer, nn.GroupNorm)
    layer.load_state_dict(plain.state_dict())
    x, residual = torch.randn(2, 8, 3, 3), torch.randn(2, 8, 3, 3)
    for module in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(module(x, residual), F.relu(plain(x) + residual))
        torch.testing.assert_close(module(x), F.relu(plain(x)))
    assert str(layer).startswith("FusedGroupNorm(4, 8, eps=0.001, ") and str(layer).endswith(", activation=relu)")
    assert FusedGroupNorm(4, 8).activation is None
    with pytest.raises(ValueError, match="activation is 'silu'"):
        FusedGroupNorm(4, 8, activation="silu")
