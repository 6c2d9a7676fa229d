"""Random numbers as docs/random.md defines them: Philox for masks, PCG64 for initial weights, and their states."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits
from problems import Problem
from throughtime._random import Draw

LIMIT = (1 << 64) - 1


def philox(counter, key):
    """Philox4x64-10 of Salmon et al. (2011): four numbers of 64 bits from a counter of four and a key of two."""
    (a, b, c, d), (k, l) = counter, key  # noqa: E741
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = second >> 64 ^ b ^ k, second & LIMIT, first >> 64 ^ d ^ l, first & LIMIT
        k, l = (k + 0x9E3779B97F4A7C15) & LIMIT, (l + 0xBB67AE8584CAA73B) & LIMIT  # noqa: E741
    return a, b, c, d


def number(key, mask, passes, i):
    """Number i of 32 bits of a mask."""
    return philox((i // 8 + 1, 0, mask, passes), key)[i % 8 // 2] >> 32 * (i % 2) & 0xFFFFFFFF


def test_the_generator_is_philox():
    """Its first values are those that its authors publish; the rest is NumPy's."""
    assert philox((0, 0, 0, 0), (0, 0)) == (
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    )
    key, mask, passes = (LIMIT, 3), 5, LIMIT - 1
    words = Draw(key, mask, passes).words(19)
    assert [number(key, mask, passes, i) for i in range(19)] == words.tolist()


OPTIONS = {"dropout": 0.5, "zoneout": (0.25, 0.75), "weight_dropout": 0.375}
KINDS = ("dropout", "zoneout_h", "zoneout_c", "weight_hh")


def noisy_lstm(**options):
    return tt.LSTM(3, 4, 3, bidirectional=True, **{**OPTIONS, **options}, seed=7)


def numbers(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def test_every_mask_is_a_function_of_the_seed_the_pass_and_its_place():
    layer, x = noisy_lstm(), numbers(5, 2, 3)
    key = tuple(map(int, layer.get_rng_state()[0, :2]))
    rates = {"dropout": 0.5, "zoneout_h": 0.25, "zoneout_c": 0.75, "weight_hh": 0.375}
    for passes in range(2):
        masks = layer.forward(x).masks
        assert len(masks) == 2 + 3 * 6
        for name, mask in masks.items():
            kind, _, place = name.rpartition("_l")
            layer_index, _, direction = place.partition("_")
            place = KINDS.index(kind) + 8 * (2 * int(layer_index) + bool(direction))
            expected = [number(key, place, passes, i) < rates[kind] * 2**32 for i in range(mask.size)]
            assert mask.ravel().tolist() == expected, name


def test_the_key_is_what_the_generator_of_the_weights_would_give_next():
    rng = np.random.Generator(np.random.PCG64(7))
    layer = tt.GRU(3, 4, seed=7)
    for array in layer.parameters.values():
        np.testing.assert_array_equal(array, rng.uniform(-0.5, 0.5, array.shape).astype(np.float32))
    assert layer.get_rng_state().tolist() == [[*rng.bit_generator.random_raw(2).tolist(), 0]]


@pytest.mark.parametrize("seed", [3, [3, 4], np.random.SeedSequence(3)], ids=repr)
def test_a_seed_means_pcg64(seed):
    expected = np.random.Generator(np.random.PCG64(seed)).standard_normal((5, 2)).astype(np.float32)
    assert_same_bits(tt.Embedding(5, 2, seed=seed).parameters["weight"], expected)


def test_layers_that_share_a_generator_have_different_masks_and_leave_it_to_the_weights():
    shared, alone = np.random.default_rng(0), np.random.default_rng(0)
    one, other = (tt.GRU(3, 4, zoneout=0.5, seed=shared) for _ in range(2))
    one.forward(numbers(5, 2, 3))
    plain = [tt.GRU(3, 4, seed=alone) for _ in range(2)]
    assert_same_bits((one.parameters, other.parameters), tuple(layer.parameters for layer in plain))
    assert shared.bit_generator.state == alone.bit_generator.state
    assert (one.get_rng_state()[:, :2] != other.get_rng_state()[:, :2]).all()


@pytest.mark.parametrize("without", OPTIONS)
def test_an_option_leaves_the_masks_of_the_others_alone(without):
    x = numbers(5, 2, 3)
    every, fewer = noisy_lstm().forward(x).masks, noisy_lstm(**{without: 0.0}).forward(x).masks
    assert fewer.keys() < every.keys()
    assert_same_bits(fewer, {name: every[name] for name in fewer})
    given = {name: every[name] for name in every.keys() - fewer.keys()}
    assert_same_bits(noisy_lstm().forward(x, masks=given).masks, every)


def test_only_passes_that_draw_masks_count():
    layer, x = noisy_lstm(), numbers(5, 2, 3)
    masks = layer.forward(x).masks
    assert layer.get_rng_state()[0, 2] == 1
    layer(x)
    layer.forward(x, training=False)
    layer.forward(x, masks=masks)
    tt.GRU(3, 4, seed=0).forward(x)
    assert layer.get_rng_state()[0, 2] == 1


def test_longer_inputs_begin_with_the_same_masks():
    short, long = (noisy_lstm().forward(numbers(steps, 2, 3)).masks for steps in (5, 9))
    assert_same_bits({name: mask[: len(short[name])] for name, mask in long.items()}, short)


def test_training_has_the_same_bits_for_any_number_of_threads(threads):
    problem, found = Problem("lstm", T=20, B=21, H=70, dtype="float32"), []
    for count in (1, 2):
        threads(count)
        layer, optimizer = tt.LSTM(5, 70, 2, **OPTIONS, seed=0), tt.optim.Adam()
        for _ in range(2):
            tape = layer.forward(problem.x)
            optimizer.step(layer.parameters, tape.backward(np.ones_like(tape.output)).parameters)
        found.append((layer.parameters, layer.get_rng_state()))
    assert_same_bits(found[0], found[1])


def test_threads_that_call_one_layer_draw_different_masks():
    layer, x, found = tt.GRU(3, 64, zoneout=0.5, seed=0), numbers(5, 2, 3), []

    def call():
        found.extend(layer.forward(x).masks["zoneout_h_l0"].tobytes() for _ in range(5))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(set(found)) == 20
    assert layer.get_rng_state()[0, 2] == 20


@pytest.mark.parametrize("probability", [1.0, 1 - 2**-33, 2**-34])
def test_probabilities_at_the_ends_are_rounded_to_32_bits(probability):
    layer = tt.RNN(3, 400, zoneout=probability, seed=0)
    mask = layer.forward(numbers(50, 2, 3)).masks["zoneout_h_l0"]
    assert mask.all() == mask.any() == (probability > 0.5)


# States


def stack(seed=0):
    return tt.Sequential(
        tt.Linear(3, 4, seed=0),
        tt.ResidualBlock(tt.LSTM(4, 4, zoneout=0.5, seed=[seed, 1]), 4),
        tt.GRU(4, 4, weight_dropout=0.5, seed=[seed, 2]),
    )


def test_a_state_restores_the_masks_of_a_stack():
    layers, other, x = stack(), stack(seed=1), numbers(5, 2, 3)
    layers.forward(x)
    state = layers.get_rng_state()
    assert (state.shape, state.dtype) == ((2, 3), np.uint64)
    masks = tuple(layers.forward(x).masks for _ in range(2))
    other.set_rng_state(state)
    assert_same_bits(tuple(other.forward(x).masks for _ in range(2)), masks)
    assert_same_bits(other.get_rng_state(), layers.get_rng_state())


def test_a_shallow_copy_draws_the_same_masks_by_itself():
    layer, x = noisy_lstm(), numbers(5, 2, 3)
    other = copy.copy(layer)
    assert_same_bits(layer.forward(x).masks, other.forward(x).masks)
    assert layer.get_rng_state()[0, 2] == 1


def test_layers_without_masks_have_an_empty_state():
    layer = tt.Sequential(tt.Linear(3, 4), tt.Tanh())
    assert layer.get_rng_state().shape == (0, 3)
    layer.set_rng_state(layer.get_rng_state())


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        (np.zeros((1, 3), np.uint64), ValueError, r"state has shape \(1, 3\), expected \(2, 3\)"),
        (np.zeros((2, 3)), TypeError, "state has dtype float64, expected uint64"),
        ([1, 2, 3], TypeError, "state must be a NumPy array"),
    ],
)
def test_wrong_states_change_nothing(state, error, words):
    layers = stack()
    before = layers.get_rng_state()
    with pytest.raises(error, match=words):
        layers.set_rng_state(state)
    assert_same_bits(layers.get_rng_state(), before)
