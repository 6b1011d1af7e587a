"""Runs ``tpi`` with data links that are not encrypted, which the product does not have: what does TLS cost?

    python -m bench.plainlinks tpi serve …

Links are opened as always; then both ends take the bare connection from under TLS, which has nothing left to say after
the first words. All devices must do so.
"""

import runpy
import socket
import ssl
import sys

from tpi.cluster.epoch import linking, links
from tpi.cluster.mesh.datalink import DataLink


class PlainLink(DataLink):
    """A data link that leaves TLS when it is made."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        if isinstance(sock, ssl.SSLSocket):
            assert not sock.pending()
            sock = socket.socket(fileno=sock.detach())
        super().__init__(sock, peer)


def main() -> None:
    """Replaces the links and becomes the program that is asked for."""
    for module in (links, linking):
        module.DataLink = PlainLink  # type: ignore[attr-defined]
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
