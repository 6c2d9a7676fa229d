"""Arrays on the device: exchange by DLPack and __cuda_array_interface__, views, copies, and refused arguments."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch

import throughtime as tt
from capsules import Interface, Producer, bits
from stand_in import load_cuda
from throughtime import cuda
from throughtime._random import Draw

FLOATS = ("float32", "bfloat16", "float16")
on_stand_in = pytest.mark.skipif(not load_cuda().is_stand_in, reason="host memory stands in for the device's here")
DEVICE = "cpu" if load_cuda().is_stand_in else "cuda"


def numbers(shape, dtype="float32", seed=0):
    return np.array(np.random.default_rng(seed).standard_normal(shape) * 50, dtype)


# Exchange


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "int8", "uint8", "bool"])
def test_torch_reads_and_writes_the_same_memory(dtype):
    tensor = (torch.arange(-6, 6, device=DEVICE).reshape(3, 4) * 0.75).to(getattr(torch, dtype))
    array = cuda.from_dlpack(tensor)
    assert (array.shape, array.dtype, array.strides) == ((3, 4), dtype, tuple(s * array.itemsize for s in (4, 1)))
    back = torch.from_dlpack(array[1:, ::2].swapaxes(0, 1))
    assert back.data_ptr() == tensor[1:].data_ptr()
    assert torch.equal(back, tensor[1:, ::2].T)
    back[0, 0] = 1
    assert tensor[1, 0] == 1
    wide = tensor.float().cpu().numpy() if dtype == "bfloat16" else tensor.cpu().numpy()
    assert bits(array.numpy()) == bits(wide)


def test_a_tensor_that_requires_grad_comes_in():
    tensor = torch.ones(2, 3, device=DEVICE, requires_grad=True)
    assert np.array_equal(cuda.from_dlpack(tensor * 2).numpy(), np.full((2, 3), 2))


@on_stand_in
@pytest.mark.parametrize("major", [0, 1])
def test_a_capsule_is_deleted_once_and_not_before_the_last_view(major):
    producer = Producer(numbers((4, 5)), major=major)
    view = cuda.from_dlpack(producer)[1:]
    gc.collect()
    assert producer.deleted == 0
    assert np.array_equal(view.numpy(), producer.array[1:])
    del view
    gc.collect()
    assert producer.deleted == 1


@on_stand_in
@pytest.mark.parametrize(
    "array",
    [
        numbers((3, 4))[::-1],
        numbers((3, 4))[:, ::-2],
        np.broadcast_to(numbers(4), (3, 4)),
        numbers((6, 4)).T,
        numbers((0, 4)),
        numbers((3, 0, 2)),
        numbers(()),
        numbers((1, 1, 3)),
    ],
    ids=["negative", "negative columns", "zero strides", "transposed", "no rows", "no columns", "scalar", "ones"],
)
def test_every_layout_comes_in_and_goes_out(array):
    producer = Producer(array)
    found = cuda.from_dlpack(producer)
    assert np.array_equal(found.numpy(), array)
    assert np.array_equal(found.copy().numpy(), array)
    if array.size:  # empty arrays share no memory
        assert found.strides == array.strides
        back = np.from_dlpack(found)
        assert np.array_equal(back, array)
        assert back.__array_interface__["data"][0] == array.__array_interface__["data"][0]
        del back
    del found
    gc.collect()
    assert producer.deleted == 1


@on_stand_in
def test_offsets_and_missing_strides_come_in():
    values = numbers((5, 6))
    assert np.array_equal(cuda.from_dlpack(Producer(values[2:], offset=48, strides=False)).numpy(), values[2:])


@on_stand_in
def test_what_is_read_only_stays_so():
    array = cuda.from_dlpack(Producer(numbers(3), read_only=True))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        array += cuda.to_device(numbers(3))
    with pytest.raises(BufferError, match=r"max_version=\(1, 0\)"):
        array.__dlpack__()
    assert not np.from_dlpack(array).flags.writeable


@on_stand_in
@pytest.mark.parametrize(
    ("producer", "words"),
    [
        (Producer(np.zeros(2, np.complex64)), "code 5, 64 bits"),
        (Producer(numbers(2), lanes=4), "4 lanes"),
        (Producer(numbers(2), major=2), "version 2, expected 1"),
        (Producer(numbers(2), device=(10, 0)), r"device \(10, 0\), expected the current one, \(1, 0\)"),
        (Interface(numbers(2), mask=1), "masked"),
        (Interface(numbers(2).astype(">f4")), "byte order"),
        (numbers(2), r"host \(ndarray\): throughtime.cuda.to_device\(array\)"),
        ([1.0], r"host \(list\)"),
        ("word", "got str"),
    ],
)
def test_what_is_no_array_of_the_device_is_a_type_error(producer, words):
    with pytest.raises(TypeError, match="array.*" + words):
        cuda.from_dlpack(producer)
    assert getattr(producer, "deleted", 0) == 0


@on_stand_in
def test_a_capsule_is_taken_once():
    capsule = Producer(numbers(2)).__dlpack__()
    first = load_cuda().from_dlpack(capsule)
    with pytest.raises(TypeError, match="nobody has used"):
        load_cuda().from_dlpack(capsule)
    del first


@pytest.mark.parametrize("max_version", [None, (0, 8), (1, 0), (1, 1)])
@pytest.mark.parametrize("used", [True, False])
def test_what_goes_out_lives_as_long_as_its_reader(max_version, used):
    array = cuda.to_device(numbers((3, 4)))
    alive = weakref.ref(array._view)
    capsule = array.__dlpack__(max_version=max_version)
    assert ("dltensor_versioned" in repr(capsule)) == (max_version is not None and max_version[0] == 1)
    reader = torch.from_dlpack(capsule) if used else None
    del array, capsule
    gc.collect()
    assert (alive() is not None) == used
    if used:
        assert np.array_equal(reader.cpu().numpy(), numbers((3, 4)))
    del reader
    gc.collect()
    assert alive() is None


def test_a_copy_goes_out_where_it_is_asked_for():
    array = cuda.to_device(numbers(3))
    other = torch.from_dlpack(array.__dlpack__(copy=True))
    other[:] = 0
    assert np.array_equal(array.numpy(), numbers(3))
    with pytest.raises(BufferError, match=r"dl_device is \(7, 0\)"):
        array.__dlpack__(dl_device=(7, 0))
    with pytest.raises(ValueError, match="stream must not be 0"):
        array.__dlpack__(stream=0)


@on_stand_in
@pytest.mark.parametrize("array", [numbers((3, 4)), numbers((3, 4), "float16")[:, ::2], np.arange(6)[::-1] > 2])
def test_the_cuda_array_interface_both_ways(array):
    found = cuda.from_dlpack(Interface(array, stream=None))
    assert np.array_equal(found.numpy(), array)
    again = found.__cuda_array_interface__
    shown = array.__array_interface__
    assert all(again[name] == shown[name] for name in ("shape", "typestr", "data", "strides"))
    assert again["stream"] == 1
    read_only = cuda.from_dlpack(Interface(array, data=(shown["data"][0], True)))
    assert read_only.__cuda_array_interface__["data"][1]


def test_bfloat16_has_no_cuda_array_interface():
    array = cuda.to_device(numbers(3), "bfloat16")
    with pytest.raises(AttributeError, match="has no bfloat16; DLPack has"):
        array.__cuda_array_interface__  # noqa: B018
    assert torch.from_dlpack(array).dtype == torch.bfloat16


# Streams


def test_a_stream_is_a_number_or_another_library_s():
    class Mine:
        def __cuda_stream__(self):
            return 0, 0

    class Torch:
        cuda_stream = 0

    assert cuda.current_stream() == 0
    for handle in (0, Mine(), Torch()):
        with cuda.stream(handle):
            assert cuda.current_stream() == 0
    for wrong in ("0", None, 1.0, True):
        with pytest.raises(TypeError, match="handle must be a cudaStream_t"), cuda.stream(wrong):
            pass


@on_stand_in
def test_exchange_orders_two_streams_and_asks_with_the_current_one(monkeypatch):
    ordered, asked = [], []
    module = cuda.extension.extension()
    monkeypatch.setattr(module, "order", lambda earlier, later: ordered.append((earlier, later)))
    array = cuda.to_device(numbers(3))
    array.__dlpack__(stream=1), array.__dlpack__(stream=-1), array.__dlpack__()
    assert ordered == []
    with cuda.stream(7):
        array.__dlpack__(stream=9), array.__dlpack__(stream=7), array.__dlpack__(stream=-1), array.__dlpack__()
        cuda.from_dlpack(Interface(numbers(2), stream=8))
        assert array.__cuda_array_interface__["stream"] == 7
    assert ordered == [(7, 9), (7, 1), (8, 7)]

    class Asked(Producer):
        def __dlpack__(self, *, stream=None, **others):
            asked.append(stream)
            return super().__dlpack__(**others)

    monkeypatch.setattr(module, "is_stand_in", False)
    cuda.from_dlpack(Asked(numbers(2)))
    with cuda.stream(7):
        cuda.from_dlpack(Asked(numbers(2)))
    assert asked == [1, 7]


# Copies and views


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bool", "int64", "uint8"])
def test_views_are_numpy_s_and_copies_hold_what_they_show(dtype):
    """Random chains of views of items of each size, copied in both directions."""
    rng = np.random.default_rng(1)
    for _ in range(12):
        shape = tuple(rng.integers(1, 9, rng.integers(1, 5)))
        host = (rng.standard_normal(shape) * 9).astype(dtype)
        device = cuda.to_device(host)
        for _ in range(3):
            if host.ndim > 1 and rng.random() < 0.5:
                axes = rng.integers(0, host.ndim, 2)
                host, device = host.swapaxes(*axes), device.swapaxes(*axes)
            else:
                start, step = rng.integers(0, 2), rng.choice([1, 2, -1])
                key = (..., slice(None, None, step)) if rng.random() < 0.5 else slice(start, None, step)
                host, device = host[key], device[key]
        assert (device.shape, device.strides) == (host.shape, host.strides)
        assert bits(device.numpy()) == bits(host)
        assert bits(device.reshape(-1).numpy()) == bits(host)
        twice = np.zeros((2, *host.shape), dtype)
        on_device = cuda.to_device(twice)
        on_device[1], twice[1] = device, host
        on_device.swapaxes(0, -1)[...] = on_device.swapaxes(0, -1).copy()
        assert bits(on_device.numpy()) == bits(twice)


def test_keys_are_numpy_s_basic_ones():
    host = numbers((4, 5, 6))
    device = cuda.to_device(host)
    keys = [0, -1, np.int64(2), slice(1, 3), ..., None, (0, ..., None), (1, 2, 3), (slice(None), None, -2), ()]
    for key in keys:
        assert np.array_equal(device[key].numpy(), host[key]), key
    for key in ([0], np.array([0]), True, host > 0, "a", 1.0, (0, [1])):
        with pytest.raises(TypeError, match="indexed by integers, slices, None and"):
            device[key]
    with pytest.raises(IndexError):
        device[4]
    assert len(device) == 4
    assert [len(row) for row in device] == [5] * 4


@pytest.mark.parametrize("dtype", FLOATS)
def test_writing_takes_numbers_host_arrays_and_arrays_of_the_device(dtype):
    array = cuda.to_device(np.zeros((3, 4)), dtype)
    array[0] = 1.5
    array[1:, 1] = np.array([2.0, 3.0])
    array[:, 3] = array[:, 1]
    array[2, :2] = 0
    assert array.numpy().tolist() == [[1.5] * 4, [0, 2, 0, 2], [0, 0, 0, 3]]
    array[1:] = array[:-1]  # overlaps itself
    assert array.numpy().tolist() == [[1.5] * 4, [1.5] * 4, [0, 2, 0, 2]]
    with pytest.raises(TypeError, match=f"value has dtype int8, expected {dtype}"):
        array[0] = cuda.to_device(np.zeros(4, np.int8))
    with pytest.raises(ValueError, match="broadcast"):
        array[0] = np.zeros(3)


@pytest.mark.parametrize("dtype", FLOATS)
def test_addition_rounds_once(dtype):
    a, b = (torch.tensor(numbers((40, 7), seed=seed)).to(getattr(torch, dtype)).to(DEVICE) for seed in (1, 2))
    expected = a[::2].T + b[1::2].T
    found = cuda.from_dlpack(a.clone())[::2].swapaxes(0, 1)
    found += cuda.from_dlpack(b)[1::2].swapaxes(0, 1)
    assert torch.equal(torch.from_dlpack(found), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("probability", [0.3, 0.5, 1.0])
def test_dropout_is_numpy_s_in_float32_and_rounds_once(dtype, probability):
    from throughtime.backend.choose import backend_of
    from throughtime.backend.host import Host

    on_device = cuda.to_device(numbers((300, 7)), dtype)
    values = on_device.numpy().astype(np.float32)
    mask = np.random.default_rng(0).random(values.shape) < 0.4
    values[mask] = np.nan
    on_device[...] = values
    expected = cuda.to_device(Host.dropped(values, mask, probability), dtype).numpy()
    found = backend_of("cuda").dropped(on_device, cuda.to_device(mask), probability)
    assert bits(found.numpy()) == bits(expected)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(0,), (1,), (9,), (50, 401)])
def test_masks_are_those_that_the_host_draws(probability, shape):
    """Also where the counter and the key have their upper bits."""
    from throughtime.backend.choose import backend_of
    from throughtime.backend.host import Host

    for draw in (Draw((0, 0), 0, 0), Draw((2**64 - 3, 2**63 + 5), 7, 2**64 - 1)):
        found = backend_of("cuda").random_mask(draw, shape, probability).numpy()
        assert np.array_equal(found, Host.random_mask(draw, shape, probability))


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_not_finite_is_found_row_by_row(dtype):
    from throughtime.backend.choose import backend_of

    values = numbers((9, 5, 31))
    values[2, 4, 30], values[3, 0, 0], values[7, 2, 7] = np.nan, np.inf, -np.inf
    found = backend_of("cuda").finite(cuda.to_device(values, dtype).swapaxes(1, 2))
    assert np.flatnonzero(~found).tolist() == [2, 3, 7]


def test_host_numbers_are_rounded_as_torch_rounds_them():
    """All 2^16 patterns of a float's upper half, with lower halves on both sides of the tie and exactly on it."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper | lower).view(np.float32)
        number = ~np.isnan(values)
        found = cuda.to_device(values, "bfloat16").numpy()
        expected = torch.from_numpy(values).bfloat16().float().numpy()
        assert bits(found[number]) == bits(expected[number])
        assert np.isnan(found[~number]).all()
    assert bits(cuda.to_device(upper.view(np.float32), "bfloat16").numpy()[: 1 << 14]) == bits(upper[: 1 << 14])


def test_to_device_takes_what_numpy_takes():
    assert cuda.to_device([[1, 2], [3, 4]], "float16").numpy().tolist() == [[1, 2], [3, 4]]
    host = numbers((4, 3))[::-1, ::2]
    assert np.array_equal(cuda.to_device(host).numpy(), host)
    assert cuda.to_device(numbers(3, "float16")).dtype == "float16"
    with pytest.raises(TypeError, match=r"dtype must be one of 'float32'.*got 'complex128'"):
        cuda.to_device(np.zeros(2, complex))
    with pytest.raises(TypeError, match="got 'bfloat17'"):
        cuda.to_device(np.zeros(2), "bfloat17")


def test_it_is_not_read_unasked():
    array = cuda.to_device(numbers((2, 3)), "bfloat16")
    assert repr(array) == "DeviceArray(shape=(2, 3), dtype='bfloat16', device='cuda')"
    assert (array.size, array.nbytes, array.ndim) == (6, 12, 2)
    for read in (np.asarray, bool, np.sum, float, pickle.dumps, lambda a: np.ones(3) + a):
        with pytest.raises(TypeError):
            read(array)
    for other in (copy.copy(array), copy.deepcopy(array)):
        other[...] = 1
    assert not (array.numpy() == 1).any()


def test_memory_goes_back():
    cuda.to_device(numbers(10))
    cuda.synchronize()
    cuda.empty_cache()
    assert cuda.is_available()
    assert cuda.device_name() == tt.show_config("dicts")["CUDA"]
