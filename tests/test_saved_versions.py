"""What earlier versions saved loads for ever: tests/saved has a folder for each, which tests/write_saved.py wrote.

0.0 holds what was written before the first release: files without a version, and two sets of pickles, of which
``old-modules.pickle`` names the classes' modules of that time.
"""

from __future__ import annotations

import pickle
from functools import cache

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits, rounding_bound
from throughtime.layers.layer import Composite, Layer
from write_saved import SAVED, input_of, layers, optimizers

VERSIONS = sorted(folder.name for folder in SAVED.iterdir())
FILES = sorted(path for path in SAVED.glob("*/*.npz") if path.stem in layers())
STATES = sorted(path for path in SAVED.glob("*/*.npz") if path.stem in optimizers())
PICKLES = sorted((path, name) for path in SAVED.glob("*/*.pickle") for name in pickle.loads(path.read_bytes()))


def named(path):
    return str(path.relative_to(SAVED))


@cache
def results(version):
    with np.load(SAVED / version / "results.npz") as file:
        return dict(file)


def check_layer(layer, name, version):
    """The outputs agree to rounding: a layer of these has at most 100 operations per output, and no number above 8."""
    expected, x, bound = results(version), input_of(layer), 8 * rounding_bound(layer.dtype, 100)
    np.testing.assert_allclose(layer.forward(x, training=False).output, expected[name], rtol=0, atol=bound)
    if f"{name}, training" in expected:  # random masks
        np.testing.assert_allclose(layer.forward(x).output, expected[f"{name}, training"], rtol=0, atol=bound)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_files_of_layers(path, tmp_path):
    layer = tt.load(path)
    assert repr(layer) == repr(layers()[path.stem])
    with np.load(path) as file:
        assert_same_bits(layer.parameters, {name: file[name] for name in layer.parameters})
        assert_same_bits(layer.buffers, {name: file[name] for name in layer.buffers})
    layer.save(tmp_path / "again")
    again = tt.load(tmp_path / "again")
    check_layer(layer, path.stem, path.parent.name)
    check_layer(again, path.stem, path.parent.name)


@pytest.mark.parametrize(("path", "name"), PICKLES, ids=lambda value: value if isinstance(value, str) else named(value))
def test_pickles(path, name):
    data = pickle.loads(path.read_bytes())[name]
    if b"numpy.random" in data and np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("only NumPy 2 reads the generators that it has pickled; later pickles have none")
    loaded = pickle.loads(data)
    copied = pickle.loads(pickle.dumps(loaded))
    match loaded:
        case Layer():
            x = input_of(loaded)
            assert_same_bits(copied.forward(x).output, loaded.forward(x).output)  # with the same masks
            if path.stem == "pickles":
                assert repr(loaded) == repr(layers()[name])
                check_layer(pickle.loads(data), name, path.parent.name)
        case tt.optim.SGD() | tt.optim.Adam():
            check_optimizer(loaded, name)
        case tt.Gradients():
            assert_same_bits(vars(copied), vars(loaded))
            assert {"input", "hidden", "parameters"} <= vars(loaded).keys()
        case tt.Diagnosis():
            assert str(copied) == str(loaded)
            assert "GRU(2, 2)" in str(loaded)
        case _:
            assert isinstance(loaded, type(tt.gradient_flow(tt.RNN(1, 1), np.ones((2, 1, 1), np.float32))))
            assert "layer 0" in loaded.summary()


def check_optimizer(optimizer, name):
    """It has the state of one that was made here, whose steps are a few exact operations on equal numbers."""
    made = optimizers()[name]
    assert repr(optimizer) == repr(made)
    ours, expected = optimizer.state_dict(), made.state_dict()
    assert ours.keys() == expected.keys()
    for key, array in ours.items():
        np.testing.assert_allclose(array, expected[key], rtol=rounding_bound("float32", 10))


@pytest.mark.parametrize("path", STATES, ids=named)
def test_states_of_optimizers(path):
    optimizer = tt.optim.SGD(1) if path.stem == "SGD" else getattr(tt.optim, path.stem)()
    with np.load(path) as file:
        optimizer.load_state_dict(file)
    check_optimizer(optimizer, path.stem)


@pytest.mark.parametrize("version", VERSIONS)
def test_models_of_the_command_line(version):
    pytest.importorskip("typer")
    pytest.importorskip("rich")
    from throughtime.cli.character_model import CharacterModel

    model = CharacterModel.load(SAVED / version / "model")
    written = model.write_on(np.array([0]), 5, 0.7, np.random.default_rng(0))
    assert len(written) == 5
    assert set(written) <= set(model.vocabulary)


@pytest.mark.parametrize("version", [version for version in VERSIONS if version != "0.0"])
def test_files_name_their_version(version):
    for path in (SAVED / version).glob("**/*.npz"):
        with np.load(path) as file:
            if "__throughtime__" in file:
                assert f'"version": "{version}"' in str(file["__throughtime__"])


def test_every_kind_of_layer_is_among_those_to_write():
    def kinds(layer):
        yield layer._kind
        for inner in layer._inner.values() if isinstance(layer, Composite) else ():
            yield from kinds(inner)

    assert {kind for layer in layers().values() for kind in kinds(layer)} == set(Layer._kinds)
