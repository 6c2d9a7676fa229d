"""RNN, GRU and LSTM.

`architecture` describes a stack of layers, `arguments` checks what callers pass, `forward` leaves a `record` of what it
computed, and `backward` starts from that. `tape` and `layers` are what users hold.
"""

from .backward import Gradients
from .layers import GRU, LSTM, RNN, Recurrent
from .record import State
from .tape import Tape

__all__ = ["GRU", "LSTM", "RNN", "Gradients", "Recurrent", "State", "Tape"]
