"""Unsupported uses of throughtime.torch: every error names the argument, or states the limitation and the
alternative."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from torch_side import torch

ours = pytest.importorskip("throughtime.torch")

WAY_OUT = r"throughtime\.torch does not support .*torch\.nn\.LSTM"


@pytest.fixture
def lstm():
    return ours.LSTM(3, 4, dtype=torch.float64)


@pytest.fixture
def x():
    return torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)


def test_first_derivatives_may_be_part_of_a_graph_and_second_ones_are_refused(lstm, x):
    for call in (lambda: lstm(x)[0], lambda: ours.AddLayerNorm(3, dtype=torch.float64)(x, x.sin())[1]):
        (d_x,) = torch.autograd.grad(call().square().sum(), x)
        (in_graph,) = torch.autograd.grad(call().square().sum(), x, create_graph=True)
        assert torch.equal(in_graph, d_x)
        with pytest.raises(NotImplementedError, match=WAY_OUT):
            in_graph.sum().backward()


def test_functorch_transforms_are_refused(lstm, x):
    x = x.detach()
    norm = ours.AddLayerNorm(3, dtype=torch.float64)
    for transform in (torch.func.grad, torch.func.vmap, torch.func.jacrev):
        with pytest.raises(NotImplementedError, match=WAY_OUT):
            transform(lambda x: lstm(x)[0].sum())(x)
        with pytest.raises(NotImplementedError, match=WAY_OUT):
            transform(lambda x: norm(x, x)[1].sum())(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
def test_forward_mode_is_refused(lstm, x):
    x = x.detach()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        for call in (lstm, lambda x: ours.AddLayerNorm(3, dtype=torch.float64)(x, x)):
            with pytest.raises(NotImplementedError, match=WAY_OUT):
                call(dual)


def test_batches_of_gradients_are_refused(lstm, x):
    with pytest.raises(NotImplementedError, match=WAY_OUT):
        torch.autograd.grad(lstm(x)[0], x, torch.ones(2, 5, 2, 4, dtype=torch.float64), is_grads_batched=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_torchscript_traces_are_refused(lstm, x):
    with pytest.raises(NotImplementedError, match=WAY_OUT):
        torch.jit.trace(lstm, (x.detach(),))


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.complex64])
def test_weights_of_other_types_are_refused(dtype):
    for module in (ours.GRU(3, 4), ours.AddLayerNorm(3)):
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)
        x = torch.zeros(5, 2, 3).to(dtype)
        with pytest.raises(NotImplementedError, match=f"weights of {dtype} on the CPU, only .*torch.nn.LSTM"):
            module(*(x,) * (2 if isinstance(module, ours.AddLayerNorm) else 1))


@pytest.mark.parametrize("wrong", [np.zeros((5, 2, 3)), [[[0.0]]], "text", None, 3, torch.float32, torch.zeros])
def test_what_is_no_tensor(wrong, x):
    """The error names argument and type, for all arguments that must be tensors."""
    x = x.detach()
    kind = "the class" if isinstance(wrong, type) else type(wrong).__name__
    norm = ours.AddLayerNorm(3, dtype=torch.float64)
    block = ours.ResidualBlock(ours.RNN(3, 3, dtype=torch.float64), 3, dtype=torch.float64)
    for cell in (ours.RNN, ours.GRU, ours.LSTM):
        module = cell(3, 4, dtype=torch.float64)
        with pytest.raises(TypeError, match=f"input must be a tensor or a PackedSequence, got .*{kind}"):
            module(wrong)
        with torch.autocast("cpu"), pytest.raises(TypeError, match=f"input must be a tensor .*got .*{kind}"):
            module(wrong)
        if wrong is not None:
            with pytest.raises(TypeError, match=f"hx must be a .*for {cell.__name__}, got .*{kind}"):
                module(x, wrong)
            h = torch.zeros(1, 2, 4, dtype=torch.float64)
            with pytest.raises(TypeError, match=f"hx must be a .*for {cell.__name__}, got a tuple of Tensor, .*{kind}"):
                module(x, (h, wrong))
    for call, name in (
        (lambda: norm(wrong, x), "x"),
        (lambda: norm(x, wrong), "branch"),
        (lambda: block(wrong), "x"),
        (lambda: ours.ResidualBlock(Gives(wrong), 3)(x.float()), "the output of sublayer"),
    ):
        with pytest.raises(TypeError, match=f"{name} must be a tensor.*, got .*{kind}"):
            call()


class Gives(torch.nn.Module):
    """Returns its constructor's argument from every call."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer


def test_a_weight_that_is_gone_is_named(x):
    for name, module in (("bias_hh_l0", ours.LSTM(3, 4)), ("bias", ours.AddLayerNorm(3))):
        setattr(module, name, None)
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got NoneType"):
            module(*(x.detach().float(),) * (1 if isinstance(module, ours.LSTM) else 2))


def test_devices_without_kernels_are_refused(lstm, x):
    meta = x.detach().to("meta")
    with pytest.raises(NotImplementedError, match="input on device 'meta'"):
        lstm(meta)
    with pytest.raises(NotImplementedError, match="weight_ih_l0 on device 'meta'"):
        ours.LSTM(3, 4, dtype=torch.float64, device="meta")(x)
    with pytest.raises(NotImplementedError, match="hx on device 'meta'"):
        lstm(x, (torch.zeros(1, 2, 4, dtype=torch.float64, device="meta"),) * 2)
    with pytest.raises(NotImplementedError, match="branch on device 'meta'"):
        ours.AddLayerNorm(3, dtype=torch.float64)(x, meta)


def test_types_are_not_mixed(lstm, x):
    with pytest.raises(
        TypeError, match=r"input has dtype torch.float32, expected torch.float64.*\.to\(torch.float64\)"
    ):
        lstm(x.float())
    with pytest.raises(TypeError, match=r"hx has dtype torch.float32, expected torch.float64"):
        lstm(x, (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)))
    lstm.bias_hh_l0.data = lstm.bias_hh_l0.data.float()
    with pytest.raises(TypeError, match=r"bias_hh_l0 has dtype torch.float32"):
        lstm(x)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 2, 4), r"input has 4 features.*input_size=3"),
        ((0, 2, 3), r"input has no timesteps"),
        ((3,), r"input has shape \(3,\), expected \(T, B, 3\), or \(T, 3\) unbatched"),
    ],
)
def test_inputs_that_do_not_fit(lstm, shape, message):
    with pytest.raises(ValueError, match=message):
        lstm(torch.zeros(shape, dtype=torch.float64))


def test_states_that_do_not_fit(lstm, x):
    h = torch.zeros(1, 2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"hx\[1\] has shape \(1, 3, 4\), expected \(1, 2, 4\)"):
        lstm(x, (h, torch.zeros(1, 3, 4, dtype=torch.float64)))
    for wrong in (h, (h,), (h, None), 3):
        with pytest.raises(TypeError, match="hx must be a pair"):
            lstm(x, wrong)
    for wrong in ((h, h), np.zeros((1, 2, 4))):
        with pytest.raises(TypeError, match="hx must be a tensor for GRU"):
            ours.GRU(3, 4, dtype=torch.float64)(x, wrong)


def test_options_that_do_not_fit():
    with pytest.raises(ValueError, match=r"at most one of .*, got peephole=True, layer_norm=True"):
        ours.LSTM(3, 4, peephole=True, layer_norm=True)
    with pytest.raises(ValueError, match="memory must be 'full', 'states', 'checkpoint' or a number"):
        ours.RNN(3, 4, memory="most")
    with pytest.raises(ValueError, match="zoneout must be in"):
        ours.GRU(3, 4, zoneout=2.0)
    with pytest.raises(TypeError, match="reset_after must be True or False"):
        ours.GRU(3, 4, reset_after=1)
    with pytest.raises(ValueError, match=r"layer_norm=True was given with reset_after=False"):
        ours.GRU(3, 4, reset_after=False, layer_norm=True)
    with pytest.raises(ValueError, match="nonlinearity must be one of 'tanh', 'relu', 'sigmoid', got 'gelu'"):
        ours.RNN(3, 4, nonlinearity="gelu")


def test_blocks_that_do_not_fit():
    with pytest.raises(TypeError, match=r"sublayer must be a torch.nn.Module, got str"):
        ours.ResidualBlock("LSTM", 3)
    with pytest.raises(ValueError, match="norm must be one of 'pre', 'post', got 'middle'"):
        ours.ResidualBlock(torch.nn.Linear(3, 3), 3, norm="middle")
    with pytest.raises(ValueError, match=r"sublayer gave shape \(5, 2, 4\), expected \(5, 2, 3\)"):
        ours.ResidualBlock(ours.RNN(3, 4), 3)(torch.zeros(5, 2, 3))
    with pytest.raises(ValueError, match=r"branch has shape \(5, 3\), expected \(5, 2, 3\)"):
        ours.AddLayerNorm(3)(torch.zeros(5, 2, 3), torch.zeros(5, 3))


def test_without_torch_the_error_says_what_to_install():
    script = "import sys; sys.modules['torch'] = None; import throughtime.torch"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert 'ImportError: throughtime.torch needs PyTorch: pip install "throughtime[torch]"' in done.stderr
