"""Data-parallel training of a character model: torch.distributed, `DistributedDataParallel`, checkpoints, restarts.

    torchrun --standalone --nproc-per-node 2 examples/distributed.py

Every process takes its share of each batch; DistributedDataParallel averages the gradients while the backward runs. A
batch depends only on the seed and the number of the update, so a run that was killed continues from its last checkpoint
with the same result: ``torchrun --max-restarts 1 ... --checkpoint FILE --die-at 60`` demonstrates it.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import throughtime as tt
import throughtime.torch
from characters import BITS, Batch, Context, Text, python_help
from common import Seed, Steps, run_command

_MAX_NORM = 1.0
_LOGGED = 10  # lines per run


class CharacterModel(nn.Module):
    """Embedding, recurrent layers, Linear."""

    def __init__(self, characters: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, hidden)
        self.lstm = throughtime.torch.LSTM(hidden, hidden, layers)  # as torch.nn.LSTM
        self.linear = nn.Linear(hidden, characters)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (T, B, characters) of the next character, for each of the characters (T, B)."""
        logits: Tensor = self.linear(self.lstm(self.embedding(ids))[0])
        return logits


def main(
    steps: Steps = 200,
    context: Context = 64,
    batch: Batch = 32,
    hidden: Annotated[int, typer.Option(min=1, help="Units of each layer.")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="LSTM layers.")] = 2,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of Adam.")] = 2e-3,
    seed: Seed = 0,
    double: Annotated[bool, typer.Option("--double", help="Use float64, to compare runs to many digits.")] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="File of the checkpoint; if it exists, the run continues from it.", show_default=False),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Updates between checkpoints.")] = 25,
    die_at: Annotated[
        int | None,
        typer.Option(min=0, help="The last process kills itself before this update, once.", show_default=False),
    ] = None,
) -> None:
    """Train a character model in as many processes as torchrun starts."""
    rank, world = _join()
    if batch % world:
        raise SystemExit(f"--batch {batch}: expected a multiple of {world}, the number of processes")
    text = python_help()
    torch.manual_seed(seed)
    model = CharacterModel(text.characters, hidden, layers).to(torch.float64 if double else torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    first = _resume(checkpoint, model, optimizer)
    parallel = DistributedDataParallel(model)
    console = Console(quiet=rank > 0)
    console.print(
        f"{world} processes, {tt.get_num_threads()} threads each; updates {first + 1} to {steps}", highlight=False
    )
    start, loss = time.perf_counter(), math.nan
    for step in range(first, steps):
        if step == die_at and rank == world - 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        loss = _update(parallel, optimizer, _share(text, seed, step, context, batch, rank, world))
        if checkpoint is not None and (step + 1) % every == 0 and rank == 0:
            _save(checkpoint, model, optimizer, step + 1)
        if (step + 1) % max(1, steps // _LOGGED) == 0:
            seconds = (time.perf_counter() - start) / (step + 1 - first)
            console.print(
                f"update {step + 1}: loss {loss * BITS:.6f} bits per character, {seconds * 1e3:.0f} ms each",
                highlight=False,
            )
    norm = math.sqrt(sum(float(parameter.detach().square().sum()) for parameter in model.parameters()))
    console.print(f"final loss {loss:.9f} nats, norm of the parameters {norm:.9f}", highlight=False)
    distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # after a restart, torch 2.13 aborted one exit in four, because one of its threads was still running


def _join() -> tuple[int, int]:
    """Join the process group; return the rank of this process and the number of processes."""
    if not distributed.is_torchelastic_launched():
        raise SystemExit("start it with torchrun: torchrun --standalone --nproc-per-node 2 examples/distributed.py")
    store, rank, world = next(distributed.rendezvous("env://"))
    # The store may outlive a restart, with the addresses of processes that no longer exist.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    distributed.init_process_group(
        "gloo", store=distributed.PrefixStore(f"restart {restart}", store), rank=rank, world_size=world
    )
    return rank, world


def _update(parallel: DistributedDataParallel, optimizer: torch.optim.Optimizer, share: tuple[Tensor, Tensor]) -> float:
    """Make one training step; return the mean loss of all processes."""
    inputs, targets = share
    optimizer.zero_grad()
    loss = cross_entropy(parallel(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(parallel.parameters(), _MAX_NORM)
    optimizer.step()
    mean = loss.detach().double()
    distributed.all_reduce(mean)
    return float(mean) / distributed.get_world_size()


def _share(text: Text, seed: int, step: int, context: int, batch: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """The columns of a step's batch that belong to this process: inputs and targets (T, B / world)."""
    inputs, targets = text.batch(np.random.default_rng([seed, step]), context, batch)
    inputs, targets = (torch.from_numpy(np.ascontiguousarray(array[:, rank::world])) for array in (inputs, targets))
    return inputs, targets


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write to another name, then rename: a process killed here leaves the last checkpoint intact."""
    fresh = path.with_name(path.name + ".new")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, fresh)
    fresh.replace(path)


def _resume(path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint; return its number of updates, 0 if there is none."""
    if path is None or not path.exists():
        return 0
    saved: dict[str, Any] = torch.load(path)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


if __name__ == "__main__":
    run_command(main)
