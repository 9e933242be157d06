"""A site's YAML from slurm_templates/ -> what the jobs of each stage ask for, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from hpc.stage import Resources
from hpc.words import nearest

CLUSTERS = ("slurm", "local", "inline")
RUNTIMES = ("apptainer", "singularity", "pyxis")
_SECTIONS = ("cluster", "defaults", "stages", "environment", "speeds")


class ProfileError(ValueError):
    """A site profile can't be used; the message says where and what was expected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """An image that jobs run in."""

    runtime: str
    """`apptainer`, `singularity` or `pyxis`."""
    image: str
    arguments: tuple[str, ...] = ()
    """More words for `apptainer exec`, or for `srun` with pyxis (`--container-mounts=...`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmOptions:
    """What a stage's jobs tell Slurm besides their resources; nothing is added to it."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    array_parallelism: int | None = None
    """How many jobs of the stage may run at once; as many as the queue lets if None."""
    tasks_per_job: int = 1
    """Tasks that share a job, one after the other; more if an array would be too large."""
    max_requeues: int = 3
    """How often a job that was preempted, timed out or lost its node goes on before it fails."""
    signal_seconds: int = 120
    """How long before its time limit a job is told to stop and go back into the queue."""
    setup: tuple[str, ...] = ()
    """Shell lines before the program starts: `module load ...`, `source activate ...`."""
    python: str | None = None
    """Command that starts Python; that of the submission if None, `python3` in a container."""
    container: Container | None = None
    sbatch: Mapping[str, str | bool] = field(default_factory=dict)
    """Any other option of sbatch by its long name: `{exclude: node7, exclusive: true}`."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How the jobs of each stage run at a site."""

    name: str
    cluster: str = "local"
    """Where jobs run unless the command says otherwise: slurm, local or inline."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Resources` and `SlurmOptions`, and `environment`, for all stages."""
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Per stage: what differs from the defaults."""
    speeds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """How fast the site is, by section: numbers, and `source`, where they are from."""

    def resources(self, stage: str) -> Resources:
        """The resources of a stage's jobs."""
        return Resources(**self._fields(stage, Resources))

    def slurm(self, stage: str) -> SlurmOptions:
        """What a stage's jobs tell Slurm besides their resources."""
        return SlurmOptions(**self._fields(stage, SlurmOptions))

    def environment(self, stage: str) -> dict[str, str]:
        """Environment variables of a stage's jobs."""
        everywhere = self.defaults.get("environment", {})
        return {**everywhere, **self.stages.get(stage, {}).get("environment", {})}

    def _fields(self, stage: str, kind: type) -> dict[str, Any]:
        chosen = {**self.defaults, **self.stages.get(stage, {})}
        return {one.name: chosen[one.name] for one in fields(kind) if one.name in chosen}


def load_profile(
    path: Path, stages: Sequence[str], speeds: Mapping[str, Sequence[str]] | None = None
) -> Profile:
    """Read a profile.

    Args:
        path: the YAML file.
        stages: the names of all stages, to check those in the file.
        speeds: the keys of each section of `speeds`.

    Raises:
        ProfileError: an unknown key or stage, or a value of the wrong type.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ProfileError(f"{path}: not valid YAML: {error}") from error
    reader = _Reader(path)
    reader.mapping("", values)
    reader.known_keys("", values, _SECTIONS)
    cluster = values.get("cluster", "local")
    if cluster not in CLUSTERS:
        raise ProfileError(f"{path}: cluster: expected one of {CLUSTERS}, found {cluster!r}")
    defaults = reader.section("defaults", values.get("defaults"))
    if "environment" in values:
        defaults["environment"] = reader.environment("environment", values["environment"])
    sections = reader.mapping("stages", values.get("stages") or {})
    reader.known_keys("stages.", sections, stages)
    profile = Profile(
        name=path.stem,
        cluster=cluster,
        defaults=defaults,
        stages={name: reader.section(f"stages.{name}", one) for name, one in sections.items()},
        speeds=reader.speeds(values.get("speeds") or {}, speeds or {}),
    )
    for stage in stages:
        reader.sensible(stage, profile)
    return profile


_COUNTS = ("nodes", "processes", "cpus", "minutes", "array_parallelism", "tasks_per_job")
_WORDS = ("partition", "account", "qos", "constraint", "python")
_SOURCE = "source"
_KEYS = [*(one.name for kind in (Resources, SlurmOptions) for one in fields(kind)), "environment"]


@dataclass(frozen=True)
class _Reader:
    """Reads the parts of one file, and says where it does not understand."""

    path: Path

    def section(self, where: str, section: Any) -> dict[str, Any]:
        """The `defaults`, or a stage."""
        section = self.mapping(where, section or {})
        self.known_keys(f"{where}.", section, _KEYS)
        return {key: self._value(f"{where}.{key}", key, one) for key, one in section.items()}

    def speeds(
        self, sections: Any, known: Mapping[str, Sequence[str]]
    ) -> dict[str, dict[str, Any]]:
        """How fast the site is."""
        self.known_keys("speeds.", self.mapping("speeds", sections), list(known))
        return {
            name: self._speed(f"speeds.{name}", section, [*known[name], _SOURCE])
            for name, section in sections.items()
        }

    def _speed(self, where: str, section: Any, known: Sequence[str]) -> dict[str, Any]:
        self.known_keys(f"{where}.", self.mapping(where, section), known)
        return {
            key: self._word(f"{where}.{key}", value)
            if key == _SOURCE
            else self._number(f"{where}.{key}", value, 1e-9, whole=False)
            for key, value in section.items()
        }

    def _value(self, where: str, key: str, value: Any) -> Any:
        if key in _COUNTS:
            return self._number(where, value, 1)
        if key in ("gpus", "max_requeues", "signal_seconds"):
            return self._number(where, value, 0)
        if key == "memory_gb":
            return self._number(where, value, 1e-3, whole=False)
        if key in _WORDS:
            return self._word(where, value)
        if key == "setup":
            return self._words(where, value)
        if key == "environment":
            return self.environment(where, value)
        if key == "container":
            return self._container(where, value)
        # what is left: sbatch
        options = self.mapping(where, value)
        return {self._word(where, name).lstrip("-"): _plain(one) for name, one in options.items()}

    def environment(self, where: str, value: Any) -> dict[str, str]:
        """Variables and their values."""
        found = self.mapping(where, value or {})
        for name, one in found.items():
            if not isinstance(one, str | int | float) or isinstance(one, bool):
                raise self._wrong(
                    f"{where}.{name}", "text or a number (quote on, off, yes, no)", one
                )
        return {str(name): str(one) for name, one in found.items()}

    def mapping(self, where: str, value: Any) -> dict[Any, Any]:
        """A mapping, as it is."""
        if not isinstance(value, dict):
            raise self._wrong(where, "a mapping", value)
        return value

    def known_keys(self, where: str, section: Mapping[Any, Any], known: Sequence[str]) -> None:
        """Refuse a key that has no meaning here."""
        for key in section:
            if key not in known:
                hint = nearest(str(key), known)
                raise ProfileError(f"{self.path}: {where}{key}: unknown key; {hint}")

    def sensible(self, stage: str, profile: Profile) -> None:
        """Refuse values that contradict each other."""
        asked, slurm = profile.resources(stage), profile.slurm(stage)
        if slurm.signal_seconds >= 60 * asked.minutes:
            raise ProfileError(
                f"{self.path}: {stage}: signal_seconds is {slurm.signal_seconds}, but the time "
                f"limit is {asked.minutes} minutes: expected less than {60 * asked.minutes}"
            )
        if asked.gpus % asked.processes and asked.gpus:
            raise ProfileError(
                f"{self.path}: {stage}: {asked.gpus} GPUs can't be shared by {asked.processes} "
                "processes on each node: expected as many GPUs for each process"
            )

    def _number(self, where: str, value: Any, least: float, whole: bool = True) -> Any:
        good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not good or value < least:
            expected = f"a {'whole ' if whole else ''}number of at least {least:g}"
            raise self._wrong(where, expected, value)
        return value

    def _word(self, where: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or "\n" in value:
            raise self._wrong(where, "one line of text", value)
        return value

    def _words(self, where: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self._wrong(where, "a list of lines", value)
        return tuple(self._word(f"{where}[{at}]", one) for at, one in enumerate(value))

    def _container(self, where: str, value: Any) -> Container | None:
        if value is None:
            return None
        self.known_keys(
            f"{where}.", self.mapping(where, value), [one.name for one in fields(Container)]
        )
        runtime = value.get("runtime")
        if runtime not in RUNTIMES:
            raise self._wrong(f"{where}.runtime", f"one of {RUNTIMES}", runtime)
        return Container(
            runtime=runtime,
            image=self._word(f"{where}.image", value.get("image")),
            arguments=self._words(f"{where}.arguments", value.get("arguments", [])),
        )

    def _wrong(self, where: str, expected: str, found: Any) -> ProfileError:
        at = f"{where}: " if where else ""
        return ProfileError(f"{self.path}: {at}expected {expected}, found {found!r}")


def _plain(value: Any) -> str | bool:
    """An option without a value is true; everything else is text."""
    return value if value is True else str(value)
