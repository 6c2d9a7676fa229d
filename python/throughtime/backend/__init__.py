"""The operations that differ by device."""
