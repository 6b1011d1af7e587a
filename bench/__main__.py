"""``python -m bench NAME [--json] …``: runs one measurement and prints what it found.

Without ``--json`` JSON lines and a Markdown table, with it only the JSON lines. Errors are one line.
"""

import sys
from collections.abc import Sequence

from bench.measurements import NAMES
from bench.report import markdown
from tpi.errors import TpiError, UsageError


def _usage() -> str:
    lines = [f"  {name:10} {entry.summary}" for name, entry in NAMES.items()]
    return "\n".join(["usage: python -m bench NAME [--json] [OPTIONS]; NAME --help shows the options", *lines])


def _run(arguments: Sequence[str]) -> None:
    name, rest = arguments[0], list(arguments[1:])
    if name not in NAMES:
        raise UsageError(f"there is no measurement {name!r}; there are {', '.join(NAMES)}")
    is_json = "--json" in rest
    if is_json:
        rest.remove("--json")
    reports = []
    for report in NAMES[name].measure(rest):
        print(report.json(), flush=True)
        reports.append(report)
    if not is_json:
        print(f"\n{markdown(reports)}")


def main(arguments: Sequence[str]) -> int:
    """Runs the measurement that the first argument names; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    try:
        _run(arguments)
    except TpiError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
