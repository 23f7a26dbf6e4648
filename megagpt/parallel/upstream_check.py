"""Whether the installed megatron-core and DeepSpeed have all that `upstream.py` names.

In: the installed packages, which it imports (seconds). Out: one sentence for each name that is missing. Reads the
source of classes for attributes that only their instances have; builds nothing and starts no process group.
"""

import ast
import importlib
import importlib.metadata
import inspect
import os
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import torch

from megagpt.parallel.upstream import CONFIG_READERS, FIELDS_NOT_READ, TESTED, UPSTREAM, Upstream

_MISSING = object()


def missing_upstream(table: tuple[Upstream, ...] = UPSTREAM) -> list[str]:
    """A sentence for each name of the table that is missing, and for each field our config lacks; empty if all is well.

    Each names the package with its version, what it lacks, who needs it and for what, and the versions that have it.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # as in cpu.py: DeepSpeed warns if it has to guess
    sentences = [sentence for entry in table for sentence in _missing_of(entry)]
    # a module that cannot be imported is told of once, with the first of its names
    return list(dict.fromkeys(sentences)) + [
        sentence for module in CONFIG_READERS for sentence in _unknown_fields(module)
    ]


def _missing_of(entry: Upstream) -> Iterator[str]:
    try:
        module = importlib.import_module(entry.module)
    except ImportError as error:
        yield _sentence(entry, f"cannot import {entry.module} ({error})")
        return
    for name in entry.names.split() or [""]:
        label = _label(entry.module, name)
        found = find_name(module, name)
        if found is _MISSING:
            yield _sentence(entry, f"has no {label}")
            continue
        for word in _absent(entry.parameters, _accepted, found):
            yield _sentence(entry, f"has no {word} in {label}")
        for word in _absent(entry.mentions, _words, found):
            yield _sentence(entry, f"no longer uses {word} in {label}")
        if entry.value is not None and found != entry.value:
            yield _sentence(entry, f"has {found!r} instead of {entry.value!r} as {label}")


def _absent(wanted: str, given: Any, found: Any) -> list[str]:
    """The words of `wanted` that are not in `given(found)`, which is slow and not called without any."""
    if not wanted:
        return []
    words = given(found)
    return [word for word in wanted.split() if word not in words]


def find_name(module: ModuleType, name: str) -> Any:
    """What a dotted name of a module stands for; of a class, an attribute that it sets on itself counts as there."""
    found: Any = module
    for part in name.split(".") if name else ():
        owner, found = found, getattr(found, part, _MISSING)
        if found is _MISSING and inspect.isclass(owner) and part in _instance_attributes(owner):
            return owner
        if found is _MISSING:
            return _MISSING
    return found


def _instance_attributes(owner: type) -> set[str]:
    """Names annotated in a class or assigned to `self` by it, or by a class it inherits from."""
    names: set[str] = set()
    for cls in owner.__mro__[:-1]:
        names |= set(vars(cls).get("__annotations__", {}))
        for node in ast.walk(ast.parse(_source(cls) or "pass")):
            if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
                target = re.fullmatch(r"self\.(\w+)|self\.__dict__\['(\w+)'\]", ast.unparse(node))
                names |= set(target.groups("")) if target else set()
    return names


def _accepted(found: Any) -> set[str]:
    """Parameters of a function or constructor, or the fields of a pydantic model."""
    fields = getattr(found, "model_fields", None)
    if isinstance(fields, dict):
        return {*fields, *(field.alias for field in fields.values() if field.alias)}
    return set(inspect.signature(found).parameters)


def _words(found: Any) -> set[str]:
    return set(re.findall(r"[\w-]+", _source(found)))


@cache  # inspect parses a whole file to find a class in it
def _source(found: Any) -> str:
    """The source of a class, function or module; empty for what has none, such as a class made in C."""
    try:
        return textwrap.dedent(inspect.getsource(inspect.unwrap(found)))
    except (OSError, TypeError):
        return ""


def _unknown_fields(module_name: str) -> Iterator[str]:
    """Fields of the config that a module of megatron-core reads and our config has not."""
    try:
        module = importlib.import_module(module_name)
        from megagpt.parallel.mcore_config import McoreConfig  # imports megatron-core
    except ImportError:
        return  # told of already
    known = {*inspect.signature(McoreConfig).parameters, *FIELDS_NOT_READ, *dir(McoreConfig)}
    read = {
        node.attr
        for node in ast.walk(ast.parse(_source(module)))
        if isinstance(node, ast.Attribute)
        and (
            (isinstance(node.value, ast.Name) and node.value.id == "config")
            or (isinstance(node.value, ast.Attribute) and node.value.attr == "config")
        )
    }
    for field in sorted(read - known):
        yield (
            f"{_package('megatron-core')} reads config.{field} in {_label(module_name, '')}, a field that McoreConfig "
            f"(parallel/mcore_config.py) has not; {_advice('megatron-core')}"
        )


def _sentence(entry: Upstream, what: str) -> str:
    package = "deepspeed" if entry.module.startswith("deepspeed") else "megatron-core"
    return f"{_package(package)} {what}, which {entry.used_in} needs for {entry.why}; {_advice(package)}"


def _label(module: str, name: str) -> str:
    """`parallel_state.get_x`: enough to find it, without the packages above."""
    return ".".join([module.rsplit(".", 1)[-1], name]) if name else module.rsplit(".", 1)[-1]


def _package(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def _advice(package: str) -> str:
    return f"use {package} {' or '.join(TESTED[package])}"
