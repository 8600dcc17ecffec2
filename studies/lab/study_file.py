"""A study written down: a TOML file with its factors and the fields that all its runs share."""

import tomllib
from itertools import product
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

Config = TypeVar("Config", bound=BaseModel)

TABLES = {"factors", "config"}


def read_study_file(path: Path, config: type[Config]) -> list[Config]:
    """The runs that a file asks for: every combination of its factors.

    Args:
        path: TOML with a table `[factors]`, field to list of levels, and a table `[config]`, field
            to value.
        config: Configuration of one run, which says what fields there are and what fits them.

    Returns:
        The configurations, the last factor changing fastest.

    Raises:
        ValueError: If the file is not of this form, or a field or a value does not fit.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}.") from None
    factors, fields = content.get("factors", {}), content.get("config", {})
    tables = (content, factors, fields)
    if {*content} - TABLES or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path} holds the tables [factors] and [config] and nothing else.")
    if not factors or not all(isinstance(v, list) and v for v in factors.values()):
        raise ValueError(f"{path}: [factors] gives each factor a list of levels.")
    if twice := {*factors} & {*fields}:
        raise ValueError(f"{path} names {', '.join(sorted(twice))} in both of its tables.")
    try:
        return [
            config(**fields, **dict(zip(factors, levels, strict=True)))
            for levels in product(*factors.values())
        ]
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {field}: {first['msg']}, but got {first['input']!r}.") from None
