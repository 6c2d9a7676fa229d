"""The operators of throughtime.torch, and graphs of torch.compile and torch.export that contain them whole."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from comparison import assert_same_bits
from problems import TORCH_KINDS, Problem
from torch_side import arrays, leaves, module_of, together, torch

ours = pytest.importorskip("throughtime.torch")

from torch._inductor import config as inductor  # noqa: E402

from throughtime.torch.add_layer_norm import operator as add_layer_norm  # noqa: E402
from throughtime.torch.add_layer_norm import operator_backward as add_layer_norm_backward  # noqa: E402
from throughtime.torch.operators import recurrent, recurrent_backward  # noqa: E402
from throughtime.torch.plan import call_text  # noqa: E402


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


class Graphs(list):
    """A backend that keeps the graphs, and passes them on to trace forward and backward."""

    def __call__(self, graph, inputs):
        self.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


def samples(kind, memory, dropout=0.0, lengths=None, with_state=True):
    """The arguments of the operator; all that can require gradients do."""
    problem = Problem(kind, T=5, B=3, H=7, L=2, D=2)
    module = module_of(problem, library=ours, dropout=dropout)
    x, state = leaves(problem.x), list(together(leaves(problem.state))) if with_state else []
    masks = module._masks(x, False)
    text = call_text(module._text, torch.float64, False, memory)
    return x, state, list(module.parameters()), lengths, masks, text, False


@pytest.mark.parametrize(
    ("kind", "memory"), [*((kind, "full") for kind in TORCH_KINDS), ("lstm_projected", "states"), ("gru", 2)]
)
def test_opcheck_of_the_recurrent_operators(kind, memory):
    """Schema, fake kernel, autograd registration, and graphs with symbolic sizes, by torch's own checks."""
    lengths = torch.tensor([5, 0, 3]) if memory == "full" else None
    arguments = samples(kind, memory, dropout=0.4 * (memory != 2), lengths=lengths, with_state=memory == "full")
    torch.library.opcheck(recurrent, arguments)
    x, state, weights, _, masks, text, medium = arguments
    with torch.no_grad():
        results = recurrent(*arguments)
    states = len(together(Problem(kind).state))
    d_results = [torch.randn_like(results[0]), *(None for _ in range(states))]
    wanted = [memory == "full", memory == "full", *(index % 3 > 0 for index in range(len(weights)))]
    fixed = x.detach(), [weight.detach() for weight in weights], lengths, masks
    torch.library.opcheck(recurrent_backward, (d_results, *fixed, results[1 + states :], text, medium, wanted))
    assert bool(state) == (memory == "full")


def test_opcheck_of_the_layer_norm_operators():
    x, branch = (torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.library.opcheck(add_layer_norm, (x, branch, weight, bias, 0.5, 1e-5))
    with torch.no_grad():
        total, _, statistics = add_layer_norm(x, branch, weight, bias, 0.5, 1e-5)
    for d_total, d_normalised in ((branch.detach(), None), (None, x.detach()), (x.detach(), branch.detach())):
        arguments = (d_total, d_normalised, total, statistics, weight.detach())
        torch.library.opcheck(add_layer_norm_backward, arguments)


class Tagger(torch.nn.Module):
    """Two kinds of layers between others."""

    def __init__(self, memory="full", dropout=0.0):
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 8)
        self.lstm = ours.LSTM(8, 16, 2, dropout=dropout, memory=memory)
        self.block = ours.ResidualBlock(ours.GRU(16, 8, bidirectional=True, memory=memory), 16, norm="post")
        self.norm = ours.AddLayerNorm(16)
        self.head = torch.nn.Linear(16, 10)

    def forward(self, ids, state=None):
        output, state = self.lstm(self.embedding(ids), state)
        total, normalised = self.norm(output, self.block(output))
        return self.head(total + normalised), state


def step(call, model, ids):
    """Loss and gradients of a training step."""
    model.zero_grad()
    logits, (h_n, _) = call(ids)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()) + h_n.square().mean()
    loss.backward()
    return {"loss": arrays(loss), **{name: arrays(p.grad).copy() for name, p in model.named_parameters()}}


@pytest.mark.parametrize("memory", ["full", "states", 3])
def test_a_model_is_one_graph_for_all_sizes(memory):
    """fullgraph raises if a graph breaks. The operators call the same kernels and give the same bits."""
    torch.manual_seed(0)
    model = Tagger(memory)
    graphs = Graphs()
    compiled = torch.compile(model, fullgraph=True, backend=graphs, dynamic=True)
    made = []
    for steps, batch in ((12, 4), (9, 3), (7, 5)):
        ids = torch.randint(0, 10, (steps, batch))
        assert_same_bits(step(compiled, model, ids), step(model, model, ids))
        made.append(len(graphs))
    assert made[0] == made[-1]  # the first call may trace again, to turn floats into constants


def test_a_module_by_itself_with_dimensions_marked_dynamic():
    for batch_first in (False, True):
        module = ours.GRU(8, 16, batch_first=batch_first)
        graphs = Graphs()
        compiled = torch.compile(module, fullgraph=True, backend=graphs)
        for shape in ((6, 3, 8), (9, 4, 8)):
            x = torch.randn(shape)
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(x, 1)
            output, _ = compiled(x)
            assert torch.equal(output, module(x)[0])
            assert output.stride() == module(x)[0].stride()
        assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo reads it at breaks
def test_packed_sequences_compile():
    """With graph breaks, because Dynamo does not trace torch's functions that unpack."""
    sequences = [torch.randn(length, 3) for length in (4, 7, 1)]
    packed = torch.nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    module = ours.GRU(3, 4, bidirectional=True)
    compiled = torch.compile(module, backend="aot_eager")
    (output, h_n), (expected, expected_h_n) = compiled(packed), module(packed)
    assert torch.equal(output.data, expected.data)
    assert torch.equal(h_n, expected_h_n)
    output.data.sum().backward()


def test_compiled_inference_keeps_nothing():
    module, x = ours.LSTM(3, 4), torch.randn(5, 2, 3)
    graphs = Graphs()
    compiled = torch.compile(module, fullgraph=True, backend=graphs)
    with torch.no_grad():
        assert torch.equal(compiled(x)[0], module(x)[0])
    (graph,) = graphs
    (text,) = (argument for node in graph.graph.nodes for argument in node.args if isinstance(argument, str))
    assert text.endswith("None)")


def test_compiled_dropout_follows_the_seed():
    model, ids = Tagger(dropout=0.5), torch.randint(0, 10, (6, 3))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    first, again, other = (torch.manual_seed(seed) and compiled(ids)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    first.sum().backward()
    model.eval()
    assert torch.equal(compiled(ids)[0], model(ids)[0])


def test_autocast_compiles():
    model, ids = Tagger(), torch.randint(0, 10, (6, 3))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(ids)[0], model(ids)[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
def test_inductor_trains():
    """The default backend, which needs a compiler; it calls the same kernels."""
    torch.manual_seed(0)
    module, x = ours.LSTM(3, 4), torch.randn(5, 2, 3)
    compiled = torch.compile(lambda x: module(x)[0].sum(), fullgraph=True)
    with inductor.patch({"cpp.vec_isa_ok": True, "cpp_cache_precompile_headers": False}):  # these pay off only later
        compiled(x).backward()
    gradients = arrays(tuple(p.grad.clone() for p in module.parameters()))
    module.zero_grad()
    module(x)[0].sum().backward()
    assert_same_bits(gradients, arrays(tuple(p.grad for p in module.parameters())))


def test_backward_passes_of_graphs_are_recorded():
    model, ids = Tagger(), torch.randint(0, 10, (6, 3))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for call in (model, compiled):
        with ours.record(model.lstm) as timesteps:
            step(call, model, ids)
        found.append((arrays(timesteps.hidden), arrays(timesteps.cell), arrays(timesteps.gates)))
    assert_same_bits(found[1], found[0])


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_torchs_own_modules_are_left_to_torch(name):
    """They break the graph, as without throughtime."""
    compiled = torch.compile(getattr(torch.nn, name)(3, 4), fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        compiled(torch.randn(5, 2, 3))


def test_modules_are_exported():
    """With symbolic T and B, and loaded without the module's class."""
    module = ours.LSTM(3, 4).eval()
    steps, batch = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    program = torch.export.export(module, (torch.randn(5, 2, 3),), dynamic_shapes=({0: steps, 1: batch},))
    x = torch.randn(7, 3, 3)
    assert torch.equal(program.module()(x)[0], module(x)[0])


class Parts(torch.nn.Module):
    """All our modules, with all forms of calls."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Linear(3, 8)
        self.lstm = ours.LSTM(8, 8, bidirectional=True)
        self.stack = torch.nn.ModuleList([ours.ResidualBlock(ours.GRU(16, 16), 16), ours.RNN(16, 16)])
        self.norm = ours.AddLayerNorm(16)

    def forward(self, x, h, c):
        y, (h_n, _) = self.lstm(self.embed(x).relu(), (h, c))
        y = self.stack[0](y)
        total, normalised = self.norm(y, branch=self.stack[1](y)[0])
        return total + normalised, h_n


def test_fx_traces_models_with_these_modules_as_nodes():
    """As for torch's own modules; the traced model has the same parameters, and trains."""
    model, x = Parts(), torch.randn(5, 2, 3)
    state = torch.zeros(2, 2, 8), torch.zeros(2, 2, 8)
    traced = torch.fx.symbolic_trace(model)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["embed", "lstm", "stack.0", "stack.1", "norm"]
    assert_same_bits(arrays(traced(x, *state)), arrays(model(x, *state)))
    assert traced.lstm.weight_hh_l0 is model.lstm.weight_hh_l0
    traced(x, *state)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    again = torch.fx.Transformer(traced).transform()
    assert_same_bits(arrays(again(x, *state)), arrays(model(x, *state)))
    replaced = ours.replace(torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GRU(8, 4)))
    assert torch.equal(torch.fx.symbolic_trace(replaced)(x)[0], replaced(x)[0])


def test_fx_says_what_it_cannot_trace():
    lstm, norm = ours.LSTM(3, 4), ours.AddLayerNorm(3)
    for root in (lstm, norm, ours.ResidualBlock(ours.RNN(3, 3), 3), lambda x: lstm.forward(x)[0]):
        with pytest.raises(NotImplementedError, match=r"throughtime\.torch does not support torch\.fx\.symbolic_trace"):
            torch.fx.symbolic_trace(root)
    with pytest.raises(NameError, match="not installed as a submodule"):  # torch's message, also for its own modules
        torch.fx.symbolic_trace(lambda x: lstm(x)[0])


def test_the_compiler_is_imported_by_those_who_need_it():
    """Its import takes as long as torch's; modules that exist before it are still traced."""
    script = """
        import sys, torch
        import throughtime.torch
        module = throughtime.torch.GRU(3, 4)
        module(torch.randn(5, 2, 3))[0].sum().backward()
        print("torch._dynamo" in sys.modules)
        torch.compile(module, fullgraph=True, backend="eager")(torch.randn(5, 2, 3))
        print("torch._dynamo" in sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "True"], done.stderr
