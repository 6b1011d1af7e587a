"""Links between workers: only those whom the master has announced come in, and only the one who was announced is
called."""

import queue
import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.unit.cluster.pairing.masters import WAIT_S, expect
from tpi.cluster.pairing import connect
from tpi.cluster.pairing.acceptor import AcceptedLink, Acceptor
from tpi.cluster.pairing.addresses import listen
from tpi.cluster.pairing.authority import Authority
from tpi.cluster.pairing.connect import join, open_peer
from tpi.cluster.pairing.gate import WorkerGate
from tpi.cluster.pairing.hello import ControlHello, DataHello, LinkWelcome, Purpose, RelayHello, pack_hello
from tpi.cluster.pairing.identity import Identity, IdentityStore
from tpi.cluster.pairing.joinkey import Address, JoinKey
from tpi.cluster.pairing.tls import Device, stranger_context
from tpi.errors import LinkError, PairingError
from tpi.testing.meshes import enrol

EPOCH = 3
TOKEN = b"0123456789abcdef"


@dataclass
class Home:
    """The workers of one cluster: ``attic`` takes calls, ``cellar`` and ``garage`` call."""

    authority: Authority
    attic: Identity
    cellar: Identity
    garage: Identity
    gate: WorkerGate
    acceptor: Acceptor
    links: "queue.Queue[AcceptedLink]"
    refused: "queue.Queue[str]"

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.acceptor.port)

    def device(self, identity: Identity) -> Device:
        """As its certificate says."""
        issued = next(device for device in self.authority.devices if device.name == identity.name)
        return Device(issued.name, int(issued.serial, 16))

    def call(self, identity: Identity, epoch: int = EPOCH, token: bytes = TOKEN) -> str:
        """Opens a link to the attic; the name that answers."""
        opened = open_peer([self.address], identity, self.device(self.attic), epoch, token, WAIT_S)
        opened.socket.close()
        return opened.host


@contextmanager
def running_home(folder: Path) -> Iterator[Home]:
    authority = Authority.open(folder / "master")
    attic, cellar, garage = (enrol(authority, name, folder / name) for name in ("attic", "cellar", "garage"))
    gate = WorkerGate(attic)
    links: queue.Queue[AcceptedLink] = queue.Queue()
    refused: queue.Queue[str] = queue.Queue()
    with Acceptor(listen("127.0.0.1", 0), gate, links.put, refused.put) as acceptor:
        home = Home(authority, attic, cellar, garage, gate, acceptor, links, refused)
        gate.announce(EPOCH, {home.device(cellar): TOKEN})
        yield home
    while not links.empty():
        links.get().socket.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with running_home(tmp_path) as home:
        yield home


def test_who_was_announced_comes_in_once(home: Home) -> None:
    assert home.call(home.cellar) == "attic"
    link = home.links.get(timeout=WAIT_S)
    assert (link.device, link.hello) == (home.device(home.cellar), DataHello("cellar", EPOCH, TOKEN))
    link.socket.close()
    expect(PairingError, "was not asked for, or no longer is", lambda: home.call(home.cellar))


@pytest.mark.parametrize(("epoch", "token"), [(EPOCH, bytes(16)), (EPOCH + 1, TOKEN), (EPOCH - 1, TOKEN)])
def test_another_token_or_epoch_is_refused(home: Home, epoch: int, token: bytes) -> None:
    expect(
        PairingError,
        rf"attic at .* refused: the data link of cellar for epoch {epoch} was not asked for",
        lambda: home.call(home.cellar, epoch, token),
    )
    assert home.links.empty() and home.call(home.cellar) == "attic"


def test_who_was_not_announced_is_refused(home: Home) -> None:
    expect(PairingError, "refused: garage was not announced by the master", lambda: home.call(home.garage))
    assert "garage was not announced" in home.refused.get(timeout=WAIT_S)


def test_a_device_of_the_same_name_is_another(home: Home, tmp_path: Path) -> None:
    """A certificate that was issued before, under a name that has been announced since."""
    before = home.cellar
    home.authority.revoke("cellar")
    after = enrol(home.authority, "cellar", tmp_path / "after")
    serials = [int(device.serial, 16) for device in home.authority.devices if device.name == "cellar"]
    home.gate.announce(EPOCH, {Device("cellar", serials[-1]): TOKEN})
    expect(PairingError, "cellar was not announced", lambda: home.call(before))
    assert home.call(after) == "attic"


def test_a_revoked_device_is_refused(home: Home) -> None:
    home.gate.announce(EPOCH, {home.device(home.cellar): TOKEN, home.device(home.garage): TOKEN})
    home.gate.revoke(home.device(home.cellar).serial)
    expect(PairingError, "cellar was not announced", lambda: home.call(home.cellar))
    assert home.call(home.garage) == "attic"


def test_the_next_announcement_ends_the_one_before(home: Home) -> None:
    home.gate.announce(EPOCH + 1, {home.device(home.garage): TOKEN})
    expect(PairingError, "cellar was not announced", lambda: home.call(home.cellar))
    home.gate.announce(EPOCH + 1, {home.device(home.cellar): bytes(16)})
    expect(PairingError, "was not asked for", lambda: home.call(home.cellar))


@pytest.mark.parametrize(
    ("purpose", "hello"),
    [
        (Purpose.CONTROL, ControlHello("cellar")),
        (Purpose.RELAY, RelayHello("cellar", EPOCH, TOKEN)),
        (Purpose.DATA, DataHello("garage", EPOCH, TOKEN)),
    ],
)
def test_other_hellos_are_refused(home: Home, purpose: Purpose, hello: ControlHello | RelayHello | DataHello) -> None:
    """Even of a device that was announced: no control link, no relay, no other name."""
    callee = connect._announced(home.device(home.attic))
    sock, _ = connect._connect([home.address], home.cellar.client_context(), callee, WAIT_S)
    with sock:
        expect(
            PairingError,
            "cellar was not announced",
            lambda: connect._converse(sock, "attic", purpose, hello, LinkWelcome, WAIT_S),
        )
    assert home.links.empty() and home.call(home.cellar) == "attic"


def test_nobody_joins_at_a_worker(home: Home, tmp_path: Path) -> None:
    """Without a certificate there is not even a handshake; a join key that names a worker is of no use."""
    with socket.create_connection(("127.0.0.1", home.acceptor.port), WAIT_S) as plain:
        sock = stranger_context().wrap_socket(plain)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            sock.sendall(pack_hello(Purpose.DATA, DataHello("cellar", EPOCH, TOKEN)))
            assert sock.recv(100) != b""
    assert "no TLS handshake" in home.refused.get(timeout=WAIT_S)
    key = JoinKey((home.address,), home.authority.fingerprint, bytes(16))
    expect(
        PairingError, "not the master that made this join key", lambda: join(key, "x", IdentityStore(tmp_path / "x"))
    )
    assert home.links.empty()


def test_a_certificate_of_another_cluster_does_not_get_in(home: Home, tmp_path: Path) -> None:
    """Of the same name; it even trusts the right authority."""
    foreign = enrol(Authority.open(tmp_path / "other"), "cellar", tmp_path / "foreign")
    shutil.copy(home.attic.folder / "authority.pem", foreign.folder / "authority.pem")
    expect(LinkError, "attic at .* (broke the connection off|closed the connection)", lambda: home.call(foreign))
    assert "no TLS handshake" in home.refused.get(timeout=WAIT_S)
    assert home.links.empty()


def test_another_device_than_announced_is_not_talked_to(home: Home) -> None:
    """It is of this cluster, but not the one whose address the master has told: nothing is sent to it."""
    attic = home.device(home.attic)
    for other in (Device("attic", attic.serial + 1), Device("garage", attic.serial), home.device(home.garage)):
        expect(
            PairingError,
            rf"the device at 127\.0\.0\.1:\d+ is not {other.name}",
            lambda other=other: open_peer([home.address], home.cellar, other, EPOCH, TOKEN, WAIT_S),  # type: ignore[misc]
        )
        assert "closed" in home.refused.get(timeout=WAIT_S)
    assert home.call(home.cellar) == "attic", "the token was not used"


def test_a_device_of_another_cluster_is_not_talked_to(home: Home, tmp_path: Path) -> None:
    """What was announced by the master is not the master: the error speaks of the device that was called."""
    foreign = enrol(Authority.open(tmp_path / "other"), "attic", tmp_path / "foreign")
    with Acceptor(listen("127.0.0.1", 0), WorkerGate(foreign), lambda link: None) as acceptor:
        address = Address("127.0.0.1", acceptor.port)
        expect(
            PairingError,
            r"the device at 127\.0\.0\.1:\d+ is not attic",
            lambda: open_peer([address], home.cellar, home.device(home.attic), EPOCH, TOKEN, WAIT_S),
        )


def test_the_second_address_may_be_the_right_one(home: Home) -> None:
    with listen("127.0.0.1", 0) as listener:
        free = Address("127.0.0.1", listener.getsockname()[1])
    peer = home.device(home.attic)
    opened = open_peer([free, home.address], home.cellar, peer, EPOCH, TOKEN, WAIT_S)
    assert opened.address == home.address
    opened.socket.close()
    expect(
        LinkError,
        r"cannot reach attic: 127\.0\.0\.1:\d+ refused the connection$",
        lambda: open_peer([free], home.cellar, peer, EPOCH, TOKEN, WAIT_S),
    )


def test_a_damaged_certificate_of_a_worker_is_named(home: Home) -> None:
    (home.garage.folder / "device.pem").write_bytes(b"nonsense")
    expect(PairingError, "certificate in .* is damaged", lambda: WorkerGate(home.garage).server_context())
    expect(PairingError, "certificate in .* is damaged", lambda: home.call(replace(home.garage)))
