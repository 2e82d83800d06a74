"""The command line. Parsing needs only the standard library; commands import torch, ray and the registries."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from fedgen.tracking.observer import Observer
    from fedgen.tracking.result import Result

Command = Callable[[argparse.Namespace], int]

REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Errors of a refused write, for example to a log file to which stdout is redirected."""


class Parser(argparse.ArgumentParser):
    """Reports errors in one paragraph with exit code 2; accepts no abbreviated options."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fedgen: {message}\nTry `{self.prog} --help`.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 completed, 1 failed, 2 bad input, 3 degraded, 130 stopped)."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    parsed = parser().parse_args(arguments)
    code = _coded(parsed)
    if arguments is None:  # the process runs only this command
        from fedgen.server.run.signals import ignored_from_now_on

        ignored_from_now_on()
        _let_go_of_output()
    return code


def _let_go_of_output() -> None:
    """Flush stdout here, as Python would change the exit code if its final flush failed."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _coded(parsed: argparse.Namespace) -> int:
    from fedgen.errors import FedgenError, SettingError
    from fedgen.server.run.signals import ending_at_once

    try:
        with ending_at_once():
            code: int = parsed.command(parsed)
        return code
    except SettingError as error:
        print(f"fedgen: {error}", file=sys.stderr)
        return 2
    except FedgenError as error:
        print(f"fedgen: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fedgen: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in REFUSED:
            return _defect()
        print(f"fedgen: {error}; make room, or write elsewhere", file=sys.stderr)
        return 1
    except Exception:
        return _defect()


def _defect() -> int:
    """Print the traceback of the current exception."""
    traceback.print_exc()
    print("fedgen: this is a defect of fedgen or of a module of yours; the traceback shows where", file=sys.stderr)
    return 1


def parser() -> Parser:
    """The whole command line."""
    root = Parser(
        prog="fedgen",
        description="Federated and decentralised learning: one experiment file, one run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit codes: 0 completed, 1 failed, 2 bad input, 3 degraded, 130 stopped",
    )
    from fedgen.version import __version__

    root.add_argument("--version", action="version", version=f"fedgen {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)

    run = _command(commands, "run", _run, "run an experiment file")
    run.add_argument("file", metavar="FILE", help="the experiment file (TOML)")
    run.add_argument("--out", metavar="DIR", help="the run folder (default runs/NAME-TIME)")
    _add_run_options(run)

    resume = _command(commands, "resume", _resume, "continue a run that was stopped or killed")
    resume.add_argument("folder", metavar="RUN", help="the run folder")
    resume.add_argument("--rounds", type=int, metavar="N", help="a new, larger number of rounds")
    resume.add_argument("--accept-code", action="store_true", help="continue although a module of yours has changed")
    _add_run_options(resume)

    init = _command(commands, "init", _init, "write a commented starter file")
    init.add_argument("file", metavar="FILE", nargs="?", default="experiment.toml", help="default: experiment.toml")

    report = _command(commands, "report", _report, "draw the report of a run again")
    report.add_argument("folder", metavar="RUN", help="the run folder")

    topology = _command(commands, "topology", _topology, "draw an experiment's graph and print how fast it mixes")
    topology.add_argument("file", metavar="FILE", help="the experiment file (TOML)")
    topology.add_argument("--out", metavar="PATH", default="topology.svg", help="picture, .svg or .png (topology.svg)")
    topology.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key")

    listing = _command(commands, "list", _list, "show every registered part, one line each")
    listing.add_argument("kind", metavar="KIND", nargs="?", help="one kind only, such as rule or attack")

    schema = _command(commands, "schema", _schema, "print the JSON Schema of the experiment file")
    schema.add_argument("--markdown", action="store_true", help="the same as a table of keys, as in the docs")
    return root


def _command(
    commands: argparse._SubParsersAction[Parser], name: str, function: Command, help: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    command.set_defaults(command=function)
    return command


def _add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, such as training.epochs=2"
    )
    command.add_argument("--address", metavar="ADDRESS", help="an existing Ray cluster (runtime.address)")
    command.add_argument("--json", action="store_true", help="end with one JSON object on the last line of stdout")


def _overrides(parsed: argparse.Namespace) -> dict[str, object]:
    from fedgen.config import parse_override

    overrides = dict(map(parse_override, parsed.set))
    return {**overrides, **({"runtime.address": parsed.address} if parsed.address else {})}


def _run(parsed: argparse.Namespace) -> int:
    from fedgen.registry import search_in
    from fedgen.server.experiment_file import load_experiment, read_text
    from fedgen.server.run.start import run

    path = Path(parsed.file)
    search_path = (str(path.resolve().parent), *_search_path_beside(path))
    search_in(search_path)
    experiment = load_experiment(path, _overrides(parsed))
    text = read_text(path)
    return _ended(
        parsed, lambda view: run(experiment, parsed.out, text=text, observers=[view], search_path=search_path)
    )


def _search_path_beside(path: Path) -> tuple[str, ...]:
    """The recorded search path of a run, if `path` is its resolved.toml."""
    from fedgen.errors import SettingError
    from fedgen.server.store.parts import ENVIRONMENT, RESOLVED
    from fedgen.server.store.run_folder import read_object

    if path.name != RESOLVED:
        return ()
    try:
        found = read_object(path.parent / ENVIRONMENT).get("search_path")
    except SettingError:  # not every experiment needs it; a missing module is reported later
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _resume(parsed: argparse.Namespace) -> int:
    from fedgen.server.run.start import resume

    return _ended(
        parsed,
        lambda view: resume(
            parsed.folder,
            rounds=parsed.rounds,
            overrides=_overrides(parsed),
            observers=[view],
            accept_code=parsed.accept_code,
        ),
    )


def _ended(parsed: argparse.Namespace, live: Callable[[Observer], Result]) -> int:
    from fedgen.server.run.result import RunFailed
    from fedgen.server.screen.view import view_for

    try:
        with view_for(sys.stdout, json=parsed.json) as view:
            result = live(view)
    except RunFailed as failure:
        result = failure.result
    if parsed.json:
        print(json.dumps(result.to_json()), flush=True)
    return result.exit_code


def _init(parsed: argparse.Namespace) -> int:
    from fedgen.errors import SettingError
    from fedgen.server.experiment_file import starter

    path = Path(parsed.file)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(starter())
    except FileExistsError as error:
        raise SettingError(f"{path} exists already; name another file") from error
    except OSError as error:
        raise SettingError(f"{path} cannot be written: {error.strerror}") from error
    print(f"Wrote {path}. Run it with: fedgen run {path}")
    return 0


def _report(parsed: argparse.Namespace) -> int:
    from fedgen.errors import SettingError
    from fedgen.server.report.page import write_report
    from fedgen.server.store.disk import Unwritable

    try:
        print(write_report(Path(parsed.folder)))
    except Unwritable:
        raise
    except (OSError, ValueError) as error:
        raise SettingError(f"no report of {parsed.folder}: {error}") from error
    return 0


def _topology(parsed: argparse.Namespace) -> int:
    from fedgen.config import parse_override
    from fedgen.registry import search_in
    from fedgen.server.experiment_file import load_experiment
    from fedgen.server.report.topology import draw_topology
    from fedgen.topology.network import network_of

    path = Path(parsed.file)
    search_in((str(path.resolve().parent),))
    network = network_of(load_experiment(path, dict(map(parse_override, parsed.set))))
    print(draw_topology(network, Path(parsed.out)))
    return 0


def _list(parsed: argparse.Namespace) -> int:
    from fedgen.server.schema import listing

    print(listing(parsed.kind))
    return 0


def _schema(parsed: argparse.Namespace) -> int:
    from fedgen.server.schema import experiment_schema, key_table

    print(key_table() if parsed.markdown else json.dumps(experiment_schema(), indent=2))
    return 0
