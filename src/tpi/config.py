"""The settings of a process, frozen and checked once; and how people write sizes and shares.

``cli`` makes these from arguments and environment; components get the part that they need. No I/O.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from tpi.errors import UsageError

DEFAULT_PORT = 7600
DEFAULT_CONTEXT = 2048
AUTO: Final = "auto"
ContextSize: TypeAlias = int | Literal["auto"] | None
"""Cells of all sequences together; ``AUTO``: as many as memory allows; None: the default."""
DEFAULT_CHUNK_TOKENS = 128
MAX_RANKS = 64
MAX_PARALLEL = 255
"""Sequences that a pass can have: what a byte counts."""
DEFAULT_PARALLEL = 4
DEFAULT_API_PORT = 8080

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*$", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str, name: str) -> int:
    """Bytes in ``2GiB``, ``160MiB``, ``3GB`` or ``500000``; GiB is 2^30, GB is 10^9.

    Raises:
        UsageError: anything else; ``name`` says which argument it is.
    """
    match = _SIZE.match(text)
    if match is None:
        raise UsageError(f"{name} {text!r} is not a size: write it as 2GiB, 160MiB or 3GB")
    number, letter, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[letter.lower()])


def parse_shares(text: str) -> tuple[float, ...]:
    """Ratios in ``3,2,2,1``, one per rank.

    Raises:
        UsageError: not numbers >= 0, none above 0, or too many.
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if not shares or not all(0 <= share < float("inf") for share in shares) or sum(shares) <= 0:
        raise UsageError(f"the shares {text!r}: write one number >= 0 per device, one above 0 at least, as in 3,2,2,1")
    if len(shares) > MAX_RANKS:
        raise UsageError(f"there are {len(shares)} shares, the limit is {MAX_RANKS} devices")
    return shares


@dataclass(frozen=True)
class Resources:
    """What one rank may use. ``memory_bytes`` limits the whole process, ``window_bytes`` the resident weights alone;
    ``repack`` allows weights on disk in the kernels' own order where that computes faster."""

    memory_bytes: int | None = None
    window_bytes: int | None = None
    n_threads: int = 1
    repack: bool = True


@dataclass(frozen=True)
class Folders:
    """Where a device keeps things: keys and certificates; shards of models; what may be lost at any time."""

    state: Path
    shards: Path
    cache: Path


@dataclass(frozen=True)
class MasterSettings:
    """What the master needs. ``shares`` None means in proportion to memory; ``port`` 0 means any free one;
    ``context`` None means ``DEFAULT_CONTEXT``, or what the model was trained for if that is less, ``AUTO`` what
    memory allows; ``n_parallel`` answers at most are under way at once, and share its cells, while none has more tokens
    than the model was trained for; ``pins``: what chats begin with is kept beside them, for good; ``chunk_tokens`` None
    means ``DEFAULT_CHUNK_TOKENS`` per pass, or more where disks are slow. ``wire`` is how partial sums travel;
    ``quant`` is what matrices are quantised to as slices are cut, None: nothing; ``layout`` says which devices hold
    which layers; ``allreduce`` names one, None: the one that is measured to be fastest. With ``is_reproducible`` an
    answer's bits do not depend on who else is answered, and sums travel in 32 bits. A worker that tells no progress for
    ``prepare_limit_s`` while it prepares is given up. ``trace``: a file for what every rank did when. ``slot_folder``:
    where beginnings of texts are saved when a caller asks for that; None: nowhere."""

    model: Path
    folders: Folders
    resources: Resources = field(default_factory=Resources)
    n_workers: int = 0
    wait_s: float | None = None
    shares: tuple[float, ...] | None = None
    context: ContextSize = None
    n_parallel: int = 1
    pins: bool = False
    chunk_tokens: int | None = None
    wire: str = "f16"
    layout: str | None = None
    allreduce: str | None = None
    kv_type: str = "F16"
    quant: str | None = None
    is_reproducible: bool = False
    bind: str = "0.0.0.0"
    port: int = DEFAULT_PORT
    name: str = "master"
    prepare_limit_s: float = 120.0
    trace: Path | None = None
    slot_folder: Path | None = None


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs. ``key`` is the join key's text; ``master`` overrides the addresses in it; ``port`` is where
    other workers can call it, 0 any free one."""

    key: str = field(repr=False)
    folders: Folders
    resources: Resources = field(default_factory=Resources)
    master: str | None = None
    shard: Path | None = None
    model: Path | None = None
    name: str = "worker"
    port: int = 0
