"""The operations that differ by device: declared in `protocol`, defined in `host` and `cuda`, selected by `choose`."""
