"""Layouts as people write them: which devices hold which layers, alone or cut among them. Pure data and text.

    0-10:a 11-21:b,c            layers 0 to 10 on device a; 11 to 21, and the head, cut among b and c
    0-7:* 8-21:a=3,b=1 head:*   * are all devices; a holds three times as much as b; the head is cut among all

Parts are separated by blanks. A part is layers (one, or the first and the last), a colon, and devices by name or rank,
separated by commas. A share after = says how much a device gets of what the part's devices hold together; without
shares memory decides. Every layer stands in exactly one part; a head that is not named lies where the last layer does.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tpi.errors import UsageError
from tpi.model.blocks import Block
from tpi.model.partition import Partition, divide

_PART = re.compile(r"^(?:(\d+)(?:-(\d+))?|(head)):(\S+)$")
_DEVICE = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*|\*)(?:=(\d+(?:\.\d+)?))?$")
_EXAMPLE = "write it as in 0-10:a 11-21:b,c"


@dataclass(frozen=True)
class Group:
    """Devices, by name, rank or ``*``, that hold the layers from ``first`` to ``last``; with their shares, or None."""

    first: int
    last: int
    devices: tuple[str, ...]
    shares: tuple[float, ...] | None


@dataclass(frozen=True)
class Layout:
    """Groups in the order of their layers; the head counts as the layer after the last."""

    groups: tuple[Group, ...]

    def group_of(self, layer: int) -> Group:
        return next(group for group in self.groups if group.first <= layer <= group.last)


def parse_layout(text: str, n_layers: int) -> Layout:
    """The layout that ``text`` describes for a model of so many layers.

    Raises:
        UsageError: it is malformed, or a layer stands in no part or in two.
    """
    groups = [_parse_part(part, n_layers) for part in text.split()]
    groups.sort(key=lambda group: group.first)
    if groups and groups[-1].last == n_layers - 1:
        last = groups[-1]
        groups[-1] = Group(last.first, n_layers, last.devices, last.shares)
    expected = 0
    for group in groups:
        if group.first != expected or group.last > n_layers:
            where = f"layer {expected}" if expected < n_layers else f"layer {group.first}"
            raise UsageError(
                f"the layout {text!r}: {where} must stand in exactly one part; the model has layers 0 to {n_layers - 1}"
            )
        expected = group.last + 1
    if expected != n_layers + 1:
        raise UsageError(
            f"the layout {text!r}: layer {expected} stands in no part; the model has layers 0 to {n_layers - 1}"
        )
    return Layout(tuple(groups))


def divide_layers(
    blocks: Sequence[Block], layout: Layout, names: Sequence[str], by_memory: Sequence[float]
) -> Partition:
    """The partition of ``layout`` for devices of these names, by rank; ``by_memory`` are their shares where the layout
    gives none.

    Raises:
        UsageError: a device of the layout is not here, or stands twice in a part; or a layer lies elsewhere than the
            one whose keys and values it looks at.
    """
    for block in blocks:
        if block.reads_state_of is not None:
            source = blocks[block.reads_state_of].layer
            if layout.group_of(block.layer) != layout.group_of(source):
                raise UsageError(
                    f"layer {block.layer} of this model looks at the keys and values of layer {source}: "
                    "put both into the same part of the layout"
                )
    partitions = {group: divide(blocks, _weights(group, names, by_memory)) for group in layout.groups}
    shares = tuple(partitions[layout.group_of(block.layer)].shares[block.index] for block in blocks)
    return Partition(len(names), shares)


def _parse_part(text: str, n_layers: int) -> Group:
    match = _PART.match(text)
    if match is None:
        raise UsageError(f"{text!r} is no part of a layout: {_EXAMPLE}")
    first = n_layers if match[3] else int(match[1])
    last = int(match[2]) if match[2] else first
    if last < first or (not match[3] and last >= n_layers):
        raise UsageError(f"the layout's {text!r} names layers that are not there: the model has 0 to {n_layers - 1}")
    devices, shares = [], []
    for entry in match[4].split(","):
        device = _DEVICE.match(entry)
        if device is None:
            raise UsageError(f"the layout's {entry!r} is no device: {_EXAMPLE}")
        devices.append(device[1])
        shares.append(None if device[2] is None else float(device[2]))
    given = [share for share in shares if share is not None]
    if given and (len(given) < len(shares) or sum(given) <= 0):
        raise UsageError(f"the layout's {text!r}: give all devices of a part shares, one above 0, or none")
    return Group(first, last, tuple(devices), tuple(given) if given else None)


def _weights(group: Group, names: Sequence[str], by_memory: Sequence[float]) -> list[float]:
    weights = [0.0] * len(names)
    chosen = range(len(names)) if group.devices == ("*",) else [_rank_of(device, names) for device in group.devices]
    if len(set(chosen)) < len(chosen):
        raise UsageError(f"in the layout a device stands twice in {','.join(group.devices)}")
    for number, rank in enumerate(chosen):
        weights[rank] = (
            group.shares[number] if group.shares is not None and group.devices != ("*",) else by_memory[rank]
        )
    return weights


def _rank_of(device: str, names: Sequence[str]) -> int:
    if device in names:
        return list(names).index(device)
    if device.isdecimal() and int(device) < len(names):
        return int(device)
    raise UsageError(f"there is no device {device!r}; there are {', '.join(names)}")
