"""What the command lines of all commands about a study have in common."""

from __future__ import annotations

import argparse


def study_parser(
    command: str,
    description: str,
    epilog: str,
    *,
    positional: str = "study",
    nargs: str | None = None,
    also: tuple[str, str] | None = None,
) -> argparse.ArgumentParser:
    """A parser with the study and the overrides.

    Args:
        command: the subcommand of simgap.
        description: what it does.
        epilog: examples.
        positional: what the study is called; `experiment` where a run's folder will not do.
        nargs: `?` if it may be left out.
        also: another word that has to follow, and its meaning.
    """
    made = argparse.ArgumentParser(
        prog=f"simgap {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    meaning = "experiment YAML, or the name of a shipped one (mini)"
    if positional == "study":
        meaning += ", or a run's folder"
    made.add_argument(positional, nargs=nargs, help=meaning)
    if also:
        made.add_argument(also[0], help=also[1])
    made.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="change a setting; YAML values; give status, logs and cancel the same as submit",
    )
    return made
