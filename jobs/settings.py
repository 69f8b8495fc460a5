"""One YAML file per deployment, checked section by section, with errors that say where and what.

Each section is a frozen pydantic model that lives beside what it configures; a job names those
that it needs. Paths inside a file are relative to the working directory, as on any command line.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

EXIT_DONE: Final = 0
EXIT_BAD_INPUT: Final = 2
"""The configuration or the data is wrong: running again does not help."""
EXIT_RETRY: Final = 75
"""Something is away for a while (sysexits' EX_TEMPFAIL): run again."""

SECTIONS: Final = ("specification", "samples", "publish", "join", "model", "train", "export")
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


def add_config_arguments(
    parser: argparse.ArgumentParser, sections: Mapping[str, type[BaseModel]] | None = None
) -> None:
    """Adds the flags of every job: `--config PATH` and repeatable `--set path=value`.

    Args:
        parser: Gets them.
        sections: What `--help-config` lists; without any, there is no such flag.
    """
    if sections:
        parser.add_argument(
            "--help-config",
            action=_HelpConfig,
            const=sections,
            help="print every key of the configuration with its default, and exit",
        )
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


class _HelpConfig(argparse.Action):
    """Prints the keys of some sections."""

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        const: Mapping[str, type[BaseModel]],
        help: str,  # noqa: A002 -- argparse's name
    ) -> None:
        super().__init__(option_strings, dest, nargs=0, const=const, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        for name, model in self.const.items():
            sys.stdout.writelines(f"{line}\n" for line in key_lines(name, model))
        parser.exit()


def key_lines(path: str, model: type[BaseModel], *, known: str = "") -> Iterator[str]:
    """Yields a line for each key of a section, with its default, and where its meaning stands.

    Args:
        path: The section's own path.
        model: What it must be.
        known: The module that was named already.
    """
    if model.__module__ != known:
        yield f"# {path}: see {model.__module__.replace('.', '/')}.py"
    for name, field in model.model_fields.items():
        inner, here = _model_in(field.annotation), f"{path}.{name}"
        default = field.get_default()
        if field.is_required():
            yield f"{here}: (required)"
        elif not isinstance(default, BaseModel):
            yield f"{here}: {json.dumps(default, default=str)}"
        if inner is not None:
            kind = get_origin(field.annotation)
            below = ".0" if kind is list else ".NAME" if kind is dict else ""
            yield from key_lines(here + below, inner, known=model.__module__)


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
    own = dict.fromkeys(content, str(path))
    changes = [(_override(content, text), f"--set {text}") for text in overrides]
    problems = [
        f"{origin}: {name}: found an unknown section; {_expected_one_of(str(name), SECTIONS)}"
        for name, origin in ({str(changed[0]): text for changed, text in changes} | own).items()
        if name not in SECTIONS
    ]
    loaded = {}
    for name, model in sections.items():
        section = {} if content.get(name) is None else content[name]
        try:
            loaded[name] = model.model_validate(section)
        except ValidationError as error:
            for inner, text in _section_problems(error, model, section):
                where = (name, *inner)
                origin = _origin(where, changes, str(path))
                problems.append(f"{origin}: {'.'.join(map(str, where))}: {text}")
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


def _origin(path: _Path, changes: Sequence[tuple[_Path, str]], file: str) -> str:
    """Returns what to blame for what stands at a path: the last `--set` of it, or the file.

    Where an override changed but a part of it, both are named.
    """
    words = _words(path)
    for changed, text in reversed(changes):
        if words[: len(changed)] == _words(changed):
            return text
    parts = [text for changed, text in changes if _words(changed)[: len(words)] == words]
    return f"{file} with {' '.join(parts)}" if parts else file


def _words(path: _Path) -> list[str]:
    """Returns a path as text: validators of ours and overrides write indices in their own ways."""
    return [str(part) for part in path]


def _section_problems(
    error: ValidationError, model: type[BaseModel], data: object
) -> list[tuple[_Path, str]]:
    """Turns pydantic's errors into lines of ours: (path in the section, found and expected).

    Where a value may be one of several things, pydantic tells of each what it is not; that makes
    one line.
    """
    located = [(_path_in(data, each), each) for each in error.errors(include_url=False)]
    lines: dict[tuple[_Path, str], list[str]] = {}
    for path, details in located:
        others = [other for other, each in located if each is not details]
        meant_another = details["type"] == "literal_error" and isinstance(details["input"], dict)
        if meant_another and any(other[: len(path)] == path for other in others):
            continue
        owner, parent = _model_at(model, path), _model_at(model, path[:-1])
        for below, text in _findings(details, inner=path, owner=owner, parent=parent):
            found, _, expected = text.partition("; expected ")
            lines.setdefault(((*path, *below), found), []).append(expected)
    return [
        (path, f"{found}; expected {', or '.join(expected)}" if any(expected) else found)
        for (path, found), expected in lines.items()
    ]


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
    return [((), f"found {found}; expected {_expected(details)}")]


def _expected(details: ErrorDetails) -> str:
    """Returns what pydantic expected, in our words where its own are hard to read."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "too_short":
        count = context["min_length"]
        return f"at least {count} item{'s' * (count > 1)}"
    if kind == "list_type":
        return "a list" + (f", as {json.dumps([value])}" if isinstance(value, str) else "")
    if kind == "dict_type":
        return "a mapping"
    text = re.sub(r"^Input should be ", "", details["msg"]).partition(", unable to parse")[0]
    if kind == "literal_error":
        text += _did_you_mean(str(value), re.findall(r"'([^']*)'", context["expected"]))
    return f"{text[:1].lower()}{text[1:]}"


def _split_path(line: str, owner: type[BaseModel] | None) -> tuple[_Path, str]:
    """Cuts `features.query.0.name: text` at the colon, if it starts with a field of `owner`."""
    path, colon, text = line.partition(": ")
    if colon and owner is not None and path.split(".")[0] in owner.model_fields:
        return tuple(path.split(".")), text
    return (), line


def _path_in(data: object, details: ErrorDetails) -> _Path:
    """Drops what pydantic adds to a location (union tags, validators) and the data has not."""
    path: list[str | int] = []
    here: Any = data
    location = details["loc"]
    for position, part in enumerate(location):
        lacks = details["type"] == "missing" and position == len(location) - 1
        if isinstance(here, dict) and (part in here or lacks):
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
    return f"expected one of {_list(known)}{_did_you_mean(name, known)}"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
