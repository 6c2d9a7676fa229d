"""Whole training steps of small models: forward, loss, backward, clip_grad_norm, optimiser."""
