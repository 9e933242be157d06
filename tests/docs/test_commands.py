"""What the documents tell people to type."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.__main__ import COMMANDS
from pipeline.layout import shipped
from tests.docs.pages import PAGES, ROOT, commands
from tests.pipeline.small import SmallStudy

SHELL = {".", "cp", "eval", "bash", "sudo", "sinfo", "pip", "cat", "diff", "img2dataset"}


def _module(words: list[str]) -> str | None:
    """The module of a Python command, and nothing for a program of the shell."""
    program = Path(words[0]).name
    if program == "simgap":
        assert len(words) > 1 and words[1] in COMMANDS, words
        return COMMANDS[words[1]][0]
    if program == "python" and words[1] == "-m":
        return words[2]
    return None


def _arguments(words: list[str]) -> list[str]:
    return words[2:] if Path(words[0]).name == "simgap" else words[3:]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_would_be_understood(page: str) -> None:
    for words in commands(page):
        if words[0] == "make":
            targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M)
            assert set(words[1:]) <= set(targets), words
        elif module := _module(words):
            assert importlib.util.find_spec(module), words
            if module.startswith(("pipeline.", "hpc.")):
                _parse(module, _arguments(words))
        else:
            program = Path(words[0]).name or words[0]
            assert program in SHELL | {"pre-commit"}, words


def _parse(module: str, arguments: list[str]) -> argparse.Namespace:
    parser = importlib.import_module(module).parser()
    try:
        return parser.parse_intermixed_args(arguments)
    except SystemExit as end:
        pytest.fail(f"{module} does not understand {arguments}: {end}")
    except TypeError:  # subcommands can't be intermixed
        return parser.parse_args(arguments)


@pytest.fixture(scope="module")
def study(finished_study: SmallStudy, tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    """A small study that has run, which stands for every study of the documents."""
    folder = tmp_path_factory.mktemp("documents") / "study"
    shutil.copytree(finished_study.folder, folder, symlinks=True)
    shutil.copy(shipped("slurm_templates", "local"), folder / "my-site.yaml")
    return SmallStudy(folder)


STAND_INS = {
    "mini": "small.yaml",
    "experiments/mini.yaml": "small.yaml",
    "my.yaml": "small.yaml",
    "runs/my": "runs/small",
    "runs/mini": "runs/small",
    "splits.r-pruned={near: [r]}": "splits.r-pruned={near: [photo]}",
}
# Drawing the world takes minutes, --watch never ends, a checkpoint is not there, the others need a
# Slurm that answers: each of these has its own tests, on the real thing.
ELSEWHERE = {"world", "evaluate", "cancel", "--watch", "--follow", "--sbatch", "minislurm"}
TYPED = dict.fromkeys(
    tuple(STAND_INS.get(word, word) for word in words[1:])
    for page in PAGES
    for words in commands(page)
    if words[0] == "simgap" and not ELSEWHERE & set(words)
)


@pytest.mark.parametrize("words", TYPED, ids=" ".join)
def test_a_command_of_the_documents_works(study: SmallStudy, words: tuple[str, ...]) -> None:
    done = study.simgap(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(study.run / "exports", ignore_errors=True)  # none is replaced unasked


def test_a_wrong_command_would_be_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(pytest.fail.Exception, match="does not understand"):
        _parse("pipeline.status", ["my.yaml", "--wacth"])
    assert "--wacth" in capsys.readouterr().err
    assert sys.modules["pipeline.status"]
