"""Chooses the view of a run for an output stream."""

from __future__ import annotations

import sys
from typing import TextIO

from fedgen.server.screen.live_view import LiveView
from fedgen.server.screen.plain_view import PlainView


def view_for(stream: TextIO, *, json: bool = False) -> LiveView | PlainView:
    """A view for `stream`; with `json` it writes to stderr, as stdout is for the JSON object.

    It is a context manager, which restores the terminal also after an exception.
    """
    from rich.console import Console

    target = sys.stderr if json else stream
    console = Console(file=target)
    live = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return LiveView(console) if live else PlainView(target)
