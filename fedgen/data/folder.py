"""The data directory."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder(setting: str | None) -> Path:
    """runtime.data_dir, else the environment variable FEDGEN_DATA_DIR, else ~/.cache/fedgen."""
    return Path(setting or os.environ.get("FEDGEN_DATA_DIR") or "~/.cache/fedgen").expanduser().resolve()
