"""Layers, but for the recurrent ones."""
