"""The public names of the package, read from its source: where each is said to be public, and where it is defined.

A package is public if it states its names, in `__all__` or in an `__init__.pyi` (names that are imported on first use);
so are the modules in `MODULES`, which users import from by their own name. A name that several of them state is
documented once, by the innermost package; the others only list it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"
ROOT = "chainwright"
MODULES = ("chainwright.plugins", "chainwright.scoring", "chainwright.tasks.writing")


@dataclass(frozen=True)
class Name:
    """A public name.

    Attributes:
        name: As it is imported.
        public: The module that it is imported from.
        path: The dotted path of its definition.
    """

    name: str
    public: str
    path: str


@cache
def public_modules() -> dict[str, list[Name]]:
    """Return the names of every public module, in the order in which it states them."""
    packages = {_module(file.parent) for file in (SOURCE / ROOT).rglob("__init__.py") if _stated(_module(file.parent))}
    private = {package for package in packages if any(part.startswith("_") for part in package.split("."))}
    return {module: _names(module) for module in sorted((packages - private) | set(MODULES))}


@cache
def documented_in() -> dict[str, str]:
    """Return, for the path of every definition, the public module whose page documents it."""
    found: dict[str, str] = {}
    innermost = sorted(public_modules(), key=lambda module: (-module.count("."), module))
    stated = [(module, name) for module in innermost for name in public_modules()[module]]
    for module, name in sorted(stated, key=lambda pair: not pair[1].path.startswith(pair[0])):
        found.setdefault(name.path, module)
    return found


def _names(module: str) -> list[Name]:
    return [Name(name, module, _path(module, name)) for name in _stated(module)]


def _stated(module: str) -> list[str]:
    stub = SOURCE.joinpath(*module.split("."), "__init__.pyi")
    if stub.exists():
        return [alias.asname or alias.name for node in _imports(stub) for alias in node.names]
    for node in ast.walk(_tree(_source(module))):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Tuple):
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
                return [ast.literal_eval(element) for element in node.value.elts]
    if module not in MODULES:
        return []
    found = [getattr(node, "name", "_") for node in _tree(_source(module)).body]
    return [name for name in found if not name.startswith("_")]


def _path(module: str, name: str) -> str:
    """Return where a name is defined, following the imports that pass it on."""
    stub = SOURCE.joinpath(*module.split("."), "__init__.pyi")
    file = stub if stub.exists() else _source(module)
    for node in _imports(file):
        for alias in node.names:
            if (alias.asname or alias.name) == name:
                origin = _absolute(module, file, node)
                if not origin.startswith(ROOT):
                    return f"{module}.{name}"
                is_module = _file(f"{origin}.{alias.name}") is not None
                if is_module and (origin == module or not _defines(origin, alias.name)):
                    return f"{origin}.{alias.name}"
                return _path(origin, alias.name)
    return f"{module}.{name}"


def _defines(module: str, name: str) -> bool:
    return name in _stated(module) or any(getattr(node, "name", None) == name for node in _tree(_source(module)).body)


def _absolute(module: str, file: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".") if file.stem == "__init__" else module.split(".")[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _imports(file: Path) -> list[ast.ImportFrom]:
    return [node for node in _tree(file).body if isinstance(node, ast.ImportFrom) and node.module != "__future__"]


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _module(folder: Path) -> str:
    return ".".join(folder.relative_to(SOURCE).parts)


def _file(module: str) -> Path | None:
    path = SOURCE.joinpath(*module.split("."))
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.exists():
            return file
    return None


def _source(module: str) -> Path:
    file = _file(module)
    assert file is not None, module
    return file


def docstring(path: str) -> str | None:
    """Return the docstring of a definition: of a function, class or module, or the text under a constant."""
    if _file(path):
        return ast.get_docstring(_tree(_source(path)))
    module, _, name = path.rpartition(".")
    body = _tree(_source(module)).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        # of an overloaded function the last definition has it
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name and ast.get_docstring(node):
            return ast.get_docstring(node)
        if name in _assigned(node) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            return str(after.value.value)
    return None


def _assigned(node: ast.stmt) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def undocumented() -> list[str]:
    """Return every public name that has no docstring, as `module.name (defined at path)`."""
    names = [name for stated in public_modules().values() for name in stated]
    return sorted({f"{n.public}.{n.name} (defined at {n.path})" for n in names if not docstring(n.path)})
