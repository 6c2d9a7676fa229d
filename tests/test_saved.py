"""Files of layers: saved layers load again; any other file raises ValueError before it costs time or memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import textwrap
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import throughtime as tt
from throughtime._saved import FORMAT

LAYERS = {
    "rnn": lambda: tt.RNN(3, 4, num_layers=2, nonlinearity="relu", dropout=0.25, seed=0),
    "gru": lambda: tt.GRU(3, 4, bidirectional=True, reset_after=False, seed=0),
    "lstm": lambda: tt.LSTM(3, 4, proj_size=2, zoneout=(0.1, 0.2), dtype="float64", seed=0),
    "attention": lambda: tt.SelfAttention(4, 2, window=3, seed=0),
    "stack": lambda: tt.Sequential(
        tt.Embedding(5, 4, seed=0),
        tt.ResidualBlock(tt.LSTM(4, 4, seed=1), 4, branch_scale=0.5),
        tt.ResidualBlock(tt.MLP(4, 8, "gelu", seed=2), 4, norm="post"),
        tt.LayerNorm(4),
        tt.Linear(4, 2, bias=False, seed=3),
    ),
}
CONFIGURATION = "__throughtime__"
LINEAR = {"layer": "Linear", "config": {"input_size": 2, "output_size": 3, "bias": True, "dtype": "float32"}}


@pytest.fixture(scope="module", params=LAYERS)
def layer(request):
    return LAYERS[request.param]()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("saved") / "layer"


def saved(layer, path):
    layer.save(path)
    return path.read_bytes()


def entries_of(layer, path):
    """The contents of a saved file: its configuration, and the arrays."""
    with np.load(io.BytesIO(saved(layer, path))) as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop(CONFIGURATION))), arrays


def write(path, configuration, arrays, save=np.savez):
    text = configuration if isinstance(configuration, str) else json.dumps(configuration)
    with path.open("wb") as file:
        save(file, **{CONFIGURATION: np.array(text), **arrays})


def same(one, other):
    return (
        repr(one) == repr(other)
        and one.parameters.keys() == other.parameters.keys()
        and all(np.array_equal(array, other.parameters[name]) for name, array in one.parameters.items())
    )


def refused(path, *words):
    with pytest.raises(ValueError, match="path is not a layer") as caught:
        tt.load(path)
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def same_or_refused(path, layer):
    found = None
    with suppress(ValueError):
        found = tt.load(path)
    assert found is None or same(found, layer)


def test_a_layer_comes_back(layer, path):
    saved(layer, path)
    assert same(tt.load(path), layer)
    assert same(tt.load(str(path)), layer)


def test_what_was_compressed_since_is_read_too(layer, path):
    configuration, arrays = entries_of(layer, path)
    write(path, configuration, arrays, np.savez_compressed)
    assert same(tt.load(path), layer)


@given(data=st.data())
def test_a_damaged_file_is_refused_or_harmless(layer, path, data):
    """Bytes changed, cut off or inserted anywhere: a ValueError, or the same layer if the bytes have no meaning."""
    whole = bytearray(saved(layer, path))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from(["change", "change", "cut", "insert"])):
            case "change":
                whole[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del whole[at : at + data.draw(st.integers(1, 100))]
            case "insert":
                whole[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    path.write_bytes(whole)
    same_or_refused(path, layer)


@given(data=st.data())
def test_damage_to_the_directory_of_a_zip_file(layer, path, data):
    """Sizes, offsets, methods and flags, which no checksum covers."""
    whole = bytearray(saved(layer, path))
    start = whole.index(b"PK\x01\x02")
    for _ in range(data.draw(st.integers(1, 2))):
        whole[data.draw(st.integers(start, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    same_or_refused(path, layer)


def test_every_bit_of_an_array_counts(path):
    layer = LAYERS["rnn"]()
    whole = bytearray(saved(layer, path))
    whole[whole.index(layer.parameters["weight_hh_l0"].tobytes()) + 5] ^= 1
    path.write_bytes(whole)
    refused(path, "CRC")


@pytest.mark.parametrize("name", ["weight_hh_l0", "bias_ih_l1"])
def test_names_and_shapes_are_those_of_the_configuration(path, name):
    configuration, arrays = entries_of(LAYERS["rnn"](), path)
    for others in (
        {key: array for key, array in arrays.items() if key != name},
        {**arrays, name: arrays[name][:-1]},
        {**arrays, name: arrays[name].astype(complex)},
        {**arrays, name: arrays[name].astype("timedelta64[s]")},
        {**arrays, "other": arrays[name]},
    ):
        write(path, configuration, others)
        refused(path, name if "other" not in others else "other")


def nested(depth):
    return '{"layer": "Sequential", "config": {"layers": [' * depth + "]}}" * depth


@pytest.mark.parametrize(
    "configuration",
    [
        "",
        "{",
        "3",
        "[]",
        '"text"',
        "[" * 100_000,
        nested(2_000),
        {"layer": "Linear"},
        {"layer": "NoSuchLayer", "config": {}},
        {"layer": [], "config": {}},
        {"layer": "Linear", "config": []},
        {"layer": "Linear", "config": {"input_size": 3, "output_size": 4, "unknown": 5}},
        {"layer": "Linear", "config": {"input_size": 3}},
        {"layer": "Linear", "config": {"input_size": 10**400, "output_size": 4}},
        {"layer": "Linear", "config": {"input_size": 2**62, "output_size": 2**62}},
        '{"layer": "LayerNorm", "config": {"size": 3, "eps": 1e999}}',
        '{"layer": "LayerNorm", "config": {"size": 3, "eps": NaN}}',
        {"layer": "LayerNorm", "config": {"size": 3, "eps": 10**400}},
        {"layer": "Sequential", "config": {"layers": []}},
        {"layer": "Sequential", "config": {"layers": [3]}},
    ],
    ids=lambda configuration: str(configuration)[:60],
)
def test_configurations_that_no_layer_has(path, configuration):
    write(path, configuration, {"weight": np.zeros((4, 3), np.float32)})
    refused(path)


def described(**changes):
    """The configuration of `LINEAR`, as a file has it, with changes; None leaves an entry out."""
    entries = {"format": FORMAT, "version": "9.8.7", "model": LINEAR, **changes}
    return {name: value for name, value in entries.items() if value is not None}


LINEAR_ARRAYS = {"weight": np.zeros((3, 2), np.float32), "bias": np.zeros(3, np.float32)}


def test_a_file_names_its_format_and_version(path):
    configuration, arrays = entries_of(LAYERS["stack"](), path)
    assert configuration.keys() == {"format", "version", "model"}
    assert (configuration["format"], configuration["version"]) == (FORMAT, tt.__version__)
    assert arrays["__rng_state__"].shape == (1, 3)


@pytest.mark.parametrize("model", [LINEAR, {"layer": "Later", "config": {"new": 1}}, {"entirely": "different"}, None])
def test_a_file_in_a_newer_format_names_both_versions(path, model):
    """Whatever else it holds: the format is read first."""
    write(path, described(format=FORMAT + 1, model=model), {})
    with pytest.raises(ValueError, match=r"path was saved by throughtime 9\.8\.7 in format 2, but this is") as caught:
        tt.load(path)
    assert f"throughtime {tt.__version__}, which reads formats up to {FORMAT}" in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_layer_that_only_another_version_has_names_both_versions(path):
    model = {"layer": "Linear", "config": {**LINEAR["config"], "rank": 3}}
    write(path, described(model=model), LINEAR_ARRAYS)
    refused(path, "rank", "saved by throughtime 9.8.7", f"this is throughtime {tt.__version__}")


@pytest.mark.parametrize("version", ["9.8.7", None, 3, "x" * 1000])
def test_any_version_with_this_format_is_read(path, version):
    write(path, described(version=version), LINEAR_ARRAYS)
    assert repr(tt.load(path)) == "Linear(2, 3)"


@pytest.mark.parametrize("number", [0, -1, "1", 1.0, True, [], {"layer": "Linear", "config": {}}])
def test_a_format_is_a_number_from_one(path, number):
    write(path, described(format=number), LINEAR_ARRAYS)
    refused(path, "format")


def test_a_long_version_is_cut(path):
    write(path, described(format=10**30, version="x" * 10_000), LINEAR_ARRAYS)
    with pytest.raises(ValueError, match="format 10000") as caught:
        tt.load(path)
    assert len(str(caught.value)) < 600


def test_a_file_before_versions_loads(path):
    """Its random masks begin anew."""
    configuration, arrays = entries_of(LAYERS["lstm"](), path)
    del arrays["__rng_state__"]
    write(path, configuration["model"], arrays)
    one, other = tt.load(path), tt.load(path)
    assert same(one, LAYERS["lstm"]())
    assert not np.array_equal(one.get_rng_state(), other.get_rng_state())


@pytest.mark.parametrize(
    "state", [np.zeros((2, 3), np.uint64), np.zeros((1, 3)), np.zeros((1, 3), np.uint8), np.zeros(3, np.uint64)]
)
def test_a_state_of_masks_fits_the_layer(path, state):
    configuration, arrays = entries_of(LAYERS["lstm"](), path)
    write(path, configuration, {**arrays, "__rng_state__": state})
    refused(path, "state")


def test_other_files(path):
    for content in (b"", b"PK", b"something else", b"PK\x05\x06" + bytes(18), bytes(1000)):
        path.write_bytes(content)
        refused(path)
    with path.open("wb") as file:
        np.savez(file, weight=np.zeros(3))
    refused(path, "configuration")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(f"{CONFIGURATION}.npy", b"\x93NUMPY")
    refused(path, "method")


PEAK = """
import resource, sys, time
import throughtime as tt
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    tt.load(sys.argv[1])
except ValueError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def peak_of_refusal(path):
    """Megabytes that reading a file takes until it is refused; the process is killed after 20 seconds."""
    command = [sys.executable, "-c", textwrap.dedent(PEAK), str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024


@pytest.mark.parametrize(
    ("configuration", "arrays"),
    [
        ({"layer": "LSTM", "config": {"input_size": 1, "hidden_size": 1, "num_layers": 10**6}}, {}),
        ({"layer": "LSTM", "config": {"input_size": 1, "hidden_size": 1, "num_layers": 10**4}}, {}),
        ({"layer": "Linear", "config": {"input_size": 10**4, "output_size": 10**4}}, {"weight": np.zeros(3)}),
        ({"layer": "Sequential", "config": {"layers": [LINEAR] * 10_000}}, {"0.weight": np.zeros((3, 2))}),
        (LINEAR, {"weight": np.zeros((3, 2)), "bias": np.zeros(10**8 // 8)}),  # 100 MB of zeros in 100 kB
    ],
    ids=["a million layers", "many layers", "a large layer", "a long stack", "a large array"],
)
def test_a_small_file_costs_little(path, configuration, arrays):
    """Memory is allocated only for data that the file has; reading 100 kB takes a few times that."""
    write(path, configuration, arrays, np.savez_compressed)
    assert path.stat().st_size < 500_000
    assert peak_of_refusal(path) < 30


@pytest.mark.parametrize("path", [True, 1, None, 2.5, ["layer"], io.BytesIO()], ids=lambda path: type(path).__name__)
def test_a_path_is_the_name_of_a_file(path):
    """An int is not a path, although `open` takes it for a file descriptor."""
    layer = LAYERS["rnn"]()
    for call in (layer.save, tt.load):
        with pytest.raises(TypeError, match="path must be"):
            call(path)


def test_an_error_of_the_system_names_the_path_and_nothing_else(tmp_path):
    path = tmp_path / "absent" / "model.npz"
    with pytest.raises(FileNotFoundError) as caught:
        tt.RNN(2, 3).save(path)
    assert str(caught.value).endswith(f"directory: {str(path)!r}")
