"""The report of a run folder, as one self-contained HTML file.

Only ``resolved.toml`` is required. Other parts may be missing, in a running or killed run; the report names them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgen.server.report.exhibits import sections
from fedgen.server.report.header import (
    STATE_WORDS,
    commands,
    data_sentence,
    headline,
    skipped_sentence,
    state_words,
    subtitle,
)
from fedgen.server.report.partition import partition_key, partition_sentence
from fedgen.server.report.phrases import clipped
from fedgen.server.report.pictures import Picture, draw
from fedgen.server.report.refusal_tables import refusal_tables
from fedgen.server.report.run_record import RunFolder
from fedgen.server.report.tables import (
    broken_sentence,
    chosen_words,
    client_rows,
    environment_rows,
    event_rows,
    hash_rows,
    metric_rows,
    time_rows,
    traffic_rows,
)
from fedgen.server.store.disk import writing
from fedgen.server.store.parts import FIGURES, REPORT
from fedgen.server.words import STATE_MARKS

OPEN_ROWS, MOST_ROWS = 12, 300


def write_report(folder: Path) -> Path:
    """Write ``report.html`` and ``figures/*.svg`` into a run folder, finished or not; returns the report's path.

    Raises:
        ValueError: `folder` has no readable ``resolved.toml``, or a log is damaged before its last line; the message
            names the file.
        Unwritable: a file cannot be written.
    """
    run = RunFolder.read(Path(folder))
    pictures = draw(run)
    for name, picture in pictures.items():
        if picture.svg:
            _write_text(run.folder / FIGURES / f"{name}.svg", picture.standalone)
    target = run.folder / REPORT
    _write_text(target, render(run, pictures))
    return target


def render(run: RunFolder, pictures: Mapping[str, Picture]) -> str:
    """The whole page. The template escapes all texts; only pictures are inserted unescaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        style=Markup(loader.get_source(environment, "report.css")[0]),
        svg={name: Markup(picture.inline) for name, picture in pictures.items() if picture.svg},
        pictures=pictures,
        metric_names=[name for name, picture in pictures.items() if picture.about_metric],
        open_rows=OPEN_ROWS,
        most_rows=MOST_ROWS,
        **_header(run),
        **_tables(run),
        **_origin(run),
    )


def _header(run: RunFolder) -> dict[str, Any]:
    return {
        "name": run.name,
        "subtitle": subtitle(run),
        "state": run.state if run.state in STATE_WORDS else "running",
        "state_mark": STATE_MARKS.get(run.state, "…"),
        "state_words": state_words(run),
        "members": run.members,
        "message": clipped(str(run.result.get("message") or "")),
        "notices": run.notices,
        "headline": headline(run),
    }


def _tables(run: RunFolder) -> dict[str, Any]:
    return {
        "metric_rows": metric_rows(run),
        "chosen": chosen_words(run),
        "broken": broken_sentence(run),
        "skipped": skipped_sentence(run),
        "client_rows": client_rows(run),
        "partition_sentence": partition_sentence(run.partition, run.members) if run.partition else "",
        "partition_key": partition_key(run.partition, run.members) if run.partition else "",
        "sections": sections(run.exhibits, MOST_ROWS),
        "network": list(run.network.facts.items()) if run.network else [],
        "time_rows": time_rows(run),
        "traffic_rows": traffic_rows(run),
        "refusals": refusal_tables(run),
        "events": event_rows(run),
    }


def _origin(run: RunFolder) -> dict[str, Any]:
    """The tables on how to reproduce the run."""
    return {
        "config_text": run.config_text,
        "experiment_text": run.experiment_text,
        "environment": environment_rows(run),
        "data_sentence": data_sentence(run),
        "hashes": hash_rows(run),
        "commands": commands(run),
    }


def _write_text(path: Path, text: str) -> None:
    """Write in one step, so that a reader never sees half a file."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path, part):
        part.write_text(text, "utf-8", errors="replace")
        part.replace(path)
