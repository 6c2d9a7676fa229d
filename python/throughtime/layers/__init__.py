"""The layers other than RNN, GRU and LSTM.

`layer` has the base class and `rows` the products that layers share. `stream` has the values that pass between the
layers of a stack: `norm`, `container`, `residual` and `sequential` build on it.
"""
