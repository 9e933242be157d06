"""Experiment YAML -> frozen models, checked at load.

Everything that can be known before a job runs is an error here: an unknown key, a wrong type, a
path that does not exist, a split that names an unknown test set. All errors are listed at once,
each with its line, its YAML path and the nearest valid name. Relative paths are relative to the
folder in which the command runs.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from pipeline.layout import POOL, REFERENCE

YamlPath = tuple[str | int, ...]

NAME = r"^[^\W_][\w.+-]*$"
_FILES = (".pt", ".pth", ".bin", ".safetensors", ".json")


class ExperimentError(ValueError):
    """An experiment can't be used; the message lists every fault with its YAML path."""


class Section(BaseModel):
    """A part of the experiment: unknown keys are refused, values can't be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))


def looks_like_file(value: str) -> bool:
    """Whether a model or `pretrained` value means a file and not one of open_clip's names."""
    return os.sep in value or value.endswith(_FILES)


def _absolute_if_file(value: str) -> str:
    return str(_absolute(Path(value))) if looks_like_file(value) else value


def _absolute_patterns(value: str | list[str]) -> str | list[str]:
    """Patterns below the current folder, whose own brackets and braces mean themselves."""
    if not isinstance(value, str):
        return [str(_absolute_patterns(item)) for item in value]
    here = re.sub(r"([{},\\])", r"\\\1", glob.escape(str(Path.cwd())))
    return value if os.path.isabs(value) else f"{here}/{os.path.normpath(value)}"


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
NameOrFile = Annotated[str, AfterValidator(_absolute_if_file)]
Name = Annotated[str, Field(pattern=NAME)]
Positive = Annotated[int, Field(gt=0, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Pool(Section):
    """The image-text pool: WebDataset tars in img2dataset's layout."""

    shards: Annotated[str | list[str], AfterValidator(_absolute_patterns)]
    """Paths, globs (`pool/*.tar`) or ranges (`pool/{00000..00011}.tar`)."""
    shards_per_file: Positive = 1
    """Shards that share an embeddings file; one file is one task."""
    max_bad_fraction: Fraction = 0.1
    """A task fails if more than this share of its samples can't be used."""

    @property
    def paths(self) -> list[Path]:
        """Every tar, in natural order; looked for once, because there may be tens of thousands.

        Raises:
            FileNotFoundError: a pattern matches nothing.
            ValueError: the braces of a pattern are not balanced.
        """
        from pipeline.data.tars import expand_shards

        patterns = str(self.shards)
        if patterns not in self.listings:
            self.listings[patterns] = expand_shards(self.shards)
        return self.listings[patterns]

    @cached_property
    def listings(self) -> dict[str, list[Path]]:
        """What was found, by patterns; a copy of a pool may have other patterns."""
        return {}


class ImageSet(Section):
    """Labelled images: a folder with one sub-folder a class."""

    images: AbsolutePath
    classes: AbsolutePath | None = None
    """Class list, `folder<TAB>name` a line; without it every sub-folder is a class."""
    max_bad_fraction: Fraction = 0.0
    """A task fails if more than this share of its images can't be used."""


class ReferenceSet(ImageSet):
    """The labelled training set that sets the thresholds, such as ImageNet-Train."""

    files: Positive = 1
    """Embeddings files to spread its classes over; one file is one task."""


class TestSet(ImageSet):
    """A benchmark."""

    __test__ = False
    threshold: Annotated[float, Field(ge=-1, le=1, strict=True)] | Literal["reference"] = (
        "reference"
    )
    """tau: the similarity to each image's nearest neighbour in the reference, or one number."""


class Embedder(Section):
    """The fixed CLIP model whose image embeddings define similarity."""

    model: NameOrFile
    """An open_clip model name, or the path of an open_clip model config (.json)."""
    pretrained: NameOrFile
    """An open_clip pretrained tag, or the path of a checkpoint."""
    precision: str = "fp32"
    batch_size: Positive = 256
    workers: Annotated[int, Field(ge=0)] = 1
    """Processes that decode images while the model runs."""
    device: Device = "auto"


class Similarity(Section):
    """Nearest-neighbour search."""

    neighbours: Positive = 10
    """Nearest images kept for each test image (K)."""
    backend: str = "auto"
    device: Device = "auto"


class RandomLike(Section):
    """A uniform sample of the pool, as large as another split."""

    like: str
    seed: Seed = 0


class Split(Section):
    """Which pool images a model is trained on; exactly one of the keys."""

    all: Literal[True] | None = None
    """Every usable image."""
    near: Annotated[list[str], Field(min_length=1)] | None = None
    """Every image that is near to no image of these test sets."""
    random: RandomLike | None = None

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"all": True} if value == "all" else value

    @model_validator(mode="after")
    def _exactly_one(self) -> Split:
        if sum(value is not None for value in (self.all, self.near, self.random)) != 1:
            raise ValueError("expected exactly one of: all, near, random")
        return self


class Training(Section):
    """CLIP training by open_clip_train, once for each split and seed."""

    model: NameOrFile
    """An open_clip model name, or the path of an open_clip model config (.json)."""
    epochs: Positive
    samples_per_epoch: Positive | None = None
    """Samples seen in an epoch; the size of the split if not given."""
    batch_size: Positive
    """Per process (GPU)."""
    workers: Positive = 1
    """Data loading processes per GPU."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    splits: list[str] | None = None
    """Splits to train on; all of them if not given."""
    samples_per_shard: Positive = 10_000
    """Samples in each tar written for a split."""
    options: dict[str, Any] = {}
    """Anything else that open_clip_train takes, by its own names."""


class Evaluation(Section):
    """Zero-shot classification."""

    templates: Literal["openai", "simple"] | Annotated[list[str], Field(min_length=1)] = "openai"
    """Captions with `{}` for the class name; or one of open_clip's lists."""
    precision: str = "fp32"
    batch_size: Positive = 256
    workers: Annotated[int, Field(ge=0)] = 1
    device: Device = "auto"


class Report(Section):
    """The page at the end."""

    title: str | None = None
    gallery: Annotated[int, Field(ge=0)] = 8
    """Test images shown for each test set beside their nearest neighbours."""


class Experiment(Section):
    """A whole study."""

    name: Name
    runs: AbsolutePath = Path("runs")
    """Folder for runs; this study's is `runs/name`."""
    get_data: str = ""
    """How to get the data, shown when a path does not exist."""
    pool: Pool
    reference: ReferenceSet
    tests: Annotated[dict[Name, TestSet], Field(min_length=1)]
    embedder: Embedder
    similarity: Similarity = Similarity()
    splits: Annotated[dict[Name, Split], Field(min_length=1)]
    training: Training
    evaluation: Evaluation = Evaluation()
    report: Report = Report()

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.runs / self.name

    @property
    def trained_splits(self) -> list[str]:
        """The splits to train on, in order."""
        return list(self.splits) if self.training.splits is None else list(self.training.splits)


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


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read and check an experiment.

    Args:
        path: the YAML file.
        overrides: `section.key=value`; the value is YAML.

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
        faults = list(_faults(experiment))
    if faults:
        listed = "\n".join(f"  {_place(tree, where)}{what}" for where, what in faults)
        raise ExperimentError(f"{path} can't be used:\n{listed}")
    return experiment


def from_values(values: Mapping[str, Any]) -> Experiment:
    """The experiment from its resolved values, as a plan carries them."""
    return Experiment.model_validate(values)


def to_values(experiment: Experiment) -> dict[str, Any]:
    """The resolved experiment as JSON values."""
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


Fault = tuple[YamlPath, str]


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
        return where, f"unknown key; {_nearest(str(where[-1]), _keys_at(where[:-1]))}"
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
    """The section class inside an annotation such as dict[str, TestSet] or RandomLike | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [_section_in(item) for item in getattr(annotation, "__args__", ())]
    return next((item for item in inner if item is not None), None)


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


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


def _faults(experiment: Experiment) -> Iterator[Fault]:
    """What is wrong in an experiment whose keys and types are right."""
    yield from _name_faults(experiment)
    for name in experiment.splits:
        yield from _split_faults(experiment, name)
    yield from _training_faults(experiment)
    yield from _template_faults(experiment)
    yield from _choice_faults(experiment)
    missing = list(_path_faults(experiment))
    yield from missing
    yield from _model_faults(experiment)
    if missing and experiment.get_data:
        yield (), f"to get the data: {experiment.get_data}"


def _name_faults(experiment: Experiment) -> Iterator[Fault]:
    for name in experiment.tests:
        if name in (POOL, REFERENCE):
            yield ("tests", name), f"{name!r} can't be the name of a test set"
    for section in ("tests", "splits"):
        names = [name.lower() for name in getattr(experiment, section)]
        for name in {name for name in names if names.count(name) > 1}:
            yield (section, name), "two names differ only in upper and lower case"


def _split_faults(experiment: Experiment, name: str) -> Iterator[Fault]:
    split = experiment.splits[name]
    for index, test in enumerate(split.near or []):
        if test not in experiment.tests:
            where: YamlPath = ("splits", name, "near", index)
            yield where, f"unknown test set {test!r}; {_nearest(test, list(experiment.tests))}"
    if split.random:
        where = ("splits", name, "random", "like")
        like = split.random.like
        if like not in experiment.splits:
            yield where, f"unknown split {like!r}; {_nearest(like, list(experiment.splits))}"
        elif cycle := _cycle(experiment.splits, name):
            yield where, f"splits depend on each other: {' -> '.join(cycle)}"


def _cycle(splits: Mapping[str, Split], start: str) -> list[str] | None:
    """The names from `start` back to itself, if it depends on itself."""
    chain = [start]
    while (split := splits.get(chain[-1])) and split.random:
        if split.random.like == start:
            return [*chain, start]
        if split.random.like in chain:
            return None  # a cycle further down, reported there
        chain.append(split.random.like)
    return None


def _training_faults(experiment: Experiment) -> Iterator[Fault]:
    from pipeline.training_options import check_options

    for index, name in enumerate(experiment.training.splits or []):
        if name not in experiment.splits:
            where: YamlPath = ("training", "splits", index)
            yield where, f"unknown split {name!r}; {_nearest(name, list(experiment.splits))}"
    if len(set(experiment.training.seeds)) < len(experiment.training.seeds):
        yield ("training", "seeds"), f"a seed appears twice: {experiment.training.seeds}"
    for option in experiment.training.options:
        key = str(option).replace("-", "_")
        key = "samples_per_epoch" if key == "train_num_samples" else key
        if key in Training.model_fields or key == "seed":
            where = ("training", "options", option)
            yield where, f"give training.{'seeds' if key == 'seed' else key} instead"
    try:
        check_options(experiment.training.options)
    except ValueError as error:
        yield ("training", "options"), str(error)


def _template_faults(experiment: Experiment) -> Iterator[Fault]:
    templates = experiment.evaluation.templates
    for index, template in enumerate(templates if isinstance(templates, list) else []):
        if template.count("{}") != 1 or not _is_format(template):
            where = ("evaluation", "templates", index)
            yield where, f"expected exactly one {{}} for the class name, found {template!r}"


def _is_format(template: str) -> bool:
    try:
        template.format("name")
    except (ValueError, LookupError):
        return False
    return True


def _choice_faults(experiment: Experiment) -> Iterator[Fault]:
    import kernels
    from pipeline.models import PRECISIONS

    backends = ["auto", *kernels.BACKENDS]
    for section, key, known in (
        ("embedder", "precision", PRECISIONS),
        ("evaluation", "precision", PRECISIONS),
        ("similarity", "backend", backends),
    ):
        value = getattr(getattr(experiment, section), key)
        if value not in known:
            yield (section, key), f"unknown {key} {value!r}; {_nearest(value, list(known))}"


def _path_faults(experiment: Experiment) -> Iterator[Fault]:
    try:
        _ = experiment.pool.paths
    except (FileNotFoundError, ValueError) as error:
        yield ("pool", "shards"), str(error)
    sets: dict[YamlPath, ImageSet] = {("reference",): experiment.reference}
    sets |= {("tests", name): test for name, test in experiment.tests.items()}
    for where, images in sets.items():
        if not images.images.is_dir():
            yield (*where, "images"), f"no such folder: {images.images}"
        if images.classes is not None and not images.classes.is_file():
            yield (*where, "classes"), f"no such file: {images.classes}"
    pretrained = experiment.embedder.pretrained
    if looks_like_file(pretrained) and not Path(pretrained).is_file():
        yield ("embedder", "pretrained"), f"no such file: {pretrained}"


def _model_faults(experiment: Experiment) -> Iterator[Fault]:
    from pipeline.models import check_model

    for section in ("embedder", "training"):
        try:
            check_model(getattr(experiment, section).model)
        except (ValueError, OSError) as error:
            yield (section, "model"), str(error)
