"""Recurrent layers on an NVIDIA GPU: ``layer.to("cuda")``, arrays through DLPack, streams.

Examples
--------
>>> import throughtime as tt, torch  # doctest: +SKIP
>>> lstm = tt.LSTM(64, 256, seed=0).to("cuda", dtype="bfloat16")  # doctest: +SKIP
>>> tape = lstm.forward(torch.randn(1000, 32, 64, device="cuda", dtype=torch.bfloat16))  # doctest: +SKIP
>>> output = torch.from_dlpack(tape.output)  # doctest: +SKIP
"""

from .array import DeviceArray, as_device_array, from_dlpack, to_device
from .extension import current_stream, device_name, empty_cache, is_available, stream, synchronize

__all__ = [
    "DeviceArray",
    "as_device_array",
    "current_stream",
    "device_name",
    "empty_cache",
    "from_dlpack",
    "is_available",
    "stream",
    "synchronize",
    "to_device",
]
