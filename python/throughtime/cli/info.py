"""`throughtime info`: version, instruction sets, threads."""

from __future__ import annotations

import throughtime as tt


def info() -> None:
    """Show version, instruction sets compiled and in use, and threads."""
    tt.show_config()
