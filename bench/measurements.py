"""What can be measured, by name. Modules are loaded when they are asked for: they differ in what they need."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.report import Report


@dataclass(frozen=True)
class Measurement:
    """A module whose ``function`` takes arguments and yields reports, and what it does."""

    module: str
    summary: str
    function: str = "main"

    def measure(self, arguments: Sequence[str]) -> Iterator[Report]:
        """Loads the module and runs it."""
        run: Callable[[Sequence[str]], Iterator[Report]] = getattr(importlib.import_module(self.module), self.function)
        return run(arguments)


NAMES = {
    "models": Measurement("bench.models", "write a model of true shape with random weights, whole or one rank of it"),
    "testbed": Measurement("bench.testbed.check", "emulate devices on this machine, and check their links and limits"),
    "window": Measurement("bench.window", "one rank: streaming rate against the disk's, and the peak of memory"),
    "cutting": Measurement(
        "bench.cutting", "how fast slices are cut, as they are and quantised, and the peak of memory"
    ),
    "decode": Measurement("bench.versus", "one device, token by token, against llama.cpp", "decode"),
    "prefill": Measurement("bench.versus", "one device, a prompt at once, against llama.cpp", "prefill"),
    "many": Measurement("bench.versus", "one device, several sequences at once, against llama.cpp", "many"),
    "turns": Measurement("bench.turns", "one device, how soon a second turn begins, against the first", "turns"),
    "readers": Measurement("bench.turns", "one device, four answers while a long prompt is read", "readers"),
    "servers": Measurement("bench.servers", "one device that serves several callers, against llama.cpp's server"),
    "thrash": Measurement("bench.thrash", "one device whose memory is less than the model, against llama.cpp"),
    "allreduce": Measurement("bench.allreduce", "sums alone on emulated devices: every algorithm against its bound"),
    "cluster": Measurement("bench.cluster", "a model on 1, 2, 4, … emulated devices with slow processors"),
    "crowds": Measurement("bench.crowds", "several callers at once on 1, 4, … emulated devices"),
    "api": Measurement("bench.overhead", "what the API costs a master beside the scheduler: processor time and memory"),
    "growth": Measurement("bench.growth", "what processes grow by while they work: constants of the memory plan"),
    "rank": Measurement("bench.rank", "a real master and one real worker of a large model: memory and loading"),
    "paper": Measurement("bench.paper", "the table of the TPI-LLM paper, row by row"),
    "reach": Measurement("bench.reach", "all that is to be reached on one machine, each figure with its limit"),
    "netplots": Measurement("bench.netplots", "pictures: sums against latency, tokens per second against devices"),
    "plots": Measurement("bench.plots", "pictures: memory of a rank over time, time per token against memory"),
}
