"""RNN, LSTM and GRU as torch modules: subclasses of torch's own that run throughtime's kernels.

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
# Allowed with weights_only=True: loading these runs no code from the file. A ResidualBlock contains torch's LayerNorm.
_torch.serialization.add_safe_globals([RNN, GRU, LSTM, AddLayerNorm, ResidualBlock, _torch.nn.LayerNorm])

__all__ = ["GRU", "LSTM", "RNN", "AddLayerNorm", "FlowMonitor", "ResidualBlock", "record", "replace"]
