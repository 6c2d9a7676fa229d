"""Measures how long Ctrl-C takes: the time from the signal to KeyboardInterrupt, in long calls of every kind.

    python benchmarks/interrupts.py [ROUNDS] [NAME ...]

Prints a row per call: the largest latency of all rounds, in milliseconds, and the processor time that the process used
meanwhile, which other programs on the machine affect less. docs/limits.md shows the table.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from contextlib import suppress

import numpy as np

import throughtime as tt
from throughtime import _core


def numbers(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def calls():
    """Name and call; each takes at least a second with one thread."""
    lstm, x = tt.LSTM(256, 256, seed=0), np.broadcast_to(numbers(500, 1, 256), (500, 64, 256))
    small, short = tt.LSTM(64, 64, seed=0), np.tile(numbers(300, 1, 64), (20, 1, 1))
    yield "forward and backward", training_step(lstm, x)
    yield 'memory="checkpoint"', training_step(lstm, x, memory="checkpoint")
    yield "2048 units", training_step(tt.LSTM(2048, 2048, seed=0), numbers(20, 128, 2048))
    yield "one sequence", training_step(small, np.tile(short, (16, 1, 1)), memory="checkpoint")
    yield "layer_norm=True", training_step(tt.LSTM(256, 256, layer_norm=True, seed=0), x[:250])
    yield "parameter_norms", training_step(lstm, x, timesteps=("parameter_norms",))
    yield "SelfAttention", training_step(tt.SelfAttention(64, 4, seed=0), numbers(12_000, 1, 64))
    yield "Linear", training_step(tt.Linear(2048, 2048, seed=0), numbers(40, 256, 2048))
    yield "MLP", training_step(tt.MLP(1024, 4096, "gelu", seed=0), numbers(20, 128, 1024))
    yield "LayerNorm", training_step(tt.LayerNorm(512), numbers(400, 512, 512))
    yield "BatchNorm", training_step(tt.BatchNorm(512), numbers(200, 512, 512))
    yield "gradient_flow", lambda: tt.gradient_flow(lstm, x)
    yield "lyapunov_spectrum", lambda: tt.lyapunov_spectrum(small, short)
    yield "jacobian_singular_values", lambda: tt.jacobian_singular_values(small, short, 0, 6000)
    yield "jacobians", lambda: tt.jacobians(small, np.tile(short[:300], (1, 8, 1)))
    yield "connectivity", lambda: tt.connectivity(small, short[:3000], at=tuple(range(0, 3000, 100)))
    yield "truncation_error", lambda: tt.truncation_error(lstm, x[:200], 20)
    yield "fixed_points", lambda: tt.fixed_points(small, short[0, 0], numbers(64, 128))
    checked = tt.LSTM(8, 24, dtype="float64", seed=0)
    yield "gradcheck", lambda: tt.gradcheck(checked, numbers(200, 4, 8).astype(float))
    yield "diagnose", lambda: tt.diagnose(lstm, x[:200])
    logits, targets = numbers(20_000, 5000), np.zeros(20_000, np.int64)
    yield "cross_entropy", lambda: tt.cross_entropy(logits, targets)
    weights, optimiser = {"w": numbers(60_000_000)}, tt.optim.Adam()
    yield "Adam, 60 million weights", lambda: [optimiser.step(weights, weights) for _ in range(20)]
    yield "clip_grad_norm, 60 million", lambda: [tt.clip_grad_norm(weights, 1e-3) for _ in range(20)]
    yield "init.orthogonal, (1500, 1500)", lambda: tt.init.orthogonal((1500, 1500), np.random.default_rng(0))


def training_step(layer, x, timesteps=(), **options):
    def step():
        tape = layer.forward(x, **options)
        tape.backward(tape.output, **({"timesteps": timesteps} if timesteps else {}))

    return step


def latency(call, delay):
    """Seconds, and processor seconds, from SIGINT to KeyboardInterrupt; None if the call ended before."""
    sent = []

    def send():
        time.sleep(delay)
        sent.extend([time.perf_counter(), time.process_time()])
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        call()
        thread.join()
        return None
    except KeyboardInterrupt:
        ended = time.perf_counter(), time.process_time()
        thread.join()
        return ended[0] - sent[0], ended[1] - sent[1]


def main(rounds, names):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told background jobs to ignore it
    tt.set_num_threads(1)
    rng = np.random.default_rng(0)
    print(f"{_core.level()}, 1 thread, {rounds} rounds\n\n| call | ms | processor ms |\n|---|---|---|")
    for name, call in calls():
        if names and name not in names:
            continue
        found = []
        for _ in range(rounds):
            with suppress(KeyboardInterrupt):  # if it comes after the call
                found.append(latency(call, rng.uniform(0.05, 1)))
        found = [pair for pair in found if pair]
        wall, processor = (1e3 * max(pair[i] for pair in found) if found else np.nan for i in (0, 1))
        print(f"| {name} | {wall:.0f} | {processor:.0f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, sys.argv[2:])
