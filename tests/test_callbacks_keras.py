"""The callback of Keras: it measures the layers at their own weights and inputs, and no bit of the training changes."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys

import numpy as np
import pytest

import throughtime as tt

pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of Keras
T, B, I, H = 25, 5, 3, 4  # noqa: E741


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))  # where it writes its configuration
        yield pytest.importorskip("keras")


def callback_of(x, every=1, sinks=()):
    from throughtime.callbacks.keras import FlowMonitorCallback

    return FlowMonitorCallback(x, every, sinks)


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")


def fit(keras, model, x, callbacks=(), batch_size=B, epochs=1):
    """Train the model, to zeros; the first input has the batch."""
    count = len(x[0] if isinstance(x, list) else x)
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    keras.utils.set_random_seed(0)
    y = np.zeros((count, *model.output_shape[1:]), "float32")
    return model.fit(x, y, batch_size=batch_size, epochs=epochs, callbacks=list(callbacks), verbose=0)


def measured(keras, model, x):
    """The records before the first batch."""
    callback = callback_of(x, every=10**6)
    fit(keras, model, x, [callback], batch_size=10**6)
    return callback.monitor.history


def assert_is_the_flow(record, layer, x, state=None, lengths=None):
    """By lag, in the norms of `gradient_flow`, of which this is known to be right."""
    flow = tt.gradient_flow(layer, x, state=state, lengths=lengths)
    assert record.steps == flow.steps
    assert record.rows == flow.names
    for row, reverse in enumerate(flow.reverse):
        each = flow.log10_norm_per_sequence[row]
        for lag, found in zip(record.lags, record.log10_norm[row], strict=True):
            ends = np.full(x.shape[0], flow.steps) if lengths is None else lengths
            at = [(lag if reverse else end - 1 - lag, b) for b, end in enumerate(ends) if end > lag]
            expected = 0.5 * np.log10(sum(10.0 ** (2 * each[place]) for place in at))
            assert found == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(record.gamma, flow.gamma)
    np.testing.assert_array_equal(record.horizon, flow.horizon(1e-3))
    assert record.cancellation == {}
    assert record.clipped_share is record.not_finite is None


def ours(keras_layer, kind, **options):
    """The layer here with the weights of a Keras layer."""
    word = {tt.LSTM: "LSTM", tt.GRU: "GRU", tt.RNN: "SimpleRNN"}[kind]
    parameters = tt.convert.from_keras(word, keras_layer.get_weights())
    layer = kind(parameters["weight_ih_l0"].shape[1], H, batch_first=True, **options)
    layer.load_parameters(parameters)
    return layer


def forms(keras):
    """Keras's layer, our class, our options."""
    layers = keras.layers
    relu = {"activation": "relu", "recurrent_initializer": "identity"}
    return [
        (layers.LSTM(H, return_sequences=True), tt.LSTM, {}),
        (
            layers.LSTM(H, return_sequences=True, go_backwards=True, use_bias=False),
            tt.LSTM,
            {"reverse": True, "bias": False},
        ),
        (layers.GRU(H, return_sequences=True), tt.GRU, {}),
        (layers.GRU(H, return_sequences=True, reset_after=False), tt.GRU, {"reset_after": False}),
        (layers.SimpleRNN(H, return_sequences=True, **relu), tt.RNN, {"nonlinearity": "relu"}),
        (layers.SimpleRNN(H, return_sequences=True, activation="sigmoid"), tt.RNN, {"nonlinearity": "sigmoid"}),
        (layers.Bidirectional(layers.LSTM(H, return_sequences=True)), tt.LSTM, {"bidirectional": True}),
        (layers.Bidirectional(layers.GRU(H)), tt.GRU, {"bidirectional": True}),
    ]


def test_every_layer_of_a_stack_at_its_own_input(keras):
    """The inputs come from models up to each layer."""
    found, x = forms(keras), random(B, T, I)
    model = keras.Sequential([keras.Input((T, I)), keras.layers.Dropout(0.5), *(layer for layer, *_ in found)])
    expected = []
    for layer, kind, options in found:
        entering = keras.Model(model.inputs, layer.input)(x, training=False)
        expected.append((layer.name, ours(layer, kind, **options), keras.ops.convert_to_numpy(entering)))
    records = measured(keras, model, x)
    for record, (name, layer, entering) in zip(records, expected, strict=True):
        assert (record.step, record.layer) == (0, name)
        assert_is_the_flow(record, layer, entering)


def test_an_orthogonal_network_has_a_straight_line(keras):
    """With zeros for an input every Jacobian is the recurrent kernel, a times a rotation: the slope is log10 a."""
    layer, steps = keras.layers.SimpleRNN(H, recurrent_initializer=keras.initializers.Orthogonal(1e-3)), 120
    (record,) = measured(keras, keras.Sequential([keras.Input((steps, I)), layer]), np.zeros((B, steps, I), "float32"))
    start = 0.5 * np.log10(B * H)
    np.testing.assert_allclose(record.log10_norm[0], start - 3 * record.lags, rtol=1e-6)
    assert record.log10_norm[0, -1] < -350  # below the range of float64
    assert record.gamma[0] == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize("two", [False, True])
def test_masks_of_padding_are_lengths(keras, two):
    tokens = np.random.default_rng(0).integers(1, 9, (4, T))
    lengths = np.array([T - 1, 0, 1, 7])
    tokens[np.arange(T) >= lengths[:, None]] = 0
    layer = keras.layers.LSTM(H)
    layer = keras.layers.Bidirectional(layer) if two else layer
    embedding = keras.layers.Embedding(9, I, mask_zero=True)
    model = keras.Sequential([keras.Input((T,), dtype="int32"), embedding, layer])
    entering, converted = keras.ops.convert_to_numpy(embedding(tokens)), ours(layer, tt.LSTM, bidirectional=two)
    (record,) = measured(keras, model, tokens)
    assert_is_the_flow(record, converted, entering, lengths=lengths)


def test_another_mask_is_an_error(keras):
    tokens = np.ones((2, T), int)
    tokens[1, 0] = 0
    embedding = keras.layers.Embedding(9, I, mask_zero=True)
    model = keras.Sequential([keras.Input((T,), dtype="int32"), embedding, keras.layers.GRU(H, name="reader")])
    with pytest.raises(ValueError, match="the mask of layer 'reader' hides other steps than padding at the end"):
        measured(keras, model, tokens)


@pytest.mark.parametrize("two", [False, True])
def test_initial_states_of_a_decoder(keras, two):
    layers = keras.layers
    wrap = layers.Bidirectional if two else lambda layer: layer
    source, target = keras.Input((7, I)), keras.Input((T, 2))
    encoder = wrap(layers.LSTM(H, return_state=True))
    decoder = wrap(layers.LSTM(H))
    _, *states = encoder(source)
    model = keras.Model([source, target], decoder(target, initial_state=states))
    x = [random(B, 7, I), random(B, T, 2, seed=1)]
    options = {"bidirectional": two}
    first, second = ours(encoder, tt.LSTM, **options), ours(decoder, tt.LSTM, **options)
    parts = [keras.ops.convert_to_numpy(part) for part in keras.Model(source, states)(x[0])]  # h, c, h, c
    state = np.stack(parts[::2]), np.stack(parts[1::2])
    records = measured(keras, model, x)
    assert [record.layer for record in records] == [encoder.name, decoder.name]
    assert_is_the_flow(records[0], first, x[0])
    assert_is_the_flow(records[1], second, x[1], state=state)


def test_models_inside_and_layers_that_are_called_twice(keras):
    layers = keras.layers
    shared = layers.GRU(H, return_sequences=True)
    block = keras.Sequential([layers.Dense(H), shared, shared])

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.block, self.top = block, layers.SimpleRNN(2, name="top")

        def call(self, x):
            return self.top(self.block(x))

    model, x = Model(), random(B, T, I)
    model(x)
    callback = callback_of(x)
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((B, 2)), callbacks=[callback], verbose=0)
    assert [record.layer for record in callback.monitor.history] == [shared.name, shared.name, "top"]


def network(keras, steps):
    keras.utils.set_random_seed(3)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((steps, I)),
            layers.LSTM(H, return_sequences=True, dropout=0.2, seed=1, activity_regularizer="l2"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Bidirectional(layers.GRU(H, recurrent_dropout=0.2)),  # without a seed, torch draws
            layers.Dense(1),
        ]
    )


def test_no_bit_of_twenty_steps_changes(keras, tmp_path):
    x, results, losses = random(10 * B, 8, I), [], []
    path = tmp_path / "flow.jsonl"
    callback = callback_of(x[:2], every=7, sinks=[tt.sinks.JsonLines(path)])
    for callbacks in ([], [callback]):
        model, own = network(keras, 8), []
        keeps = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs, own=own: own.append(logs["loss"]))
        fit(keras, model, x, [keeps, *callbacks], epochs=2)
        results.append([array.tobytes() for array in model.get_weights()])
        losses.append(own)
    assert results[0] == results[1]
    assert losses[0] == losses[1] == callback.monitor.losses
    assert len(losses[0]) == 20
    assert [record.step for record in callback.monitor.history] == [0, 0, 7, 7, 14, 14]
    assert len(path.read_text().splitlines()) == 6
    first, *_, last = callback.monitor.history[::2]
    assert (first.log10_norm != last.log10_norm).any()  # of the present weights
    assert not any("call" in vars(layer) for layer in model.layers)


def test_what_cannot_be_measured_is_an_error(keras):
    layers = keras.layers

    def check(layer, message, shape=(T, I), batch=None):
        with pytest.raises(ValueError, match=message):
            measured(keras, keras.Sequential([keras.Input(shape, batch), layer]), random(B, *shape))

    check(layers.Dense(1), "has no SimpleRNN, GRU or LSTM to measure")
    check(layers.LSTM(H, stateful=True), "is stateful: it starts from the batch before", batch=B)
    check(layers.LSTM(H, activation="relu", name="odd"), "an activation of layer 'odd' is relu, expected tanh")
    check(layers.GRU(H, recurrent_activation="tanh"), "is tanh, expected sigmoid")
    check(layers.SimpleRNN(H, activation="gelu"), "is gelu, expected tanh or relu or sigmoid")
    forward, backward = layers.LSTM(H), layers.GRU(H, go_backwards=True)
    check(layers.Bidirectional(forward, backward_layer=backward), "differ in kind or units, expected the same")
    swapped = layers.Bidirectional(layers.LSTM(H, go_backwards=True), backward_layer=layers.LSTM(H))
    check(swapped, "the forward direction of layer .* has go_backwards=True, expected False")
    check(layers.Bidirectional(layers.RNN(layers.LSTMCell(H))), "is a RNN, expected a SimpleRNN, GRU or LSTM")


JAX = """
import keras, numpy as np
from throughtime.callbacks.keras import FlowMonitorCallback
x, weights = np.random.default_rng(0).standard_normal((20, 9, 3)).astype("float32"), []
callback = FlowMonitorCallback(x[:4], every=2)
for callbacks in ([], [callback]):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((9, 3)), keras.layers.GRU(4, dropout=0.2)])
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((20, 4)), batch_size=4, callbacks=callbacks, verbose=0)
    weights.append([array.tobytes() for array in model.get_weights()])
history = callback.monitor.history
assert keras.backend.backend() == "jax"
assert weights[0] == weights[1]
assert [record.step for record in history] == [0, 2, 4]
assert len({record.gamma[0] for record in history}) == 3
"""


def test_with_jax(tmp_path):
    """With this backend, Keras takes the weights out of the model while it trains."""
    pytest.importorskip("jax")
    pytest.importorskip("keras")
    environment = os.environ | {"KERAS_BACKEND": "jax", "KERAS_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", JAX], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_example_runs(keras):
    from throughtime.callbacks import keras as module

    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 0) == (0, True)
