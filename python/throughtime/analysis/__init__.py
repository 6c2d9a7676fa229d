"""Gradient flow and dynamics of recurrent layers and stacks."""
