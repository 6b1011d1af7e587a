"""``python -m bench NAME [--json] …``: runs one measurement and prints what it found.

Without ``--json`` JSON lines and a Markdown table, with it only the JSON lines. Errors are one line.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.report import Report, markdown
from tpi.errors import TpiError, UsageError


@dataclass(frozen=True)
class Measurement:
    """A module whose ``function`` takes arguments and yields reports, and what it does."""

    module: str
    summary: str
    function: str = "main"


NAMES = {
    "models": Measurement("bench.models", "write a model of true shape with random weights, whole or one rank of it"),
    "testbed": Measurement("bench.testbed.check", "emulate devices on this machine, and check their links and limits"),
    "window": Measurement("bench.window", "one rank: streaming rate against the disk's, and the peak of memory"),
    "decode": Measurement("bench.versus", "one device, token by token, against llama.cpp", "decode"),
    "prefill": Measurement("bench.versus", "one device, a prompt at once, against llama.cpp", "prefill"),
    "thrash": Measurement("bench.thrash", "one device whose memory is less than the model, against llama.cpp"),
    "cluster": Measurement("bench.cluster", "a model on 1, 2, 4, … emulated devices with slow processors"),
    "rank": Measurement("bench.rank", "a real master and one real worker of a large model: memory and loading"),
    "paper": Measurement("bench.paper", "the table of the TPI-LLM paper, row by row"),
    "reach": Measurement("bench.reach", "all that is to be reached on one machine, each figure with its limit"),
    "plots": Measurement("bench.plots", "pictures: memory of a rank over time, time per token against memory"),
}


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
    measure: Callable[[Sequence[str]], Iterator[Report]] = getattr(
        importlib.import_module(NAMES[name].module), NAMES[name].function
    )
    reports = []
    for report in measure(rest):
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
