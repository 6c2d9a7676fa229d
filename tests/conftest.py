"""Settings of the session, and fixtures shared by several files."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

from emulation import EMULATES_AMX, emulate_amx
from problems import FORMS, KINDS
from throughtime import _core

# jax reads this at its start: two devices, over which the sharding tests split arrays.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()

# The same examples in every run, so that failures in CI are reproducible and all runs take equally long.
settings.register_profile("stable", derandomize=True, deadline=None, database=None, max_examples=20)
settings.load_profile("stable")


def pytest_sessionstart():
    """Installs the emulator after pytest's own handler of illegal instructions, in workers too.

    Shells start background jobs with Ctrl-C ignored; tests of interrupts need Python's handler.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if EMULATES_AMX:
        emulate_amx()


def has_cell(kind):
    try:
        return bool(_core.saved_shape(kind, False, 1))
    except ValueError:
        return False


HAS_ALL_CELLS = all(map(has_cell, KINDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Skips tests of cells that a build with sanitizers lacks."""
    try:
        return (yield)
    except ValueError as error:
        if HAS_ALL_CELLS or "no cell is named" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(params=FORMS)
def kind(request):
    return request.param


@pytest.fixture
def free():
    """Restores the library's own choices after a test that overrides some."""
    yield
    _core.force(engine="amx" if EMULATES_AMX else "")


@pytest.fixture
def threads():
    """Sets the number of threads, and restores it afterwards."""
    before = _core.get_num_threads()
    yield _core.set_num_threads
    _core.set_num_threads(before)


@pytest.fixture
def teams(threads, free):
    """A function that cycles through two, three and five threads: first all work, then all but the caller rest."""

    def each():
        for count in (2, 3, 5):
            threads(count)
            for rest in (0, 1):
                _core.force(engine="amx" if EMULATES_AMX else "", rest=rest)
                yield f"{count} threads, {rest=}"

    return each


@pytest.fixture
def interrupt_second_call(monkeypatch):
    """A function that makes the second call of a module's function raise KeyboardInterrupt."""

    def replace(module, name):
        real, calls = getattr(module, name), []

        def interrupt(*arguments):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(module, name, interrupt)

    return replace
