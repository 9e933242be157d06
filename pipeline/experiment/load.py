"""Experiment YAML -> frozen models (`pipeline.experiment.sections`), checked at load.

Everything that can be known before a job runs is an error here: an unknown key, a wrong type, a
path that does not exist, a split that names an unknown test set. All errors are listed at once,
each with its line, its YAML path and the nearest valid name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from hpc.words import nearest
from pipeline.experiment.checks import Fault, YamlPath, faults_of
from pipeline.experiment.planned import planned_parts, without_missing_data
from pipeline.experiment.sections import Experiment


class ExperimentError(ValueError):
    """An experiment can't be used; the message lists every fault with its YAML path."""


class _Loader(yaml.SafeLoader):
    """YAML that refuses duplicate keys and reads 4e-3 as the number that it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "expected a word as key", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} appears twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_experiment(
    path: Path, overrides: Sequence[str] = (), *, without_data: bool = False
) -> Experiment:
    """Read and check an experiment.

    Args:
        path: the YAML file.
        overrides: `section.key=value`; the value is YAML.
        without_data: data that is not there is no fault where its size is declared; the experiment
            can then be planned, but not run.

    Raises:
        ExperimentError: the file can't be used; every fault is listed.
    """
    text = path.read_text(encoding="utf-8")
    try:
        values = yaml.load(text, _Loader)
        tree = yaml.compose(text, _Loader)
    except yaml.YAMLError as error:
        raise ExperimentError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ExperimentError(f"{path}: expected a mapping with name, pool, tests, ...")
    for override in overrides:
        _apply(values, override)
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        faults = _merged(_fault(item, values) for item in error.errors())
    else:
        experiment = without_missing_data(experiment) if without_data else experiment
        faults = list(faults_of(experiment, without_data=without_data))
    if faults:
        listed = "\n".join(f"  {_place(tree, where)}{what}" for where, what in faults)
        raise ExperimentError(f"{path} can't be used:\n{listed}")
    return experiment


def from_values(values: Mapping[str, Any]) -> Experiment:
    """The experiment from its resolved values, as a plan carries them."""
    return Experiment.model_validate(values)


def to_values(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment as JSON values, for a plan whose jobs run.

    Raises:
        ExperimentError: some of its data is not there, and is only planned.
    """
    if missing := planned_parts(experiment):
        raise ExperimentError(f"can't run without the data of {', '.join(missing)}")
    return experiment.model_dump(mode="json", exclude_none=True)


def _apply(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ExperimentError(f"{override!r}: expected section.key=value")
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ExperimentError(f"{override!r}: {key} is {inner!r}, not a section")
        values = inner
    try:
        values[keys[-1]] = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ExperimentError(f"{override!r}: the value is not valid YAML: {error}") from error


def _merged(faults: Iterable[Fault]) -> list[Fault]:
    """One fault for each place: of a value that may be this or that, each says why it is not."""
    merged: dict[YamlPath, list[str]] = {}
    for where, what in faults:
        merged.setdefault(where, []).append(what)
    return [(where, "; or ".join(dict.fromkeys(what))) for where, what in merged.items()]


def _in_file(location: YamlPath, values: Any) -> YamlPath:
    """The part of pydantic's location that is in the YAML, without its names of alternatives."""
    path: list[str | int] = []
    for key in location:
        try:
            values = values[key]
        except (LookupError, TypeError):
            continue
        path.append(key)
    return tuple(path)


def _fault(error: Any, values: Any) -> Fault:
    """A pydantic error as a YAML path and words."""
    where = _in_file(error["loc"], values)
    if error["type"] == "missing":
        return (*where, error["loc"][-1]), "required, but not there"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return where, f"expected a mapping of keys to values, found {error['input']!r}"
    if error["type"] == "extra_forbidden":
        return where, f"unknown key; {nearest(str(where[-1]), _keys_at(where[:-1]))}"
    message = error["msg"].removeprefix("Value error, ")
    found = "" if error["type"] == "value_error" else f", found {error['input']!r}"
    return where, message[0].lower() + message[1:] + found


def _keys_at(where: YamlPath) -> list[str]:
    """The keys that a section may have."""
    model: Any = Experiment
    for key in where:
        model = model.model_fields[key].annotation if key in _fields(model) else model
        model = _section_in(model) or model
    return _fields(model)


def _fields(model: Any) -> list[str]:
    return list(getattr(model, "model_fields", {}))


def _section_in(annotation: Any) -> Any:
    """The section class inside an annotation such as dict[str, TestSet] or Random | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [_section_in(item) for item in getattr(annotation, "__args__", ())]
    return next((item for item in inner if item is not None), None)


def _place(tree: yaml.Node | None, where: YamlPath) -> str:
    """`line 12: tests.sketch.images: `, as far as the file has the path."""
    line = None
    node = tree
    for key in where:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == str(key)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
    path = ".".join(str(key) for key in where)
    return (f"line {line}: " if line else "") + (f"{path}: " if path else "")
