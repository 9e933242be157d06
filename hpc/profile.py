"""A site's YAML from slurm_templates/ -> the resources of each stage, checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from hpc.stage import Resources


class ProfileError(ValueError):
    """A site profile can't be used; the message says where and what was expected."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How the jobs of each stage run at a site."""

    name: str
    defaults: Resources = field(default_factory=Resources)
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Per stage: the fields of `Resources` that differ from the defaults."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of every job."""

    def resources(self, stage: str) -> Resources:
        """The resources of a stage's jobs."""
        return Resources(**{**_values(self.defaults), **self.stages.get(stage, {})})


def load_profile(path: Path, stages: Sequence[str]) -> Profile:
    """Read a profile.

    Args:
        path: the YAML file.
        stages: the names of all stages, to check those in the file.

    Raises:
        ProfileError: an unknown key or stage, or a value of the wrong type.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ProfileError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ProfileError(f"{path}: expected a mapping, found {values!r}")
    _check_keys(path, "", values, ["defaults", "stages", "environment"])
    for section in ("defaults", "stages", "environment"):
        if not isinstance(values.get(section) or {}, dict):
            raise ProfileError(f"{path}: {section}: expected a mapping, found {values[section]!r}")
    _check_keys(path, "stages.", values.get("stages") or {}, stages)
    per_stage = {
        name: _resources(path, f"stages.{name}.", section or {})
        for name, section in (values.get("stages") or {}).items()
    }
    return Profile(
        name=path.stem,
        defaults=Resources(**_resources(path, "defaults.", values.get("defaults") or {})),
        stages=per_stage,
        environment={k: str(v) for k, v in (values.get("environment") or {}).items()},
    )


def _resources(path: Path, where: str, section: Any) -> dict[str, Any]:
    if not isinstance(section, dict):
        raise ProfileError(f"{path}: {where[:-1]}: expected a mapping, found {section!r}")
    kinds = {item.name: type(item.default) for item in fields(Resources)}
    _check_keys(path, where, section, list(kinds))
    for key, value in section.items():
        whole = kinds[key] is int
        good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not good or value < (0 if key == "gpus" else 1e-9):
            expected = "a whole number" if whole else "a number"
            expected += " of at least 0" if key == "gpus" else " above 0"
            raise ProfileError(f"{path}: {where}{key}: expected {expected}, found {value!r}")
    return dict(section)


def _check_keys(path: Path, where: str, section: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ProfileError(f"{path}: {where}{key}: unknown key; {hint}")


def _values(resources: Resources) -> dict[str, Any]:
    return {item.name: getattr(resources, item.name) for item in fields(Resources)}
