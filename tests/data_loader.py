"""Trains with a DataLoader whose workers run modules too. A script, because other tests load libraries that break in a
fork.

python data_loader.py fork|spawn
"""

from __future__ import annotations

import sys

import torch
from torch.utils.data import DataLoader, Dataset

from throughtime.torch import GRU, LSTM


class Sequences(Dataset):
    """Constant sequences; each is run through a module when it is fetched."""

    def __init__(self):
        self.module = GRU(3, 4)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        torch.set_num_threads(1)
        with torch.no_grad():
            return self.module(torch.full((5, 3), float(index)))[0]


def main(start: str) -> None:
    data, module = Sequences(), LSTM(4, 6)
    module(torch.randn(50, 8, 4))[0].sum().backward()  # starts the kernels' threads
    seen = []
    for batch in DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=start, timeout=60):
        module(batch.transpose(0, 1))[0].sum().backward()
        seen.append(batch)
    assert torch.equal(torch.cat(seen), torch.stack([data[index] for index in range(8)]))


if __name__ == "__main__":
    main(sys.argv[1])
