"""simgap: the commands as subcommands (`simgap submit ...` is `python -m pipeline.submit ...`)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from pipeline import __version__

COMMANDS = {
    "submit": ("pipeline.submit", "run a study: whatever of it is missing or stale"),
    "status": ("pipeline.status", "show how far a study is"),
    "logs": ("pipeline.logs", "tell why tasks failed, and show what they wrote"),
    "report": ("pipeline.report_so_far", "make the page of what is there so far"),
    "cancel": ("pipeline.cancel", "end the jobs of a study"),
    "evaluate": ("pipeline.evaluate", "zero-shot accuracy of any open_clip checkpoint or tag"),
    "doctor": ("pipeline.doctor", "check the site, its profile and the study before a run"),
    "export": ("pipeline.export", "write a split for other programs: DataComp, Parquet, lists"),
    "world": ("pipeline.data.world.__main__", "draw the miniature world, to try everything on"),
}


def usage() -> str:
    """The help text."""
    commands = "\n".join(f"  {name:<8} {words}" for name, (_, words) in COMMANDS.items())
    return (
        "usage: simgap COMMAND ...\n\n"
        "How much of CLIP's accuracy comes from training images that resemble the test images?\n\n"
        f"commands:\n{commands}\n\n"
        "simgap COMMAND --help tells more; simgap --version the version.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"simgap {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"simgap: unknown command {arguments[0]!r}\n\n{usage()}", end="", file=sys.stderr)
        return 2
    command = importlib.import_module(COMMANDS[arguments[0]][0])
    return int(command.main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
