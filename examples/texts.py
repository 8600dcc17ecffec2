"""Texts that every Python has: the documentation strings of its standard library."""

import ast
import importlib.util
from pathlib import Path

MODULES = ("argparse", "asyncio.tasks", "calendar", "csv", "datetime", "email.message", "json")
MODULES += ("logging", "pathlib", "random", "statistics", "subprocess", "textwrap", "threading")


def documentation(modules: tuple[str, ...] = MODULES) -> dict[str, list[str]]:
    """Documentation strings of functions and classes, by module; nothing is executed."""
    found = {}
    for name in modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        found[name] = [text for text in texts if text and len(text) >= 40]
    return found
