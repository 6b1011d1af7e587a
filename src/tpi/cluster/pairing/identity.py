"""A worker's certificates: one key and certificate per cluster, in a folder of private files. Any thread.

``STATE/<fingerprint>/<asked>/`` holds ``device.pem`` (key and certificate), ``authority.pem`` and ``name``; it appears
whole. ``asked`` is the name that the device asked for: several workers of one home have one each. While a device asks,
``.key-<asked>`` has its key: if the answer is lost, it asks again with the same.

A new key is made in a child process: what makes it takes 10 MB that a worker, which needs it once in its life, would
keep for good.
"""

import contextlib
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tpi.cluster.pairing.storage import make_private_folder, write_private
from tpi.cluster.pairing.tls import client_context, server_context
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
            raise self._damaged() from None

    def server_context(self) -> ssl.SSLContext:
        """TLS for being called by them."""
        try:
            return server_context(self.folder / "device.pem", self.folder / "authority.pem", strangers=False)
        except (OSError, ValueError):
            raise self._damaged() from None

    def _damaged(self) -> PairingError:
        return PairingError(
            f"this device's certificate in {self.folder} is damaged: remove that folder, then join again"
        )


class IdentityStore:
    """All identities of this device."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, fingerprint: bytes, asked: str) -> Identity | None:
        """The identity in the cluster whose master has ``fingerprint`` of who asked to be called ``asked``."""
        folder = self._place(fingerprint, asked)
        try:
            return Identity((folder / "name").read_text("ascii").strip(), fingerprint, folder)
        except (OSError, ValueError):
            return None

    def new_key(self, fingerprint: bytes, asked: str) -> "NewKey":
        """A key to join with: the one that was made before, if no answer came."""
        path = self._key_path(fingerprint, asked)
        try:
            return msgspec.msgpack.decode(path.read_bytes(), type=NewKey)
        except (OSError, msgspec.MsgspecError):
            new = make_key(asked)
        make_private_folder(path.parent)
        write_private(path, msgspec.msgpack.encode(new))
        return new

    def save(self, fingerprint: bytes, asked: str, name: str, chain_pem: bytes, authority_pem: bytes) -> Identity:
        """Keeps a new identity, in place of an older one."""
        folder = self._place(fingerprint, asked)
        make_private_folder(folder.parent)
        try:
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as fresh_name:
                fresh = Path(fresh_name) / "identity"
                make_private_folder(fresh)
                write_private(fresh / "device.pem", chain_pem)
                write_private(fresh / "authority.pem", authority_pem)
                write_private(fresh / "name", name.encode("ascii"))
                self.forget(fingerprint, asked)
                os.rename(fresh, folder)
        except OSError as error:
            raise DiskSpaceError(f"cannot write {folder}: {error.strerror}") from None
        return Identity(name, fingerprint, folder)

    def forget(self, fingerprint: bytes, asked: str) -> None:
        """Removes an identity and the key that was made for it; nothing happens when there is none."""
        shutil.rmtree(self._place(fingerprint, asked), ignore_errors=True)
        with contextlib.suppress(OSError):
            self._key_path(fingerprint, asked).unlink(missing_ok=True)

    def _place(self, fingerprint: bytes, asked: str) -> Path:
        return self._folder / fingerprint.hex() / asked

    def _key_path(self, fingerprint: bytes, asked: str) -> Path:
        return self._folder / fingerprint.hex() / f".key-{asked}"


class NewKey(msgspec.Struct, frozen=True):
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
