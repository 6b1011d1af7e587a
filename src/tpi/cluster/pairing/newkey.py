"""A new device's key and signing request, made in a child process: what makes them takes 10 MB that a worker, which
needs them once in its life, would keep for good. Blocks its caller, keeps nothing.
"""

import subprocess
import sys
from dataclasses import dataclass

from tpi.errors import PairingError

_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class NewKey:
    """The private key as PEM, and the request to certify it as DER."""

    key_pem: bytes
    signing_request: bytes


def make_key(name: str) -> NewKey:
    """A key for the device ``name``.

    Raises:
        PairingError: the child process fails.
    """
    command = [sys.executable, "-P", "-m", "tpi.cluster.pairing.newkey_child"]
    try:
        done = subprocess.run(command, input=name.encode(), capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PairingError(f"cannot make a key for this device: {error}") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise PairingError(f"cannot make a key for this device: {words[-1]}")
    length = int.from_bytes(done.stdout[:4], "little")
    return NewKey(done.stdout[4 : 4 + length], done.stdout[4 + length :])
