"""What sections of an experiment are made of: their base class and the types of their values.

Relative paths are relative to the folder in which the command runs.
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

NAME = r"^[^\W_][\w.+-]*$"
_FILES = (".pt", ".pth", ".bin", ".safetensors", ".json")


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


def absolute_patterns(value: str | list[str]) -> str | list[str]:
    """Patterns below the current folder, whose own brackets and braces mean themselves."""
    if not isinstance(value, str):
        return [str(absolute_patterns(item)) for item in value]
    here = re.sub(r"([{},\\])", r"\\\1", glob.escape(str(Path.cwd())))
    return value if os.path.isabs(value) else f"{here}/{os.path.normpath(value)}"


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
NameOrFile = Annotated[str, AfterValidator(_absolute_if_file)]
Name = Annotated[str, Field(pattern=NAME)]
Positive = Annotated[int, Field(gt=0, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
