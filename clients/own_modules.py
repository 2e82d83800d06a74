"""Sends a user's own modules by value, so that workers on other machines import the coordinator's files."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from fedgen import registry
from fedgen.errors import FedgenError
from fedgen.own_code import is_own

SIZE_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True)
class Source:
    """A module's file: its path at the coordinator and its contents."""

    path: str
    code: bytes

    @property
    def folder(self) -> list[str] | None:
        """The folder of a package's modules; None for a module that is not a package."""
        path = Path(self.path)
        return [str(path.parent)] if path.name == "__init__.py" else None


@dataclass(frozen=True)
class OwnModules:
    """A user's modules by name.

    search_path: folders to search. imported: modules that the coordinator has imported. beside: other modules in the
    same folders and packages, which may be imported later.
    """

    search_path: tuple[str, ...] = ()
    imported: Mapping[str, Source] = field(default_factory=dict)
    beside: Mapping[str, Source] = field(default_factory=dict)

    def install(self) -> None:
        """Let this process import them; `imported` takes precedence over local modules of the same name."""
        registry.search_in(self.search_path)
        sys.meta_path.insert(0, _Finder(self.imported))
        sys.meta_path.append(_Finder(self.beside))


def packed(search_path: Sequence[str], names: Collection[str] = ()) -> OwnModules:
    """The user's modules that this process has imported, with other modules in the same folders.

    Folders are those of search_path and those of the modules in `names`. Raises FedgenError if the files are too large.
    """
    loaded = dict(_loaded_files())
    roots = {_root(name, loaded[name]) for name in names if name in loaded}
    roots |= {Path(folder).resolve() for folder in search_path}
    imported = {name: path for name, path in loaded.items() if _root(name, path) in roots}
    beside = {name: path for name, path in _beside(imported) if name not in imported}
    size = sum(path.stat().st_size for path in (*imported.values(), *beside.values()))
    if size > SIZE_LIMIT_BYTES:
        raise FedgenError(
            f"own modules in {' and '.join(sorted(map(str, roots)))} have {size / 2**20:.1f} MiB of Python files; at "
            f"most {SIZE_LIMIT_BYTES >> 20} MiB can be sent to the nodes of a cluster; put the experiment file and its "
            "modules into a separate folder"
        )
    return OwnModules(tuple(search_path), _read(imported), _read(beside))


def _loaded_files() -> Iterator[tuple[str, Path]]:
    """Imported modules that are neither installed nor part of fedgen."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or name == "__main__" or name.partition(".")[0] == "fedgen":
            continue
        path = Path(file)
        if path.suffix == ".py" and is_own(file) and path.is_file():
            yield name, path


def _root(name: str, path: Path) -> Path:
    """The folder in which the module was found: the parent of its outermost package."""
    depth = name.count(".") + (path.name == "__init__.py")
    return path.resolve().parents[depth]


def _beside(imported: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Modules in the same folders, and all modules of the same packages."""
    for root in {_root(name, path) for name, path in imported.items()}:
        for path in root.glob("*.py"):
            yield path.stem, path
    for root, package in {(_root(name, path), name.partition(".")[0]) for name, path in imported.items()}:
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _read(files: Mapping[str, Path]) -> dict[str, Source]:
    return {name: Source(str(path), path.read_bytes()) for name, path in files.items()}


class _Finder(MetaPathFinder):
    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        source = self._sources.get(fullname)
        if source is None:
            return None
        return spec_from_file_location(
            fullname, source.path, loader=_Loader(source), submodule_search_locations=source.folder
        )


class _Loader(SourceLoader):
    def __init__(self, source: Source) -> None:
        self._source = source

    def get_filename(self, fullname: str) -> str:
        return self._source.path

    def get_data(self, path: str | bytes) -> bytes:
        if path != self._source.path:
            raise OSError(f"{path!r} was not sent")  # e.g. cached bytecode of a local file with this name
        return self._source.code
