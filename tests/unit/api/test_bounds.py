"""Connections that keep the server waiting, or are too many; TLS. Against a server without a model."""

import contextlib
import json
import socket
import time
from urllib.parse import urlsplit

import openai
import pytest

from tests.certificates import Certificate, make_certificate
from tests.unit.api.scripted import Played, played
from tpi.api.bounds import Bounds
from tpi.api.guards import Rules
from tpi.api.tls import read_certificate
from tpi.errors import UsageError

QUICK = Bounds(head_s=1.0, idle_s=2.0, stalled_s=1.0, handshake_s=0.5)
FEW = Bounds(n_connections=6, n_per_address=4)
WAIT_S = 10.0
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(server: Played, source: str = "127.0.0.1") -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), WAIT_S, (source, 0))


def ended_after_s(connection: socket.socket) -> tuple[float, bytes]:
    """When the server closed it, and what it said."""
    started_s, said = time.monotonic(), b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            said += part
    return time.monotonic() - started_s, said


def health(server: Played, source: str = "127.0.0.1") -> int:
    with connect(server, source) as connection:
        connection.sendall(REQUEST)
        return int((connection.recv(1 << 16) or b"- 0").split()[1])


def test_heads_that_do_not_end_are_ended() -> None:
    """Whether nothing comes or always a little; a caller who had an answer may be quiet for longer. A busy machine may
    take a second to read a head that is there."""
    bounds = Bounds(head_s=2.5, idle_s=4.0, stalled_s=1.0, handshake_s=0.5)
    with played(bounds=bounds) as server:
        started_s = time.monotonic()
        silent, slow, kept = connect(server), connect(server), connect(server)
        kept.sendall(REQUEST)
        said = b""
        while b"ok" not in said:
            part = kept.recv(1 << 16)
            assert part, said
            said += part
        slow.sendall(b"GET /health HTTP/1.1\r\nA: ")
        with contextlib.suppress(OSError):
            while time.monotonic() - started_s < WAIT_S:
                slow.sendall(b"A")
                time.sleep(0.05)
        assert bounds.head_s < time.monotonic() - started_s < WAIT_S
        assert b" 408 " in ended_after_s(silent)[1]
        assert health(server) == 200
        took_s, said = ended_after_s(kept)
        assert took_s < WAIT_S and not said


def test_a_body_that_does_not_come() -> None:
    with played(Rules("127.0.0.1", body_s=0.3)) as server, connect(server) as slow:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(head + b"Content-Length: 100\r\n\r\n{")
        took_s, said = ended_after_s(slow)
        assert 0.2 < took_s < WAIT_S and b" 408 " in said and b"not there within" in said


def test_who_does_not_read_is_cut_off() -> None:
    with played(bounds=QUICK) as server, connect(server) as deaf:
        with contextlib.suppress(OSError):
            for _ in range(100_000):
                deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with pytest.raises(OSError):
            while True:
                deaf.sendall(b"x")
                time.sleep(0.05)
        assert health(server) == 200


def test_idle_ones_make_room_and_busy_ones_do_not() -> None:
    with played(bounds=FEW) as server:
        idle = [connect(server) for _ in range(4)]
        assert health(server) == 200
        assert ended_after_s(idle[0])[1] == b"", "the oldest went"
        listening = []
        for _ in range(4):
            listening.append(connect(server))
            listening[-1].sendall(b"GET /v1/cluster/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in listening[-1].recv(1 << 16)
        assert health(server) == 503, "an address has all that it may"
        assert health(server, "127.0.0.2") == 200, "another has not"
        listening += [connect(server, "127.0.0.3") for _ in range(2)]
        for connection in listening[4:]:
            connection.sendall(b"GET /v1/cluster/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in connection.recv(1 << 16)
        assert health(server, "127.0.0.2") == 503, "there are no more for anybody"
        listening[0].close()
        deadline_s = time.monotonic() + WAIT_S
        while health(server) != 200:
            assert time.monotonic() < deadline_s, "who has hung up counts no more"


def test_events() -> None:
    with played() as server, connect(server) as listening:
        listening.sendall(b"GET /v1/cluster/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        said = b""
        while said.count(b"event: state") < 2:
            said += listening.recv(1 << 16)
        data = next(line for line in said.split(b"\n") if line.startswith(b"data: "))
        state = json.loads(data.removeprefix(b"data: "))
        assert [rank["name"] for rank in state["ranks"]] == ["device-0", "device-1"]
        assert state["answers"]["n_running"] == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def test_tls(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official client, which trusts the certificate; strangers who never finish a handshake."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    tls = read_certificate(certificate.chain, certificate.key)
    bounds = Bounds(n_connections=3, n_per_address=3, handshake_s=0.5)
    with played(tls=tls, bounds=bounds) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=WAIT_S)
        silent = [connect(server) for _ in range(3)]
        assert [model.id for model in client.models.list()] == ["demo"], "they made room"
        answer = client.completions.create(model="demo", prompt="x", stream=True)
        assert "".join(chunk.choices[0].text for chunk in answer) == "Hello world"
        assert ended_after_s(silent[2])[0] < WAIT_S
        with connect(server) as plain:
            plain.sendall(REQUEST)
            assert b"HTTP" not in ended_after_s(plain)[1]


@pytest.mark.parametrize(
    ("chain", "key", "said"),
    [
        ("none.pem", "key.pem", "cannot be read: No such file"),
        ("chain.pem", "secret.pem", "no certificate with its unencrypted key"),
        ("key.pem", "key.pem", "no certificate with its unencrypted key"),
        ("chain.pem", None, "no certificate with its unencrypted key"),
    ],
)
def test_certificates_that_cannot_be_used(certificate: Certificate, chain: str, key: str | None, said: str) -> None:
    folder = certificate.chain.parent
    with pytest.raises(UsageError, match=said):
        read_certificate(folder / chain, None if key is None else folder / key)


def test_callers_write_nothing_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    upgrade = REQUEST[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with played() as server:
        for asked, status in ((upgrade, b"200"), (b"nonsense\r\n\r\n", b"400")):
            with connect(server) as connection:
                connection.sendall(asked)
                assert status in connection.recv(1 << 16).split(b"\r\n")[0]
    assert not caplog.records
