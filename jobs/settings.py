"""One YAML file per deployment, checked section by section, with errors that say where and what.

Each section is a frozen pydantic model that lives beside what it configures; a job names those
that it needs. Paths inside a file are relative to the working directory, as on any command line.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

EXIT_DONE: Final = 0
EXIT_BAD_INPUT: Final = 2
"""The configuration or the data is wrong: running again does not help."""
EXIT_RETRY: Final = 75
"""Something is away for a while (sysexits' EX_TEMPFAIL): run again."""

SECTIONS: Final = ("specification", "samples", "publish", "model", "train", "export")
"""Every top-level key that a file may have, in the order in which a sample passes them."""

_Path = tuple[str | int, ...]
_MAX_SHOWN = 80


class SettingsError(ValueError):
    """The configuration is wrong.

    Attributes:
        problems: One line each: `FILE: dotted.path: found X; expected Y`.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the two flags of every job: `--config PATH` and repeatable `--set path=value`."""
    parser.add_argument(
        "--config", required=True, type=Path, metavar="PATH", help="YAML file of the deployment"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override one value, as in --set samples.num_parts=4; repeatable; VALUE is YAML",
    )


def load_settings(
    path: str | Path, overrides: Sequence[str], sections: Mapping[str, type[BaseModel]]
) -> dict[str, Any]:
    """Reads a file, applies the overrides and validates the sections that a job asks for.

    A section that the file leaves out is made of its defaults; other sections are left unchecked,
    but their names must be known.

    Args:
        path: The YAML file.
        overrides: `dotted.path=value` each, list items by index, applied in order.
        sections: Model of each section that the job needs.

    Returns:
        One validated model per entry of `sections`, under its name.

    Raises:
        SettingsError: If anything is wrong; it lists all problems, not only the first.
    """
    content = _read_mapping(Path(path))
    origins = {_override(content, text): f"--set {text}" for text in overrides}
    problems = [
        f"{path}: {name}: found an unknown section; {_expected_one_of(str(name), SECTIONS)}"
        for name in content
        if name not in SECTIONS
    ]
    loaded = {}
    for name, model in sections.items():
        section = {} if content.get(name) is None else content[name]
        try:
            loaded[name] = model.model_validate(section)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                problems += _problem_lines(
                    details, root=(name, model), data=section, file=str(path), origins=origins
                )
    if problems:
        raise SettingsError(problems)
    return loaded


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe types; a key that is given twice is an error, not a silent last word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 -- the library's signature
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"found key {key_node.value!r} twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)  # noqa: S506 -- a SafeLoader
    except OSError as error:
        raise SettingsError([f"{path}: found no readable file: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SettingsError([f"{path}: found bytes that are not UTF-8; expected YAML"]) from error
    except yaml.YAMLError as error:
        raise SettingsError([f"{path}: {_yaml_problem(error)}; expected valid YAML"]) from error
    if not isinstance(content, dict):
        raise SettingsError(
            [f"{path}: found {_shown(content)}; expected a mapping of sections {_list(SECTIONS)}"]
        )
    return content


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return f"{where}{getattr(error, 'problem', None) or str(error).splitlines()[0]}"


def _override(content: dict[str, Any], text: str) -> _Path:
    """Sets one value in place and returns its path."""
    dotted, equals, raw = text.partition("=")
    if not equals or not all(dotted.split(".")):
        raise SettingsError([f"--set {text}: expected dotted.path=value"])
    try:
        value = yaml.load(raw, UniqueKeyLoader)  # noqa: S506 -- a SafeLoader
    except yaml.YAMLError as error:
        raise SettingsError([f"--set {text}: {_yaml_problem(error)}; expected YAML"]) from error
    *parents, last = dotted.split(".")
    path: list[str | int] = []
    here: Any = content
    for part in parents:
        key = _key_in(here, part, text)
        if isinstance(here, dict) and here.get(key) is None:
            here[key] = {}
        path.append(key)
        here = here[key]
    key = _key_in(here, last, text)
    here[key] = value
    return (*path, key)


def _key_in(container: object, part: str, text: str) -> str | int:
    if isinstance(container, dict):
        return part
    if not isinstance(container, list):
        raise SettingsError(
            [f"--set {text}: found {_shown(container)} above {part!r}; expected a mapping or list"]
        )
    if not (part.isdecimal() and int(part) < len(container)):
        raise SettingsError(
            [f"--set {text}: found index {part!r}; expected a number below {len(container)}"]
        )
    return int(part)


def _problem_lines(
    details: ErrorDetails,
    *,
    root: tuple[str, type[BaseModel]],
    data: object,
    file: str,
    origins: Mapping[_Path, str],
) -> list[str]:
    """Turns one pydantic error into lines of ours."""
    name, model = root
    inner = _path_in(data, details["loc"])
    owner = _model_at(model, inner)
    lines = []
    for below, text in _findings(
        details, inner=inner, owner=owner, parent=_model_at(model, inner[:-1])
    ):
        path: _Path = (name, *inner, *below)
        origin = next((o for prefix, o in origins.items() if path[: len(prefix)] == prefix), file)
        lines.append(f"{origin}: {'.'.join(map(str, path))}: {text}")
    return lines


def _findings(
    details: ErrorDetails,
    *,
    inner: _Path,
    owner: type[BaseModel] | None,
    parent: type[BaseModel] | None,
) -> list[tuple[_Path, str]]:
    """Returns (path below the error's own, what was found and expected)."""
    kind, found = details["type"], _shown(details["input"])
    if kind == "extra_forbidden":
        known = () if parent is None else tuple(parent.model_fields)
        return [((), f"found an unknown key; {_expected_one_of(str(inner[-1]), known)}")]
    if kind == "missing":
        return [((), "found nothing; expected a value")]
    if kind in ("value_error", "assertion_error"):
        message = details["msg"].partition(", ")[2]
        return [_split_path(line, owner) for line in message.splitlines()]
    if kind == "model_type" or kind == "model_attributes_type":
        keys = "" if owner is None else f" with keys of {_list(owner.model_fields)}"
        return [((), f"found {found}; expected a mapping{keys}")]
    expected = re.sub(r"^Input should be ", "", details["msg"])
    expected = expected.partition(", unable to parse")[0]
    return [((), f"found {found}; expected {expected[:1].lower()}{expected[1:]}")]


def _split_path(line: str, owner: type[BaseModel] | None) -> tuple[_Path, str]:
    """Cuts `features.query.0.name: text` at the colon, if it starts with a field of `owner`."""
    path, colon, text = line.partition(": ")
    if colon and owner is not None and path.split(".")[0] in owner.model_fields:
        return tuple(path.split(".")), text
    return (), line


def _path_in(data: object, location: Sequence[str | int]) -> _Path:
    """Drops what pydantic adds to a location (union tags, validators) and the data has not."""
    path: list[str | int] = []
    here: Any = data
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(here, dict) and (part in here or last):
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int):
            here = here[part]
        else:
            continue
        path.append(part)
    return tuple(path)


def _model_at(model: type[BaseModel], path: _Path) -> type[BaseModel] | None:
    """Returns the model class that a path inside `model` leads to, if it leads to one."""
    annotation: Any = model
    for part in path:
        owner = _model_in(annotation)
        if owner is not None and part in owner.model_fields:
            annotation = owner.model_fields[str(part)].annotation
        elif owner is not None and annotation is owner:
            return None
    return _model_in(annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Returns the one model inside an annotation such as `list[Model] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = {found for part in get_args(annotation) if (found := _model_in(part)) is not None}
    return models.pop() if len(models) == 1 else None


def _expected_one_of(name: str, known: Iterable[str]) -> str:
    known = tuple(known)
    if not known:
        return "expected no such key"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"expected one of {_list(known)}{hint}"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
