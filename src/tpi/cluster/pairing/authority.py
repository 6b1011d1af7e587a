"""The master's certificate authority: its keys, the join secret, and the registry of the devices it has admitted.

Owns a state folder of private files; ``registry.json`` is written last, so a folder without it holds nothing yet.
Any thread may call; several processes may use one folder. Master only (``certificates`` loads ``cryptography``).
"""

import hmac
import secrets
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography import x509

from tpi.cluster.control.messages import DeviceName
from tpi.cluster.pairing.certificates import (
    certificate_der,
    certificate_pem,
    key_digest,
    key_pem,
    make_authority,
    new_key,
    read_key,
    read_signing_request,
    sign_device,
)
from tpi.cluster.pairing.gate import LinkHello, LinkTokens
from tpi.cluster.pairing.hello import DataHello, JoinHello, JoinWelcome, LinkWelcome, RelayHello
from tpi.cluster.pairing.joinkey import MAX_ADDRESSES, SECRET_BYTES, Address, JoinKey
from tpi.cluster.pairing.storage import locked, make_private_folder, write_private
from tpi.cluster.pairing.tls import Device, fingerprint, server_context
from tpi.errors import PairingError, RemovedError, UsageError

MAX_DEVICES = 4096


class IssuedDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One certificate that the authority has issued."""

    name: DeviceName
    serial: str
    """Hexadecimal: too large for a JSON number."""
    key: str
    """SHA-256 of its public key: a device whose answer was lost on the way asks again with the same."""
    revoked: bool = False


class _Registry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    master: DeviceName
    secret: str
    devices: tuple[IssuedDevice, ...] = ()


class Authority:
    """One cluster's authority. Use ``open``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mutex = threading.Lock()
        self._stamp = (0, 0)
        self._cached = self._load()
        try:
            self._key = read_key((folder / "authority.key").read_bytes())
            self._certificate = x509.load_pem_x509_certificate((folder / "authority.pem").read_bytes())
            master = x509.load_pem_x509_certificate((folder / "master.pem").read_bytes())
        except (OSError, ValueError) as error:
            raise self._damaged() from error
        self.fingerprint = fingerprint(certificate_der(master))
        """Of the master's certificate: what join keys carry."""

    @classmethod
    def open(cls, folder: Path, master_name: str = "master") -> "Authority":
        """The authority in ``folder``, created there when it holds none."""
        make_private_folder(folder)
        with locked(folder / ".lock"):
            if not (folder / "registry.json").exists():
                _create(folder, master_name)
        return cls(folder)

    @property
    def master_name(self) -> str:
        """The name in the master's certificate."""
        return self._registry().master

    @property
    def devices(self) -> tuple[IssuedDevice, ...]:
        """Every device that was ever admitted."""
        return self._registry().devices

    def join_key(self, addresses: tuple[Address, ...]) -> JoinKey:
        """The key that admits devices at the moment; ``revoke`` ends it. Takes the first 8 addresses."""
        return JoinKey(addresses[:MAX_ADDRESSES], self.fingerprint, bytes.fromhex(self._registry().secret))

    def server_context(self) -> ssl.SSLContext:
        """TLS for the master's listening port."""
        return server_context(self._folder / "master.pem", self._folder / "authority.pem", strangers=True)

    def admit(self, hello: JoinHello) -> JoinWelcome:
        """Issue a certificate to a device that knows the secret; raises PairingError."""
        if not hmac.compare_digest(hello.secret, bytes.fromhex(self._registry().secret)):
            raise PairingError("this join key is wrong or no longer valid: copy it again from `tpi serve`")
        device_key = read_signing_request(hello.signing_request)
        key = key_digest(device_key)
        issued: list[tuple[str, x509.Certificate]] = []

        def add(registry: _Registry) -> _Registry:
            known = next((device for device in registry.devices if device.key == key and not device.revoked), None)
            if known is None and len(registry.devices) >= MAX_DEVICES:
                raise PairingError(f"this cluster has admitted {MAX_DEVICES} devices already: start a new one")
            name = known.name if known is not None else _free_name(hello.name, registry)
            certificate = sign_device(self._certificate, self._key, device_key, name)
            issued.append((name, certificate))
            device = IssuedDevice(name, f"{certificate.serial_number:x}", key)
            others = tuple(entry for entry in registry.devices if entry is not known)
            return msgspec.structs.replace(registry, devices=(*others, device))

        self._update(add)
        name, certificate = issued[0]
        return JoinWelcome(name, certificate_der(certificate), certificate_der(self._certificate))

    def check(self, device: Device) -> None:
        """Raises RemovedError unless ``device`` was admitted and not revoked since."""
        for issued in self._registry().devices:
            if int(issued.serial, 16) == device.serial and issued.name == device.name:
                if issued.revoked:
                    break
                return
        raise RemovedError(
            f"the device {device.name} is not or no longer part of this cluster: join with a new key from `tpi serve`"
        )

    def revoke(self, name: str) -> None:
        """End the certificate of ``name``, and every join key given out so far: the device knows one.

        Links that are open stay open; closing them is the session's part. Raises UsageError for an unknown name.
        """

        def remove(registry: _Registry) -> _Registry:
            valid = [device.name for device in registry.devices if not device.revoked]
            if name not in valid:
                raise UsageError(f"no device is called {name!r}; there are: {', '.join(valid) or 'none'}")
            devices = tuple(
                msgspec.structs.replace(device, revoked=True) if device.name == name else device
                for device in registry.devices
            )
            return msgspec.structs.replace(registry, devices=devices, secret=secrets.token_hex(SECRET_BYTES))

        self._update(remove)

    def _update(self, change: Callable[[_Registry], _Registry]) -> None:
        with self._mutex, locked(self._folder / ".lock"):
            self._cached = change(self._load())
            write_private(self._folder / "registry.json", msgspec.json.encode(self._cached))
            self._stamp = self._read_stamp()

    def _registry(self) -> _Registry:
        """What the file says, which another process may have changed."""
        with self._mutex:
            if self._read_stamp() != self._stamp:
                self._cached = self._load()
            return self._cached

    def _load(self) -> _Registry:
        try:
            self._stamp = self._read_stamp()
            registry = msgspec.json.decode((self._folder / "registry.json").read_bytes(), type=_Registry)
            if len(bytes.fromhex(registry.secret)) != SECRET_BYTES:
                raise ValueError("secret")
            return registry
        except (OSError, ValueError, msgspec.MsgspecError):
            raise self._damaged() from None

    def _read_stamp(self) -> tuple[int, int]:
        try:
            status = (self._folder / "registry.json").stat()
        except OSError:
            raise self._damaged() from None
        return status.st_mtime_ns, status.st_ino

    def _damaged(self) -> PairingError:
        return PairingError(f"the cluster's state in {self._folder} is damaged: remove it, then pair the devices anew")


def _create(folder: Path, master_name: str) -> None:
    authority_key, master_key = new_key(), new_key()
    authority = make_authority(authority_key)
    master = sign_device(authority, authority_key, master_key.public_key(), master_name)
    write_private(folder / "authority.key", key_pem(authority_key))
    write_private(folder / "authority.pem", certificate_pem(authority))
    write_private(folder / "master.pem", key_pem(master_key) + certificate_pem(master))
    registry = _Registry(master_name, secrets.token_hex(SECRET_BYTES))
    write_private(folder / "registry.json", msgspec.json.encode(registry))


def _free_name(wanted: str, registry: _Registry) -> str:
    """``wanted``, or ``wanted-2`` and so on when a device in the cluster has that name."""
    taken = {registry.master, *(device.name for device in registry.devices if not device.revoked)}
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted[:56]}-{number}"
    return name


class MasterGate:
    """Satisfies ``gate.Gate``: its authority knows the devices, its tokens the data links that are expected."""

    def __init__(self, authority: Authority, tokens: LinkTokens) -> None:
        self._authority = authority
        self._tokens = tokens

    def server_context(self) -> ssl.SSLContext:
        """See ``Gate``."""
        return self._authority.server_context()

    def join(self, hello: JoinHello) -> JoinWelcome:
        """See ``Gate``."""
        return self._authority.admit(hello)

    def admit(self, device: Device, hello: LinkHello) -> LinkWelcome:
        """See ``Gate``."""
        self._authority.check(device)
        if hello.name != device.name:
            raise PairingError(f"the device {device.name} calls itself {hello.name}: let it join again")
        if isinstance(hello, DataHello | RelayHello):
            self._tokens.redeem(device.name, hello.epoch, hello.token)
        return LinkWelcome(self._authority.master_name)
