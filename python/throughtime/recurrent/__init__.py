"""RNN, GRU and LSTM.

`architecture` describes a stack of layers, and `arguments` checks the callers' arguments. `forward` makes a `record`,
which `backward` reads. Users work with `layers` and `tape`.
"""

from .backward import Gradients
from .layers import GRU, LSTM, RNN, Recurrent
from .record import State
from .tape import Tape

__all__ = ["GRU", "LSTM", "RNN", "Gradients", "Recurrent", "State", "Tape"]
