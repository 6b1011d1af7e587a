"""A worker's certificates: one key and certificate per cluster, in a folder of private files. Any thread.

``STATE/<fingerprint>/`` holds ``device.pem`` (key and certificate), ``authority.pem`` and ``name``; it appears whole.

A new key is made in a child process: what makes it takes 10 MB that a worker, which needs it once in its life, would
keep for good.
"""

import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tpi.cluster.pairing.storage import make_private_folder, write_private
from tpi.cluster.pairing.tls import client_context
from tpi.errors import DiskSpaceError, PairingError

_MAKING_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this device is in one cluster."""

    name: str
    fingerprint: bytes
    """Of the master's certificate."""
    folder: Path

    def client_context(self) -> ssl.SSLContext:
        """TLS for calling the cluster's other devices."""
        try:
            return client_context(self.folder / "device.pem", self.folder / "authority.pem")
        except (OSError, ValueError):
            raise PairingError(
                f"this device's certificate in {self.folder} is damaged: remove that folder, then join again"
            ) from None


class IdentityStore:
    """All identities of this device."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, fingerprint: bytes) -> Identity | None:
        """The identity in the cluster whose master has ``fingerprint``, if there is one."""
        folder = self._folder / fingerprint.hex()
        try:
            return Identity((folder / "name").read_text("ascii").strip(), fingerprint, folder)
        except (OSError, ValueError):
            return None

    def save(self, fingerprint: bytes, name: str, chain_pem: bytes, authority_pem: bytes) -> Identity:
        """Keep a new identity, in place of one for the same cluster."""
        make_private_folder(self._folder)
        folder = self._folder / fingerprint.hex()
        try:
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".new-") as fresh_name:
                fresh = Path(fresh_name) / "identity"
                make_private_folder(fresh)
                write_private(fresh / "device.pem", chain_pem)
                write_private(fresh / "authority.pem", authority_pem)
                write_private(fresh / "name", name.encode("ascii"))
                self.forget(fingerprint)
                os.rename(fresh, folder)
        except OSError as error:
            raise DiskSpaceError(f"cannot write {folder}: {error.strerror}") from None
        return Identity(name, fingerprint, folder)

    def forget(self, fingerprint: bytes) -> None:
        """Remove the identity in a cluster; nothing happens when there is none."""
        shutil.rmtree(self._folder / fingerprint.hex(), ignore_errors=True)


@dataclass(frozen=True)
class NewKey:
    """The private key as PEM, and the request to certify it as DER."""

    key_pem: bytes
    signing_request: bytes


def make_key(name: str) -> NewKey:
    """A key for the device ``name``; blocks.

    Raises:
        PairingError: the child process fails.
    """
    command = [sys.executable, "-P", "-m", "tpi.cluster.pairing.certificates"]
    try:
        done = subprocess.run(command, input=name.encode(), capture_output=True, timeout=_MAKING_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PairingError(f"cannot make a key for this device: {error}") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise PairingError(f"cannot make a key for this device: {words[-1]}")
    length = int.from_bytes(done.stdout[:4], "little")
    return NewKey(done.stdout[4 : 4 + length], done.stdout[4 + length :])
