"""``tpi devices``: who may take part in this master's cluster."""

import sys
from typing import Annotated

import msgspec
import typer

from tpi.cli.environment import find_folders
from tpi.cli.statistics import as_text
from tpi.cluster.pairing.authority import Authority
from tpi.errors import UsageError


def open_authority() -> Authority:
    """This user's authority, which `tpi serve` makes.

    Raises:
        UsageError: there is none yet.
    """
    folder = find_folders().state / "authority"
    if not (folder / "registry.json").exists():
        raise UsageError("this device has not been a master yet: `tpi serve` makes it one")
    return Authority(folder)


def command(json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False) -> None:
    """List the devices that have joined this master's cluster, and whether they still may."""
    devices = open_authority().devices
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(devices), indent=2).decode() + "\n")
        return
    if not devices:
        print("no device has joined yet")
        return
    rows = [(device.name, "removed" if device.revoked else "may join", device.serial[:16]) for device in devices]
    print("\n".join(as_text(("device", "state", "certificate"), rows)))
