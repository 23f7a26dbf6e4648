"""What our source takes from other packages, found by reading it: imports, attributes, keywords, assignments."""

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_CALLS_WITH_A_NAME = ("getattr", "setattr", "delattr", "hasattr", "object")  # the last is mock.patch.object


class Use(NamedTuple):
    """`module` as imported, and the dotted name taken from it; `()` in the name stands for what a call returns."""

    file: str
    line: int
    module: str
    name: str


class Call(NamedTuple):
    """Keywords that we pass to something of another package."""

    file: str
    line: int
    module: str
    name: str
    keywords: frozenset[str]


def source_files() -> list[Path]:
    """Our own modules and entry points, without tests."""
    return sorted(path for folder in ("megagpt", "pretrain", "data_tools") for path in (ROOT / folder).rglob("*.py"))


class FileScan:
    """What one file takes from packages whose names begin with one of `roots`."""

    def __init__(self, path: Path, roots: tuple[str, ...]) -> None:
        self.file = path.relative_to(ROOT / "megagpt").as_posix() if "megagpt" in path.parts else path.name
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self._roots = re.compile(rf"({'|'.join(roots)})(\.\w+)*")
        self._aliases: dict[str, tuple[str, str]] = {}
        self.imported: list[Use] = []
        self._read_imports()

    def uses(self) -> list[Use]:
        """Imported names, the longest attribute chains on them, and modules that are named in strings."""
        found = list(self.imported)
        inner = {id(node.value) for node in ast.walk(self.tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and id(node) not in inner:
                found += self._use(node.lineno, self._resolve(node))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and self._names_module(node.value):
                found.append(Use(self.file, node.lineno, node.value, ""))
            elif isinstance(node, ast.Call) and (named := self._named_in_call(node)):
                found += self._use(node.lineno, named)
        return found

    def calls(self) -> list[Call]:
        """Calls of what was imported that pass keywords."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and (target := self._resolve(node.func)):
                keywords = frozenset(word.arg for word in node.keywords if word.arg)
                if keywords:
                    found.append(Call(self.file, node.lineno, *target, keywords))
        return found

    def patches(self) -> list[Use]:
        """Assignments to attributes of what was imported, by `=`, setattr, delattr or unittest.mock."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
                found += self._use(node.lineno, self._resolve(node))
            elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
                "setattr",
                "delattr",
                "object",
            ):
                found += self._use(node.lineno, self._named_in_call(node))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "mock.patch" and node.args:
                text = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
                if self._roots.fullmatch(str(text)):
                    found.append(Use(self.file, node.lineno, str(text), ""))
        return found

    def attributes_of(self, holders: tuple[str, ...]) -> Iterator[tuple[int, str]]:
        """Attributes taken from an expression that ends in one of `holders`, such as `self.deepspeed`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] in holders:
                yield node.lineno, node.attr

    def tree_attributes(self) -> set[str]:
        """Every attribute's name, and every name in a `getattr`."""
        names = {node.attr for node in ast.walk(self.tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(self.tree):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "getattr"
                and isinstance(node.args[1], ast.Constant)
            ):
                names.add(str(node.args[1].value))
        return names

    def keywords_of(self, function: str) -> set[str]:
        """Keywords passed to a function by its bare name."""
        calls = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        return {word.arg for node in calls if ast.unparse(node.func) == function for word in node.keywords if word.arg}

    def _read_imports(self) -> None:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if self._roots.fullmatch(alias.name):
                        shown = alias.asname or alias.name.split(".")[0]
                        self._aliases[shown] = (alias.name if alias.asname else alias.name.split(".")[0], "")
                        self.imported.append(Use(self.file, node.lineno, alias.name, ""))
            elif isinstance(node, ast.ImportFrom) and node.module and self._roots.fullmatch(node.module):
                for alias in node.names:
                    module, name = self._split(node.module, alias.name)
                    self._aliases[alias.asname or alias.name] = (module, name)
                    self.imported.append(Use(self.file, node.lineno, module, name))
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                module = self._imported_by_name(node.value)
                if module:
                    self._aliases[node.targets[0].id] = (module, "")

    def _split(self, module: str, name: str) -> tuple[str, str]:
        """`from a.b import c`: (a.b.c, "") where that is a module, else (a.b, c)."""
        try:
            is_module = importlib.util.find_spec(f"{module}.{name}") is not None
        except (ImportError, AttributeError):
            is_module = False
        return (f"{module}.{name}", "") if is_module else (module, name)

    def _names_module(self, text: str) -> bool:
        return "." in text and self._roots.fullmatch(text) is not None

    def _imported_by_name(self, node: ast.expr) -> str | None:
        """The module of `importlib.import_module("…")` and of `sys.modules["…"]`."""
        inner: ast.expr | None = None
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            inner = node.args[0]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "sys.modules":
            inner = node.slice
        if isinstance(inner, ast.Constant) and self._names_module(str(inner.value)):
            return str(inner.value)
        return None

    def _resolve(self, node: ast.expr) -> tuple[str, str] | None:
        if isinstance(node, ast.Name):
            return self._aliases.get(node.id)
        module = self._imported_by_name(node)
        if module:
            return module, ""
        if isinstance(node, ast.Call):
            of = self._resolve(node.func)
            return (of[0], f"{of[1]}()") if of else None
        if isinstance(node, ast.Attribute):
            of = self._resolve(node.value)
            return (of[0], f"{of[1]}.{node.attr}".lstrip(".")) if of else None
        return None

    def _named_in_call(self, node: ast.Call) -> tuple[str, str] | None:
        """`getattr(x, "name")` and its like, where x is of another package."""
        if ast.unparse(node.func).split(".")[-1] not in _CALLS_WITH_A_NAME or len(node.args) < 2:
            return None
        of, name = self._resolve(node.args[0]), node.args[1]
        return (of[0], f"{of[1]}.{name.value}".lstrip(".")) if of and isinstance(name, ast.Constant) else None

    def _use(self, line: int, target: tuple[str, str] | None) -> list[Use]:
        return [Use(self.file, line, *target)] if target else []
