"""Which view suits where a command's output goes."""

from __future__ import annotations

import sys
from typing import TextIO

from fedgen.server.screen.live_view import LiveView
from fedgen.server.screen.plain_view import PlainView


def view_for(stream: TextIO, *, json: bool = False) -> LiveView | PlainView:
    """With `json` it goes to stderr, as stdout then belongs to the JSON object.

    Use it as a context manager: leaving it gives the terminal back, also after an exception.
    """
    from rich.console import Console

    target = sys.stderr if json else stream
    console = Console(file=target)
    live = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return LiveView(console) if live else PlainView(target)
