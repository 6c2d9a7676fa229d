"""Training steps of single layers, on the CPU and on a GPU."""
