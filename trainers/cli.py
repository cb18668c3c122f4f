"""The command line: `divax COMMAND ...`; each command's module is imported only when called."""

import difflib
import importlib
import sys

# name -> (module with `main(arguments) -> exit code`, one line of help)
COMMANDS = {
    "kd": ("divax.trainers.kd_command", "distil a small language model under any divergence"),
    "zoo": ("divax.trainers.zoo_command", "list the divergences; draw them with --plot FILE"),
    "fdpo": ("divax.trainers.fdpo_command", "align it with preferences under any divergence"),
    "pg": ("divax.trainers.pg_command", "improve it by rewards, regularised by any divergence"),
    "cache-teacher": (
        "divax.trainers.cache_teacher_command",
        "keep a teacher's likeliest tokens on disk, to distil from without it",
    ),
    "bench": (
        "divax.benchmarks.bench_command",
        "measure speed and memory against naive forms and other libraries",
    ),
    "check": ("divax.trainers.check_command", "prove a divergence or an objective of yours right"),
}


def usage() -> str:
    """The help that a bare `divax` prints.

    Example:
        >>> usage().splitlines()[0]
        'usage: divax COMMAND [OPTIONS]'
    """
    width = max(map(len, COMMANDS)) + 2
    rows = [f"  {name:<{width}}{text}" for name, (_, text) in COMMANDS.items()]
    lines = ["usage: divax COMMAND [OPTIONS]", ""]
    lines += ["Divergences for JAX, and trainers driven by them.", "", "commands:", *rows, ""]
    lines += ["`divax COMMAND --help` explains a command; `divax --version` prints the version."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, or 2 with one line on stderr (1: a check failed).

    Args:
        arguments: what follows `divax`; `None` reads the process's own.

    Example:
        >>> main(["--version"])
        divax 0.1.0
        0
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage() + "\n")
        return 0
    if arguments[0] == "--version":
        from divax import __version__

        sys.stdout.write(f"divax {__version__}\n")
        return 0
    if arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(COMMANDS)}"
        sys.stderr.write(f"divax: error: no command {arguments[0]!r}; {hint}\n")
        return 2
    module = importlib.import_module(COMMANDS[arguments[0]][0])
    return module.main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
