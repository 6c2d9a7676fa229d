"""RNN, GRU and LSTM."""

from .backward import Gradients
from .layers import GRU, LSTM, RNN, Recurrent
from .record import State
from .tape import Tape

__all__ = ["GRU", "LSTM", "RNN", "Gradients", "Recurrent", "State", "Tape"]
