"""Imports point only downwards, and ``fedgen/`` stays pure: no Ray, no Flower, no socket, no clock, no open file."""

import ast
import re
from collections.abc import Collection, Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("fedgen", "fedgen.clients", "fedgen.server")  # lowest first
FORBIDDEN = {
    "fedgen": {"ray", "flwr", "grpc", "socket", "time", "datetime"},
    "fedgen.clients": {"flwr", "grpc"},
    "fedgen.server": set[str](),
}
# The one exception: it resolves the public names lazily, through importlib, so it must name what lies above it.
FACADE = "fedgen"

OPENERS = re.compile(
    r"(np|numpy|torch)\.(load|save)|(.*\.)?(open|read_text|read_bytes|write_text|write_bytes|fromfile|tofile|memmap"
    r"|loadtxt|savetxt|genfromtxt|savez|savez_compressed|load_file|save_file|safe_open)"
)
UPPER_MODULE_IN_STRING = re.compile(r"(fedgen\.|\.+)(clients|server)([.:]\w+)*")


def layer_of(module: str) -> str:
    """The highest layer whose name begins ``module``."""
    return next((layer for layer in reversed(LAYERS) if f"{module}.".startswith(f"{layer}.")), "")


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import at any depth, and of upper modules in strings (importlib)."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, level=level, names=names):
                origin = resolve_name("." * level + (module or ""), package)
                yield from ((node.lineno, f"{origin}.{alias.name}") for alias in names)
            case ast.Constant(value=str(text)) if UPPER_MODULE_IN_STRING.fullmatch(text):
                yield node.lineno, resolve_name(text, package).replace(":", ".")


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What ``source``, read as the code of ``module``, does against the layers."""
    tree = ast.parse(source)
    layer, package = layer_of(module), module if is_package else module.rpartition(".")[0]
    found = []
    for line, name in imports(tree, package):
        target = layer_of(name)
        if target and LAYERS.index(target) > LAYERS.index(layer) and module != FACADE:
            found.append(f"{module}:{line} {layer} must not import {name}, which lies above it")
        if name.split(".")[0] in FORBIDDEN[layer]:
            found.append(f"{module}:{line} {layer} must not import {name}")
        if name.split(".")[0] in ("clients", "server"):
            found.append(f"{module}:{line} {name} is imported as fedgen.{name}")
    if layer == "fedgen" and not f"{module}.".startswith("fedgen.data."):
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if OPENERS.fullmatch(name := ast.unparse(call.func)):
                found.append(f"{module}:{call.lineno} {name} opens a file outside fedgen.data")
    return found


def modules() -> dict[str, Path]:
    """Import name -> file, of all three layers, each file once."""
    found: dict[str, Path] = {}
    for layer in LAYERS:
        folder = ROOT / layer.rpartition(".")[2]
        for path in folder.rglob("*.py"):
            inside = path.relative_to(folder)
            if folder.name == "fedgen" and inside.parts[0] in ("clients", "server"):
                continue
            found[".".join([layer, *inside.with_suffix("").parts]).removesuffix(".__init__")] = path
    return found


@pytest.mark.parametrize("module", modules())
def test_imports_point_downwards_and_fedgen_is_pure(module: str) -> None:
    path = modules()[module]
    assert violations(path.read_text(), module, is_package=path.name == "__init__.py") == []


PACKAGES: dict[str, set[str]] = {
    "store": set(),
    "pools": {"store"},
    "rounds": {"store", "pools"},
    "screen": set(),
    "report": {"store"},
    "run": {"store", "pools", "rounds", "screen", "report"},
}
"""Package of the server -> packages it may import."""

BESIDE = {"words", "directions", "selection"}
"""Modules of the server that every package may import; `run` may import them all."""


def strangers(source: str, module: str) -> list[str]:
    """What a module of a package of the server imports of the server although its package may not."""
    package = module.removeprefix("fedgen.server.").partition(".")[0]
    allowed = PACKAGES[package] | {package} | BESIDE | ({"experiment_file"} if package == "run" else set())
    found = []
    for line, name in imports(ast.parse(source), module.rpartition(".")[0]):
        part = name.removeprefix("fedgen.server.").partition(".")[0]
        if name.startswith("fedgen.server.") and part not in allowed:
            found.append(f"{module}:{line} {package} must not import {name}")
    return found


def packaged() -> list[str]:
    return [name for name in modules() if name.startswith("fedgen.server.") and name.split(".")[2] in PACKAGES]


@pytest.mark.parametrize("module", packaged())
def test_packages_of_the_server_know_only_those_below(module: str) -> None:
    assert strangers(modules()[module].read_text(), module) == []


def test_every_package_of_the_server_is_looked_at_and_says_what_it_is() -> None:
    folders = {path.name for path in (ROOT / "server").iterdir() if (path / "__init__.py").exists()}
    assert folders == set(PACKAGES)
    for name in folders:
        said = ast.get_docstring(ast.parse((ROOT / "server" / name / "__init__.py").read_text()))
        assert said is not None
        assert "import" in said


@pytest.mark.parametrize(
    "source",
    [
        "from fedgen.server.run import life",
        "from fedgen.server.rounds.star import Star",
        "def late():\n    from fedgen.server.report.page import write_report",
        "from ..cli import main",
    ],
)
def test_strangers_are_found(source: str) -> None:
    assert len(strangers(source, "fedgen.server.pools.ray_pool")) == 1


def arrows(source: str, module: str, known: Collection[str], is_package: bool = False) -> set[str]:
    """Which of the known modules `source`, read as the code of ``module``, imports at any depth of it.

    A package's ``__init__`` counts where a name of it is imported, not where a module below it is.
    """
    package, found = module if is_package else module.rpartition(".")[0], set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=origin, level=level, names=names):
                home = resolve_name("." * level + (origin or ""), package)
                below = {f"{home}.{alias.name}" for alias in names}
                found |= {name if name in known else home for name in below}
    return (found & set(known)) - {module}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, each in alphabetical order."""
    reached = {module: below(graph, module) for module in graph}
    groups = {frozenset(other for other in reached[module] if module in reached[other]) for module in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def below(graph: dict[str, set[str]], module: str) -> set[str]:
    """Everything that is imported, by whatever way, when ``module`` is; itself where it is in a circle."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def test_no_modules_import_one_another() -> None:
    known = modules()
    graph = {
        module: arrows(path.read_text(), module, known, is_package=path.name == "__init__.py")
        for module, path in known.items()
    }
    assert "fedgen.contracts" in graph["fedgen.federation"]
    assert circles(graph) == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"a": "import b", "b": "import c", "c": ""}, []),
        ({"a": "import b", "b": "import c", "c": "def late():\n    import a"}, [["a", "b", "c"]]),
        ({"a": "from b import name", "b": "if TYPE_CHECKING:\n    from a import other"}, [["a", "b"]]),
        ({"p": "from p.a import run", "p.a": "from p import version"}, [["p", "p.a"]]),
        ({"p": "from p.a import run", "p.a": "from p import b", "p.b": "version = 1"}, []),
        ({"p": "", "p.a": "from . import b", "p.b": "from .a import name"}, [["p.a", "p.b"]]),
    ],
)
def test_circles_are_found(sources: dict[str, str], expected: list[list[str]]) -> None:
    graph = {module: arrows(source, module, sources, is_package=module == "p") for module, source in sources.items()}
    assert circles(graph) == expected


def test_every_layer_is_looked_at() -> None:
    assert {layer_of(module) for module in modules()} == set(LAYERS)


@pytest.mark.parametrize("name", ["clients", "server"])
def test_upper_layers_are_relative_links(name: str) -> None:
    link = ROOT / "fedgen" / name
    assert link.is_symlink(), f"{link} is no link: was the repository checked out without symbolic links?"
    assert link.readlink() == Path("..") / name


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fedgen.rows", "import fedgen.server.pools.pool"),
        ("fedgen.rows", "from fedgen import clients"),
        ("fedgen.rows", "from fedgen.clients.cohort import Cohort"),
        ("fedgen.rows", "from .server import pool"),
        ("fedgen.rows", "from . import server"),
        ("fedgen.methods.sgd", "from ..clients import cohort"),
        ("fedgen.rows", "def late():\n    from fedgen.server import run"),
        ("fedgen.rows", "import_module('fedgen.server.run.start')"),
        ("fedgen.methods.sgd", "import_module('..clients', __package__)"),
        ("fedgen.clients.worker", "from ..server.pool import Pool"),
        ("fedgen.clients.worker", "import flwr.app"),
        ("fedgen.clients.worker", "from grpc import aio"),
        ("fedgen.server.run.start", "from clients.worker import Worker"),
        ("fedgen.rows", "import ray"),
        ("fedgen.rows", "def now():\n    from time import monotonic"),
        ("fedgen.rows", "import socket as s"),
        ("fedgen.config", "text = open(path).read()"),
        ("fedgen.config", "text = Path(path).read_text()"),
        ("fedgen.database", "rows = np.load(path)"),
        ("fedgen.config", "with path.open() as file: pass"),
    ],
)
def test_violations_are_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fedgen", "from fedgen.server.run.start import run"),
        ("fedgen.rows", "import torch\nfrom .parameters import Layout\n'ray is fine in prose'"),
        ("fedgen.data.mnist", "with np.load(path) as arrays: pass"),
        ("fedgen.config", "settings = tomllib.loads(text)"),
        ("fedgen.clients.worker", "import ray, time\nfrom ..rows import Rows\nopen(path)"),
        ("fedgen.server.flower", "import flwr.app, grpc\nfrom ..clients import worker\nfrom fedgen import rows"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_a_package_resolves_its_dots_against_itself() -> None:
    assert violations("from .server import run", "fedgen.methods", is_package=True) == []
    assert violations("from ..server import run", "fedgen.methods", is_package=True) != []
