"""Runs a fuzz target: ``python tests/fuzz/run.py load --seconds 600`` runs load.py for ten minutes.

A target has a function ``check(data: bytes)``, which raises for a fault and returns otherwise, and a function
``seeds()``, which returns inputs to begin with. If atheris is installed, it chooses inputs by the lines of the library
that they reach; otherwise, and with ``--inputs 1000``, they are random changes of the seeds, the same in every run.
Each kind of fault is printed once, with its input. A crash ends the run; atheris leaves its input in a file.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator

MEMORY = 4 << 30  # bytes that a target may take: a size that passes the checks must not take the machine's


class Faults:
    """The kinds of faults seen: the exception, and the line that raised it."""

    def __init__(self, check) -> None:
        self.count = 0
        self.kinds: dict[str, bytes] = {}
        self._check = check

    def try_input(self, data: bytes) -> None:
        self.count += 1
        try:
            self._check(data)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            kind = f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}"
            if kind not in self.kinds:
                self.kinds[kind] = data
                print(f"fault {kind}: {error}\n  input {data!r}"[:3000], flush=True)


def random_inputs(target, seed: int = 0) -> Iterator[bytes]:
    """Endlessly many changes of the target's seeds."""
    rng, seeds = random.Random(seed), target.seeds()
    while True:
        yield changed(rng, rng.choice(seeds))


def changed(rng: random.Random, seed: bytes) -> bytes:
    """The seed with some bytes changed, cut out, inserted or repeated; or random bytes."""
    if rng.random() < 0.3 and len(seed) < 400:
        return rng.randbytes(rng.randrange(1, 200))
    data = bytearray(seed)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 4, 16])
        match rng.randrange(4):
            case 0:
                data[at : at + length] = rng.randbytes(length)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = rng.randbytes(length)
            case 3:
                data[at:at] = data[at : at + length]
    return bytes(data)


def run_random(target, inputs: Iterable[bytes]) -> int:
    """The number of kinds of faults."""
    faults = Faults(target.check)
    for data in inputs:
        faults.try_input(data)
    print(f"{faults.count} inputs, {len(faults.kinds)} kinds of faults")
    return len(faults.kinds)


def run_guided(atheris, target, seconds: float) -> None:
    """Let atheris choose inputs; it ends the process."""
    corpus = tempfile.mkdtemp()
    for i, seed in enumerate(target.seeds()):
        with open(os.path.join(corpus, f"seed{i}"), "wb") as file:
            file.write(seed)
    faults = Faults(target.check)
    limits = [f"-max_total_time={int(seconds)}", "-timeout=120", "-rss_limit_mb=0", "-max_len=20000", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", corpus], faults.try_input)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--inputs", type=int)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is None or options.inputs:
        target = importlib.import_module(options.target)
        inputs, end = random_inputs(target), time.monotonic() + options.seconds
        in_time = itertools.takewhile(lambda _: time.monotonic() < end, inputs)
        return run_random(target, itertools.islice(inputs, options.inputs) if options.inputs else in_time)
    with atheris.instrument_imports(include=["throughtime"]):
        target = importlib.import_module(options.target)
    run_guided(atheris, target, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
