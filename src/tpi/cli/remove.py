"""``tpi remove``: a device may no longer take part."""

from typing import Annotated

import typer

from tpi.cli.devices import open_authority


def command(name: Annotated[str, typer.Argument(metavar="NAME", help="The device's name, see `tpi devices`.")]) -> None:
    """Take a device's right to take part away.

    Its certificate ends, and so do all join keys given out so far, since the device knows one. Devices that stay need
    no new key. If the cluster runs, start it again.
    """
    open_authority().revoke(name)
    print(f"{name} can no longer join; `tpi serve` prints a new key")
