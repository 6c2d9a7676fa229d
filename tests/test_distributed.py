"""Data-parallel training under torchrun equals one process with the joined batch, and continues after a restart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("rich")

EXAMPLE = Path(__file__).parent.parent / "examples" / "distributed.py"
TINY = ["--steps", "50", "--context", "16", "--batch", "8", "--hidden", "32", "--double"]


def torchrun(processes, *options, restarts=0):
    """Loss and norm of the parameters after the last update, and the printed output."""
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, *run, str(EXAMPLE), *TINY, *map(str, options)],
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (figures,) = re.findall(r"^final loss (\S+) nats, norm of the parameters (\S+)$", done.stdout, re.MULTILINE)
    return [float(figure) for figure in figures], done.stdout


@pytest.fixture(scope="module")
def two():
    return torchrun(2)


def test_two_processes_do_what_one_does_with_the_joined_batch(two):
    """In float64 the average of two gradients is that of the joined batch to 1e-15, which 50 updates of Adam increase
    to less than 1e-9."""
    one, _ = torchrun(1)
    assert two[0] == pytest.approx(one, rel=1e-9)


def test_a_killed_run_goes_on_from_its_checkpoint_as_if_nothing_had_happened(two, tmp_path):
    """The batches depend only on the number of the update, and a checkpoint holds everything that an update reads."""
    options = ("--checkpoint", tmp_path / "model.pt", "--every", "10", "--die-at", "25")
    figures, printed = torchrun(2, *options, restarts=1)
    assert "updates 1 to 50" in printed
    assert "updates 21 to 50" in printed
    assert figures == two[0]


def test_processes_share_the_cores(two):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert f"2 processes, {max(1, cores // 2)} threads each" in two[1]
