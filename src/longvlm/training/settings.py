"""Recipes: from a YAML file to checked dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

import yaml

from longvlm.errors import LongVLMError, one_line

Settings = TypeVar("Settings")


class _PlainLoader(yaml.SafeLoader):
    """Reads what looks like a date as the text that it is: a folder may well be called 2026-02-30."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse_yaml(text: str) -> Any:
    """Plain values from YAML. Raises yaml.YAMLError or ValueError where it is none."""
    return yaml.load(text, Loader=_PlainLoader)


def read_settings(path: Path) -> dict[str, Any]:
    """The keys of a YAML file. Raises LongVLMError, naming it, where it can't be read or holds none."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise LongVLMError(f"{path} is no readable YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise LongVLMError(f"{path} holds no keys; see the recipes in longvlm/training/recipes.")
    return content


def build_settings(kind: type[Settings], values: Any, where: str) -> Settings:
    """A dataclass from a mapping, with everything in it; `where` names the mapping in complaints.

    Raises LongVLMError, naming the key and the known ones, for an unknown or missing key, or a value of another kind.
    """
    fields = {item.name: item for item in dataclasses.fields(cast(Any, kind))}
    if not isinstance(values, Mapping):
        raise LongVLMError(f"{where} is {values!r}; it holds keys: {', '.join(fields)}.")
    unknown = [name for name in values if name not in fields]
    if unknown:
        raise LongVLMError(f"{where} has the unknown key {str(unknown[0])!r}; its keys are {', '.join(fields)}.")
    for name, item in fields.items():
        needed = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if needed and values.get(name) is None:
            raise LongVLMError(f"{where} lacks the key {name!r}; give it in the recipe, or as {name}=VALUE.")
    hints = typing.get_type_hints(kind)
    built = {name: _convert(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    try:
        return kind(**built)
    except LongVLMError as mistake:
        raise LongVLMError(str(mistake) if where in str(mistake) else f"{where}: {mistake}") from mistake
    except (TypeError, ValueError) as mistake:
        raise LongVLMError(f"{where} holds a value of another kind than it should ({mistake}).") from mistake


def require_known(names: Iterable[str], known: Collection[str], where: str) -> None:
    """Raise LongVLMError, naming the key `where` and the known ones, for the first of `names` that is none of these."""
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise LongVLMError(f"{where} has {unknown!r}; the known ones are {', '.join(known)}.")


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as a field of type `kind` holds it; LongVLMError where it is of another type."""
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _convert(next(c for c in choices if c is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise LongVLMError(f"{where} is {value!r}; a list is expected.")
        kinds = choices if choices[-1] is not ... else choices[:1] * len(value)
        if len(value) != len(kinds):
            raise LongVLMError(f"{where} is {value!r}; {len(kinds)} values are expected.")
        return tuple(
            _convert(kind, item, f"{where}.{i}") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict and isinstance(value, Mapping) and choices[-1] is not Any:
        return {key: _convert(choices[-1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal:
        if value not in choices:
            raise LongVLMError(f"{where} is {value!r}; choose one of {', '.join(map(str, choices))}.")
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return build_settings(kind, {} if value is None else value, where)
    if kind is Path and isinstance(value, str) and value:
        try:
            return Path(value).expanduser()
        except RuntimeError as error:
            raise LongVLMError(f"{where} is {value!r}, and there is no home folder of that user.") from error
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 2e-5, without a point, for a text
        except (TypeError, ValueError):
            pass
    expected = origin or kind
    if isinstance(value, expected) and not (isinstance(value, bool) and kind is not bool):
        return value
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    raise LongVLMError(f"{where} is {value!r}; {words.get(expected, 'keys with values')} is expected.")
