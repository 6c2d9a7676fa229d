"""Files are written completely or not at all: after a failure the previous file remains, and no other file."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager

import numpy as np
import pytest

import throughtime as tt
from throughtime._files import replacing, save_figure

resource = pytest.importorskip("resource")


@contextmanager
def largest_file(size):
    """Limits the size of this process's files, to simulate a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_survives_a_disk_that_is_full(tmp_path):
    path = tmp_path / "layer.npz"
    old, new = tt.LSTM(8, 64, seed=0), tt.LSTM(8, 64, seed=1)
    old.save(path)
    before = path.read_bytes()
    with largest_file(len(before) // 2), pytest.raises(OSError, match="layer"):
        new.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["layer.npz"]
    np.testing.assert_array_equal(tt.load(path).parameters["weight_hh_l0"], old.parameters["weight_hh_l0"])


def test_nothing_is_left_where_nothing_was(tmp_path):
    with largest_file(100), pytest.raises(OSError, match="fresh"):
        tt.Linear(64, 64).save(tmp_path / "fresh")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_changes_nothing(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def write():
        with replacing(path) as file:
            file.write(b"half of what")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    tt.Linear(2, 2).save(tmp_path / "layer")
    assert os.stat(tmp_path / "layer").st_mode == os.stat(tmp_path / "plain").st_mode


def test_the_mode_of_an_old_file_stays(tmp_path):
    path = tmp_path / "layer"
    path.write_bytes(b"")
    path.chmod(0o640)
    tt.Linear(2, 2).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path, monkeypatch):
    """Its directory may be writable, and root may write anything."""
    path = tmp_path / "layer"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(PermissionError) as caught:
        tt.Linear(2, 2).save(path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"before"


def test_a_link_stays_and_what_it_names_is_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "latest", tmp_path / "elsewhere" / "first"
    target.write_bytes(b"")
    link.symlink_to(target)
    tt.Linear(2, 2, seed=0).save(link)
    assert link.is_symlink()
    assert repr(tt.load(target)) == "Linear(2, 2)"
    assert os.listdir(tmp_path / "elsewhere") == ["first"]


def test_a_device_is_written_to_as_it_is(tmp_path):
    tt.Linear(2, 2).save("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    if os.path.exists("/dev/full"):
        with pytest.raises(OSError, match="/dev/full") as caught:
            tt.Linear(2, 2).save("/dev/full")
        assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("kind", [str, os.fsencode, lambda path: path])
def test_a_path_is_text_bytes_or_a_path(tmp_path, kind):
    tt.Linear(2, 2).save(kind(tmp_path / "layer"))
    assert repr(tt.load(tmp_path / "layer")) == "Linear(2, 2)"


def test_names_as_long_as_a_file_system_takes(tmp_path):
    path = tmp_path / ("n" * 255)
    tt.Linear(2, 2).save(path)
    assert repr(tt.load(path)) == "Linear(2, 2)"


@pytest.mark.parametrize(("name", "kind"), [("nowhere/layer", FileNotFoundError), ("", IsADirectoryError)])
def test_errors_name_the_path_that_was_given(tmp_path, name, kind):
    with pytest.raises(kind) as caught:
        tt.Linear(2, 2).save(tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)


@pytest.mark.parametrize(("name", "written"), [("plot.svg", "plot.svg"), ("plot", "plot.png"), ("plot.", "plot.png")])
def test_a_figure_is_written_whole_in_the_format_of_its_name(tmp_path, name, written):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    save_figure(figure, tmp_path / name)
    assert os.listdir(tmp_path) == [written]
    before = (tmp_path / written).read_bytes()
    assert before.startswith(b"<?xml" if written.endswith("svg") else b"\x89PNG")
    with largest_file(len(before) // 2), pytest.raises(OSError, match=written):
        save_figure(figure, tmp_path / name)
    assert (tmp_path / written).read_bytes() == before
