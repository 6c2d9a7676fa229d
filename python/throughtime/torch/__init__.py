"""RNN, LSTM and GRU as torch modules: torch's own classes in all but the kernels that run them.

>>> import torch
>>> import throughtime.torch
>>> lstm = throughtime.torch.LSTM(8, 16)  # in place of torch.nn.LSTM
>>> output, (h_n, c_n) = lstm(torch.randn(100, 4, 8))
>>> with throughtime.torch.record(lstm) as timesteps:
...     output[-1].sum().backward()
>>> timesteps.hidden.shape  # dL/dh_t
torch.Size([1, 100, 4, 16])
"""

try:
    import torch as _torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError('throughtime.torch needs PyTorch: pip install "throughtime[torch]"') from None

from . import threads as _threads
from .blocks import AddLayerNorm, ResidualBlock
from .modules import GRU, LSTM, RNN
from .monitor import FlowMonitor
from .recording import record
from .replacing import replace

_threads.borrow()
# What a file of weights alone may hold: these have no code of a file's to run. A ResidualBlock has torch's LayerNorm.
_torch.serialization.add_safe_globals([RNN, GRU, LSTM, AddLayerNorm, ResidualBlock, _torch.nn.LayerNorm])

__all__ = ["GRU", "LSTM", "RNN", "AddLayerNorm", "FlowMonitor", "ResidualBlock", "record", "replace"]
