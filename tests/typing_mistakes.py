"""Mistakes in a user's program, one per marked line, each of which a type checker reports; test_typing.py checks it."""

import numpy as np

import throughtime as tt

x = np.zeros((5, 2, 8), np.float32)
lstm = tt.LSTM(8, 16)
tape = lstm.forward(x)
grads = tape.backward(x)
model = tt.Sequential(lstm)

tt.LSTM("8", 16)  # mistake
tt.LSTM(8, 16, nonlinearity="relu")  # mistake
tt.GRU(8)  # mistake
lstm.forward(x, length=[5, 5])  # mistake
lstm.forward("x")  # mistake
lstm.forward(x, training="yes")  # mistake
tape.backward(x, timesteps=3)  # mistake
tape.backward(x, clip="1")  # mistake
print(grads.hiden)  # mistake
print(grads.parameters.weight_hh_l0)  # mistake
print(tape.outputs)  # mistake
tt.Sequential(lstm, np.tanh)  # mistake
print(model.forward(x).ouput)  # mistake
print(model.forward(x).backward(x).paramters)  # mistake
logits, state = model(x, lengths=[5, 5], states=None)  # mistake
tt.Linear(8, 5, True, 3)  # mistake
tt.optim.Adam(lr="fast")  # mistake
tt.optim.SGD(0.1).step(model, grads)  # mistake
tt.gradient_flow(x, lstm)  # mistake
tt.gradient_flow(lstm, x).horizon("half")  # mistake
tt.lyapunov_spectrum(model, x)  # mistake
print(tt.lyapunov_spectrum(lstm, x).standard_error)  # mistake
tt.FlowMonitor(lstm, every="10")  # mistake
tt.init.apply(lstm, 3)  # mistake
loss, d_output, norm = tt.mse(x, x)  # mistake
tt.set_num_threads("2")  # mistake
print(tt.bidirectional)  # mistake
