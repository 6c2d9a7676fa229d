"""Settings of the session, and fixtures that several files share."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from emulation import EMULATES_AMX, emulate_amx
from problems import FORMS
from throughtime import _core

# jax reads this when it starts: two devices, among which the tests of sharding split arrays.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()

# The same examples on every run: a failure in CI is a failure here, and no run is longer than another.
settings.register_profile("stable", derandomize=True, deadline=None, database=None, max_examples=20)
settings.load_profile("stable")


def pytest_sessionstart():
    """Pytest has installed its own handler of illegal instructions by now, also in a worker's process."""
    if EMULATES_AMX:
        emulate_amx()


@pytest.fixture(params=FORMS)
def kind(request):
    return request.param


@pytest.fixture
def free():
    """The library's own choices again after a test that forces some."""
    yield
    _core.force(engine="amx" if EMULATES_AMX else "")


@pytest.fixture
def threads():
    """Sets the number of threads, and back afterwards."""
    before = _core.get_num_threads()
    yield _core.set_num_threads
    _core.set_num_threads(before)


@pytest.fixture
def teams(threads, free):
    """A function that goes through two, three and five threads: all at work, then all but the calling one at rest."""

    def each():
        for count in (2, 3, 5):
            threads(count)
            for rest in (0, 1):
                _core.force(engine="amx" if EMULATES_AMX else "", rest=rest)
                yield f"{count} threads, {rest=}"

    return each


@pytest.fixture
def interrupt_second_call(monkeypatch):
    """A function after which the second call of a module's function is Ctrl-C."""

    def replace(module, name):
        real, calls = getattr(module, name), []

        def interrupt(*arguments):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(module, name, interrupt)

    return replace
