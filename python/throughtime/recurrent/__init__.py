"""RNN, GRU and LSTM."""

from .layers import GRU, LSTM, RNN, Recurrent, State

__all__ = ["GRU", "LSTM", "RNN", "Recurrent", "State"]
