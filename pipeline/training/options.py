"""open_clip_train's options, checked without torch: experiments are read on login nodes."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from types import SimpleNamespace
from typing import Any, NoReturn

from hpc.words import nearest

# Options that are not the user's, and why.
_BY_SIMGAP = {
    name: reason
    for reason, names in {
        "the model is given apart from the options": "model",
        "simgap passes the shards": "train-data dataset-type train-data-upsampling-factors",
        "simgap trains on WebDataset shards": "csv-separator csv-img-key csv-caption-key",
        "simgap chooses the folder": "logs log-local name copy-codebase",
        "simgap keeps the last whole epoch and resumes from it": (
            "resume save-most-recent save-frequency delete-previous-checkpoint "
            "remote-sync remote-sync-frequency remote-sync-protocol"
        ),
        "simgap evaluates finished models": "zeroshot-frequency imagenet-val imagenet-v2",
        "simgap trains with torch.distributed": "horovod",
        "a traced model can't be trained": "trace",
    }.items()
    for name in names.split()
}
_AT_LEAST = {
    **dict.fromkeys(("epochs", "batch-size", "train-num-samples"), 1),
    **dict.fromkeys(("accum-freq", "log-every-n-steps"), 1),
    **dict.fromkeys(("workers", "warmup", "seed", "lr", "wd", "eps", "beta1", "beta2"), 0),
}
_OF_MODEL = (
    *("force_quick_gelu", "force_custom_text", "force_image_size", "force_context_length"),
    *("image_mean", "image_std", "image_interpolation", "image_resize_mode"),
)
_SCHEDULERS = ("cosine", "const", "const-cooldown")
_TRACKERS = ("tensorboard", "wandb")
_ALL = "all"


class _Parser(argparse.ArgumentParser):
    """open_clip_train's parser, got hold of: it is built within `parse_args`."""

    def parse_args(self, *_: Any) -> NoReturn:  # type: ignore[override]
        raise _Built(self)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument --"))


class _Built(Exception):
    """Carries the parser out of open_clip_train."""


@cache
def _known_options() -> tuple[_Parser, dict[str, argparse.Action]]:
    """The parser, and the action of each option name (without the dashes)."""
    from open_clip_train import params  # imports no torch

    stand_in = SimpleNamespace(ArgumentParser=_Parser, Action=argparse.Action)
    with replaced(params, "argparse", stand_in):
        try:
            params.parse_args([])
        except _Built as built:
            parser: _Parser = built.args[0]
    options = {
        string.removeprefix("--"): action
        for string, action in parser._option_string_actions.items()
        if string.startswith("--") and string != "--help"
    }
    return parser, options


def check_options(options: Mapping[str, object]) -> None:
    """Check training options, by open_clip_train's own names and types; imports no torch.

    A flag takes true or false, an option of several values a list, `aug-cfg` a mapping; null
    leaves the default.

    Raises:
        ValueError: for an unknown name, with the nearest known one, an option that simgap sets
            itself, and a value that open_clip_train does not take.
    """
    parse(options)


def parse(options: Mapping[str, object]) -> argparse.Namespace:
    """Check options; return all of open_clip_train's, by attribute name and with defaults."""
    parser, _ = _known_options()
    for name in options:
        _check_name(name)
    values, rest = parser.parse_known_args(arguments(options))
    if rest:
        raise ValueError(f"open_clip_train does not understand {rest[0]!r}")
    for name, least in _AT_LEAST.items():
        value = getattr(values, name.replace("-", "_"))
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{name}: {value} is too small or no number, expected {least} or more")
    if values.lr_scheduler not in _SCHEDULERS:
        raise ValueError(
            f"lr-scheduler: unknown {values.lr_scheduler!r}, expected one of {_SCHEDULERS}"
        )
    if values.lr_scheduler == "const-cooldown" and values.epochs_cooldown is None:
        raise ValueError("lr-scheduler: const-cooldown needs the option epochs-cooldown")
    trackers_in(values.report_to)
    return values


def trackers_in(report_to: str) -> list[str]:
    """The trackers that `report-to` names; each is also the name of the package that it needs.

    Raises:
        ValueError: a name is none of tensorboard, wandb, all; open_clip_train would pass over it.
    """
    named = [name.strip() for name in report_to.split(",") if name.strip()]
    for name in named:
        if name not in (*_TRACKERS, _ALL):
            raise ValueError(f"report-to: unknown {name!r}; {nearest(name, [*_TRACKERS, _ALL])}")
    return list(_TRACKERS) if _ALL in named else named


def model_arguments(options: Mapping[str, object]) -> dict[str, Any]:
    """What of the options changes the model, or how images and captions reach it.

    A trained model is loaded with these, or it would be another one: as open_clip_train makes it,
    without what acts in training only (force-patch-dropout, aug-cfg, locked towers, ...).

    Returns:
        Hashable arguments of open_clip.create_model_from_pretrained.

    Raises:
        ValueError: as `parse`.
    """
    values = parse(options)
    found = {name: getattr(values, name) for name in _OF_MODEL if getattr(values, name)}
    made = {name: tuple(one) if isinstance(one, list) else one for name, one in found.items()}
    size = made.get("force_image_size")
    if size and len(size) == 1:
        made["force_image_size"] = size[0]
    if values.siglip:
        made |= {"init_logit_scale": math.log(10), "init_logit_bias": -10}
    return made


def _check_name(name: object) -> None:
    known = _known_options()[1]
    if name in _BY_SIMGAP:
        raise ValueError(f"{name}: not to be set here: {_BY_SIMGAP[str(name)]}")
    if name not in known:
        free = [one for one in known if one not in _BY_SIMGAP]
        near = get_close_matches(str(name).lstrip("-").replace("_", "-"), free, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name!r} is no option of open_clip_train{hint}")


def arguments(options: Mapping[str, object]) -> list[str]:
    """Write options as command-line arguments."""
    known = _known_options()[1]
    words: list[str] = []
    for name, value in options.items():
        action = known[name]
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise ValueError(f"{name}: a flag, expected true or false, got {value!r}")
            words += [f"--{name}"] if value else []
        elif value is not None:
            words += _argument(name, value, action.nargs)
    return words


def _argument(name: str, value: object, nargs: int | str | None) -> list[str]:
    if nargs == "*":  # key=value pairs
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}: expected a mapping, got {value!r}")
        return [f"--{name}", *(f"{key}={one}" for key, one in value.items())]
    if isinstance(value, list | tuple) and nargs is not None:
        return [f"--{name}", *map(str, value)]
    if isinstance(value, bool | list | tuple | Mapping):
        raise ValueError(f"{name}: expected one value, got {value!r}")
    return [f"--{name}={value}"]


@contextmanager
def replaced(module: Any, name: str, value: object) -> Iterator[None]:
    """Exchange an attribute of a module for a while."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
