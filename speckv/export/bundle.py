# SPDX-License-Identifier: Apache-2.0
"""Copies modules of installed packages into one folder, so that they run without these packages.

Copies differ from the originals in their imports alone: `from speckv.errors import ConfigError` becomes
`from .speckv_errors import ConfigError`. A re-exported name is imported from the module that defines it.
"""

import ast
import itertools
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec, resolve_name
from pathlib import Path

from speckv.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Sources of copied modules by flat name, and the top-level names of other packages that they import."""

    sources: Mapping[str, str]
    libraries: frozenset[str]


def flat_name(module: str) -> str:
    """Name of a module's copy.

    >>> flat_name("speckv.runtime.session")
    'speckv_runtime_session'
    """
    return module.replace(".", "_")


def bundle(roots: Collection[str]) -> Bundle:
    """Copies modules with all that they import from their own top-level packages.

    A ConfigError names a module that cannot be found, or an import that cannot be copied.
    """
    own = frozenset(root.partition(".")[0] for root in roots)
    waiting, copied = sorted(roots), dict[str, _Copy]()
    while waiting:
        module = waiting.pop()
        known = copied.get(flat_name(module))
        if known is not None and known.module != module:
            raise ConfigError(f"Expected modules whose names differ when flat, got {known.module} and {module}.")
        if known is None:
            copied[flat_name(module)] = copy = _Copy(module, own)
            waiting += sorted(copy.needed)
    return Bundle(
        sources={name: copied[name].text for name in sorted(copied)},
        libraries=frozenset[str]().union(*(copy.libraries for copy in copied.values())) - sys.stdlib_module_names,
    )


class _Copy:
    def __init__(self, module: str, own: Collection[str]) -> None:
        path = _path(module)
        self.module, self._own = module, own
        self._package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        self.needed: set[str] = set()
        self.libraries: set[str] = set()
        source = path.read_text(encoding="utf-8")
        edits = [(node, self._rewritten(node, runs)) for node, runs in _imports(ast.parse(source))]
        self.text = _edited(source, [(node, text) for node, text in edits if text is not None])

    def _rewritten(self, node: ast.Import | ast.ImportFrom, runs: bool) -> str | None:
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            if any(self._is_own(module) for module in modules):
                raise ConfigError(
                    f"Expected {self.module} to import its own packages by `from ... import`, got line {node.lineno}."
                )
            self.libraries |= {module.partition(".")[0] for module in modules if runs}
            return None
        origin = resolve_name("." * node.level + (node.module or ""), self._package)
        if not self._is_own(origin):
            self.libraries |= {origin.partition(".")[0]} if runs else set()
            return None
        if not runs:
            return "pass"
        return f"\n{' ' * node.col_offset}".join(self._imported(origin, node.names))

    def _imported(self, origin: str, aliases: Collection[ast.alias]) -> list[str]:
        found: dict[str, list[str]] = {}
        for alias in aliases:
            module, name = _home(origin, alias.name)
            self.needed.add(module)
            bound = alias.asname or alias.name
            source, name = (".", flat_name(module)) if name is None else (f".{flat_name(module)}", name)
            found.setdefault(source, []).append(name if name == bound else f"{name} as {bound}")
        return [f"from {source} import {', '.join(names)}" for source, names in found.items()]

    def _is_own(self, module: str) -> bool:
        return module.partition(".")[0] in self._own


def _path(module: str) -> Path:
    path = _file(module)
    if path is None:
        raise ConfigError(f"Expected the source of {module} in an installed package, found none.")
    return path


def _file(module: str) -> Path | None:
    """Finds the file without importing the module."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    for folder in (spec and spec.submodule_search_locations) or ():
        place = Path(folder, *rest)
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                return path
    return None


def _home(origin: str, name: str) -> tuple[str, str | None]:
    if name == "*":
        raise ConfigError(f"Expected names to be imported from {origin}, got a star.")
    if _file(f"{origin}.{name}") is not None:
        return f"{origin}.{name}", None
    path = _path(origin)
    if path.name != "__init__.py":
        return origin, name
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _home(resolve_name("." * node.level + (node.module or ""), origin), alias.name)
    return origin, name


def _imports(tree: ast.AST, runs: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, runs
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for part, inside in ((node.body, False), (node.orelse, runs)):
                yield from _imports(ast.Module(part, []), inside)
        else:
            yield from _imports(node, runs)


def _edited(source: str, edits: Collection[tuple[ast.stmt | ast.expr, str]]) -> str:
    data = source.encode()  # columns count bytes
    starts = [0, *itertools.accumulate(map(len, data.splitlines(keepends=True)))]
    for node, text in sorted(edits, key=lambda edit: (edit[0].lineno, edit[0].col_offset), reverse=True):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        data = data[:begin] + text.encode() + data[end:]
    return data.decode()
