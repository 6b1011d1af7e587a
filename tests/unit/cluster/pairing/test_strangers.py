"""What an open port must survive: strangers who dawdle, shout or speak something else, while a device still gets in."""

import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tpi.cluster.pairing.acceptor import MAX_HANDSHAKES, AcceptedLink, Acceptor
from tpi.cluster.pairing.addresses import listen
from tpi.cluster.pairing.authority import Authority, MasterGate
from tpi.cluster.pairing.connect import join, open_control
from tpi.cluster.pairing.gate import LinkTokens
from tpi.cluster.pairing.hello import ANSWER_MAGIC, HELLO_MAGIC, ControlHello, Purpose, Verdict, pack_hello
from tpi.cluster.pairing.identity import IdentityStore
from tpi.cluster.pairing.joinkey import Address
from tpi.cluster.pairing.tls import stranger_context
from tpi.version import PROTOCOL_VERSION

WAIT_S = 20.0


class OpenPort:
    """An acceptor with a short deadline, and what it reported."""

    def __init__(self, folder: Path, deadline_s: float) -> None:
        self.folder = folder
        self.authority = Authority.open(folder / "master")
        self.links: queue.Queue[AcceptedLink] = queue.Queue()
        self.refused: queue.Queue[str] = queue.Queue()
        gate = MasterGate(self.authority, LinkTokens())
        self.acceptor = Acceptor(listen("127.0.0.1", 0), gate, self.links.put, self.refused.put, deadline_s)
        self.address = ("127.0.0.1", self.acceptor.port)

    def plain(self) -> socket.socket:
        return socket.create_connection(self.address, WAIT_S)

    def tls(self) -> ssl.SSLSocket:
        return stranger_context().wrap_socket(self.plain())

    def check_that_a_device_gets_in(self) -> None:
        key = self.authority.join_key((Address(*self.address),))
        identity = join(key, "pi", IdentityStore(self.folder / "worker"), WAIT_S)
        open_control(key.addresses, identity, WAIT_S).socket.close()
        self.links.get(timeout=WAIT_S).socket.close()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[OpenPort]:
    with open_port(tmp_path, 5.0) as opened:
        yield opened


@contextmanager
def open_port(folder: Path, deadline_s: float) -> Iterator[OpenPort]:
    opened = OpenPort(folder, deadline_s)
    with opened.acceptor:
        yield opened


def read_to_end(sock: socket.socket) -> bytes:
    content = b""
    try:
        while received := sock.recv(65536):
            content += received
    except ConnectionError:
        pass
    return content


@pytest.mark.parametrize(
    "shout", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 1000, b"\xff" * 100_000, b"\x16\x03\x01\xff\xff"]
)
def test_what_is_not_tls(port: OpenPort, shout: bytes) -> None:
    with port.plain() as sock:
        try:
            sock.sendall(shout)
            sock.shutdown(socket.SHUT_WR)
            assert len(read_to_end(sock)) < 100  # an alert of TLS at most
        except OSError:
            pass  # reset
    assert "no TLS handshake" in port.refused.get(timeout=WAIT_S)
    port.check_that_a_device_gets_in()


def test_who_connects_and_leaves(port: OpenPort) -> None:
    for _ in range(50):
        sock = port.plain()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset
        sock.close()
    port.check_that_a_device_gets_in()


def test_tls_of_another_version(port: OpenPort) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with port.plain() as sock, pytest.raises(ssl.SSLError):
        context.wrap_socket(sock)


@pytest.mark.parametrize(
    ("hello", "told"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not speak the protocol"),
        (struct.pack("<4sHHI", HELLO_MAGIC, PROTOCOL_VERSION, 1, 8193), "announces 8193 bytes"),
        (struct.pack("<4sHHI", HELLO_MAGIC, PROTOCOL_VERSION, 1, 0xFFFFFFFF), "announces 4294967295 bytes"),
        (struct.pack("<4sHHI", HELLO_MAGIC, PROTOCOL_VERSION, 9, 0), "unknown purpose, 9"),
        (struct.pack("<4sHHI", HELLO_MAGIC, PROTOCOL_VERSION, 1, 4) + b"\xc1\xc1\xc1\xc1", "malformed JoinHello"),
        (struct.pack("<4sHHI", HELLO_MAGIC, PROTOCOL_VERSION, 1, 0), "malformed JoinHello"),
        (pack_hello(Purpose.CONTROL, ControlHello("pi")), "without a certificate"),
    ],
)
def test_a_hello_that_is_none_gets_one_refusal(port: OpenPort, hello: bytes, told: str) -> None:
    with port.tls() as sock:
        sock.sendall(hello + b"and more that nobody asked for" * 1000)
        answer = read_to_end(sock)
    magic, version, verdict, length = struct.unpack_from("<4sHHI", answer)
    assert (magic, version, verdict) == (ANSWER_MAGIC, PROTOCOL_VERSION, Verdict.REFUSED)
    assert told in answer[12:].decode() and len(answer) == 12 + length <= 600
    assert told in port.refused.get(timeout=WAIT_S)
    port.check_that_a_device_gets_in()


def test_golden_bytes_of_a_hello() -> None:
    assert pack_hello(Purpose.CONTROL, ControlHello("pi"), version=0x0102) == (
        b"tpiH\x02\x01\x02\x00\x09\x00\x00\x00" + b"\x81\xa4name\xa2pi"
    )


def test_who_says_nothing_is_cut_off(tmp_path: Path) -> None:
    """Before TLS, within it, and in the middle of a hello; a trickle of bytes does not move the deadline."""
    with open_port(tmp_path, deadline_s=0.6) as port, port.plain() as mute, port.tls() as polite, port.tls() as slow:
        start_s = time.monotonic()
        done = threading.Event()

        def trickle() -> None:
            for byte in pack_hello(Purpose.CONTROL, ControlHello("x" * 63)) * 10:
                if done.wait(0.05):
                    return
                try:
                    slow.sendall(bytes([byte]))
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        assert read_to_end(mute) == b""
        assert read_to_end(polite) == b""
        assert time.monotonic() - start_s < 5
        thread.join(WAIT_S)
        assert not thread.is_alive()  # sending failed: it was cut off
        done.set()
        port.check_that_a_device_gets_in()


def test_a_crowd_that_dawdles_does_not_keep_a_device_out(port: OpenPort) -> None:
    with ExitStack() as crowd:
        for _ in range(3 * MAX_HANDSHAKES):
            crowd.enter_context(port.plain())
        start_s = time.monotonic()
        port.check_that_a_device_gets_in()
        assert time.monotonic() - start_s < 15
        handshakes = [thread for thread in threading.enumerate() if thread.name == "tpi-handshake"]
        assert len(handshakes) <= MAX_HANDSHAKES
