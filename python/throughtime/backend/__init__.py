"""The operations that differ by device: `protocol` declares them, `host` and `cuda` define them, `choose` selects one."""
