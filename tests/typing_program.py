"""A user's program, which no strict type checker may complain about; test_typing.py checks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import throughtime as tt

x = np.random.default_rng(0).standard_normal((20, 4, 8), dtype=np.float32)


def recurrent() -> float:
    lstm = tt.LSTM(8, 16, num_layers=2, bidirectional=True, zoneout=(0.1, 0.2), seed=0)
    tape = lstm.forward(x, lengths=[20, 3, 0, 7], output="last", memory=4)
    grads = tape.backward(np.ones_like(tape.output), timesteps=("hidden", "cell", "parameter_norms"), clip=1.0)
    h, c = tape.final_state
    output, (_, c_n) = lstm(x, (h, c))
    assert_type(output, NDArray[Any])
    assert_type(grads.parameter_norms, dict[str, NDArray[Any]])
    for name, array in lstm.parameters.items():
        array -= 0.1 * grads.parameters[name]
    lstm.load_parameters({name: array.astype(np.float64) for name, array in lstm.parameters.items()})
    options: dict[str, Any] = {"truncate": 5, "check_finite": True}
    gru = tt.GRU(8, 16, reset_after=False, dtype=np.float64).astype("float32")
    _, state = gru(x)
    assert_type(state.shape[-1] + lstm.num_directions * lstm.output_size + tape.nbytes, Any)
    d_state = gru.forward(x, training=False).backward(d_final_state=state, **options).initial_state
    return float(grads.hidden.sum() + grads.input.sum() + grads.clipped.sum() + c_n.sum() + d_state.sum())


def stack(path: Path) -> tuple[float, str]:
    model = tt.Sequential(
        tt.Embedding(5, 8),
        tt.ResidualBlock(tt.GRU(8, 8), 8, norm="post", normalisation="batch"),
        tt.SelfAttention(8, 2, window=4),
        tt.MLP(8, 32, "gelu"),
        tt.LayerNorm(8),
        tt.ReLU(),
        tt.Linear(8, 5),
    )
    assert_type(tt.init.apply(model, "good", max_steps=20, seed=0), tt.Sequential)
    optimiser = tt.optim.AdamW(lr=1e-3, weight_decay=0.1)
    letters = np.zeros((20, 4), np.int64)
    tape = model.forward(letters, training=True)
    loss, d_logits = tt.cross_entropy(tape.output, letters)
    grads = tape.backward(d_logits)
    loss += tt.clip_grad_norm(grads, 1.0)
    optimiser.step(model.parameters, grads.parameters)
    logits, state = model(letters[:1], state=None)
    logits, state = model(letters[:1], state=state)
    assert_type(logits, NDArray[Any])
    assert_type(model(letters), NDArray[Any])
    model.save(path)
    again = tt.load(path)
    again.forward(letters).backward(d_logits)
    return loss, f"{again(letters)} {grads.layers[1].sublayer.hidden} {tape.layers[-1]}"


def analysis(path: Path) -> str:
    layer = tt.RNN(8, 16, nonlinearity="relu")
    flow = tt.gradient_flow(layer, x)
    spectrum = tt.lyapunov_spectrum(layer, x[:, :1], k=3)
    spread = tt.lyapunov_spectrum(layer, x[:, :1], return_spread=True)
    values = tt.jacobian_singular_values(layer, x, 0, 5)
    points = tt.fixed_points(layer, x[0, 0], np.zeros((3, 16), np.float32))
    assert_type(tt.gradcheck(layer, x[:3]), dict[str, float])
    with tt.FlowMonitor(layer, every=10, sinks=[tt.sinks.JsonLines(path)]) as monitor:
        layer.forward(x).backward(np.ones((20, 4, 16), np.float32))
        steps = [record.step for record in monitor.history]
    diagnosis = tt.diagnose(layer, x)
    texts = [finding.text for finding in diagnosis.findings if finding.remedy is not None]
    found = [spectrum, spread.exponents, values, points.stable, flow.horizon(1e-3), steps, texts]
    return f"{flow.summary()} {diagnosis} {found}"


def settings() -> None:
    tt.set_num_threads(2)
    tt.set_matmul_precision("high")
    assert_type(tt.get_num_threads(), int)
    tt.show_config()
