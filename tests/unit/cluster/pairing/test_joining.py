"""Joining, opening links and being refused, between a real acceptor and real callers on loopback."""

import socket
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cluster.pairing.masters import WAIT_S, Master, expect, running_master
from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import Goodbye
from tpi.cluster.pairing import connect
from tpi.cluster.pairing import hello as hellos
from tpi.cluster.pairing.acceptor import AcceptedLink, Acceptor
from tpi.cluster.pairing.addresses import listen
from tpi.cluster.pairing.authority import Authority, MasterGate
from tpi.cluster.pairing.connect import find_or_join, join, make_device_name, open_control, open_data
from tpi.cluster.pairing.gate import LinkTokens
from tpi.cluster.pairing.hello import ControlHello, DataHello, JoinHello
from tpi.cluster.pairing.identity import IdentityStore
from tpi.cluster.pairing.joinkey import Address
from tpi.cluster.pairing.tls import server_context, stranger_context
from tpi.errors import LinkError, PairingError, ProtocolError, RemovedError, TpiError, UsageError
from tpi.version import PROTOCOL_VERSION


def test_join_then_open_both_links(master: Master, store: IdentityStore) -> None:
    identity = join(master.key, "pi", store)
    assert identity.name == "pi"
    control = open_control(master.key.addresses, identity)
    accepted = master.links.get(timeout=WAIT_S)
    assert (accepted.device.name, accepted.hello, control.host) == ("pi", ControlHello("pi"), "master")
    token = master.tokens.issue("pi", 3)
    data = open_data(control.address, identity, 3, token)
    accepted_data = master.links.get(timeout=WAIT_S)
    assert accepted_data.hello == DataHello("pi", 3, token)
    with ControlLink(control.socket, "the master") as mine, ControlLink(accepted.socket, "pi") as theirs:
        mine.send(Goodbye("hello"))
        assert theirs.receive(WAIT_S) == Goodbye("hello")
    data.socket.sendall(b"1234")
    assert accepted_data.socket.recv(4) == b"1234"
    assert data.socket.version() == "TLSv1.3"
    data.socket.close()
    accepted_data.socket.close()


def test_an_identity_is_kept_and_found_again(master: Master, store: IdentityStore) -> None:
    first = find_or_join(master.key, "pi", store)
    assert find_or_join(master.key, "pi", store) == first
    assert [device.name for device in master.authority.devices] == ["pi"]
    store.forget(first.fingerprint, "pi")
    assert find_or_join(master.key, "pi", store).name == "pi-2", "nothing is left but what the master knows"


def test_a_master_that_restarts_knows_its_devices(tmp_path: Path, store: IdentityStore) -> None:
    with running_master(tmp_path / "master") as master:
        identity = join(master.key, "pi", store)
        key = master.key
    with running_master(tmp_path / "master") as master:
        assert master.key.secret == key.secret and master.key.fingerprint == key.fingerprint
        open_control(master.key.addresses, identity).socket.close()


def test_private_files_are_private(master: Master, store: IdentityStore, tmp_path: Path) -> None:
    join(master.key, "pi", store)
    for path in [*(tmp_path / "master").rglob("*"), *(tmp_path / "worker").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_wrong_secret_is_refused(master: Master, store: IdentityStore) -> None:
    key = replace(master.key, secret=bytes(16))
    text = expect(
        PairingError, r"the master at 127\.0\.0\.1:\d+ refused: this join key is wrong", lambda: join(key, "pi", store)
    )
    assert "tpi serve" in text
    assert master.authority.devices == ()
    assert "this join key is wrong" in master.refused.get(timeout=WAIT_S)


def test_the_secret_is_not_sent_to_another_master(master: Master, store: IdentityStore, tmp_path: Path) -> None:
    key = replace(master.key, fingerprint=bytes(32))
    expect(PairingError, "not the master that made this join key", lambda: join(key, "pi", store))
    assert "closed" in master.refused.get(timeout=WAIT_S)
    identity = join(master.key, "pi", store)
    with running_master(tmp_path / "impostor") as impostor:
        expect(PairingError, "not the master", lambda: open_control((impostor.address,), identity))
        expect(
            PairingError,
            "not the master",
            lambda: join(replace(master.key, addresses=(impostor.address,)), "pi", store),
        )


def test_a_certificate_of_another_cluster_does_not_get_in(master: Master, tmp_path: Path) -> None:
    with running_master(tmp_path / "other") as other:
        foreign = join(other.key, "pi", IdentityStore(tmp_path / "a"))
    mine = join(master.key, "pi", IdentityStore(tmp_path / "b"))
    # The foreign key and certificate, but everything else as it should be.
    (mine.folder / "device.pem").write_bytes((foreign.folder / "device.pem").read_bytes())
    expect(LinkError, "broke the connection off", lambda: open_control((master.address,), mine))
    assert "no TLS handshake" in master.refused.get(timeout=WAIT_S)
    assert master.links.empty()


def test_a_worker_cannot_pose_as_the_master(master: Master, tmp_path: Path) -> None:
    """Its certificate is of the same authority, but not the pinned one."""
    victim = join(master.key, "victim", IdentityStore(tmp_path / "a"))
    thief = join(master.key, "thief", IdentityStore(tmp_path / "b"))
    context = server_context(thief.folder / "device.pem", thief.folder / "authority.pem", strangers=True)
    with listen("127.0.0.1", 0) as listener:

        def serve() -> None:
            try:
                with context.wrap_socket(listener.accept()[0], server_side=True) as sock:
                    sock.recv(1)
            except OSError:
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        address = Address("127.0.0.1", listener.getsockname()[1])
        expect(PairingError, "not the master", lambda: open_control((address,), victim))
        thread.join()


def test_a_removed_device_stays_out(master: Master, store: IdentityStore) -> None:
    key = master.key
    identity = join(key, "pi", store)
    master.authority.revoke("pi")
    expect(
        RemovedError, "refused: the device pi is not or no longer part", lambda: open_control(key.addresses, identity)
    )
    store.forget(identity.fingerprint, "pi")
    expect(PairingError, "this join key is wrong or no longer valid", lambda: join(key, "pi", store))
    assert join(master.key, "pi", store).name == "pi"
    expect(UsageError, "no device is called 'nobody'; there are: pi", lambda: master.authority.revoke("nobody"))


def test_another_process_may_remove_a_device(master: Master, store: IdentityStore, tmp_path: Path) -> None:
    identity = join(master.key, "pi", store)
    Authority.open(tmp_path / "master").revoke("pi")
    expect(RemovedError, "no longer part", lambda: open_control((master.address,), identity))


def test_a_data_link_needs_its_token(master: Master, tmp_path: Path) -> None:
    one = join(master.key, "one", IdentityStore(tmp_path / "one"))
    two = join(master.key, "two", IdentityStore(tmp_path / "two"))
    token = master.tokens.issue("one", 3)
    wrong = "was not asked for, or no longer is"
    expect(PairingError, wrong, lambda: open_data(master.address, one, 3, bytes(16)))
    expect(PairingError, wrong, lambda: open_data(master.address, one, 4, token))
    expect(PairingError, wrong, lambda: open_data(master.address, two, 3, token))
    open_data(master.address, one, 3, token).socket.close()
    expect(PairingError, wrong, lambda: open_data(master.address, one, 3, token))


@pytest.mark.parametrize("direction", ["newer", "older"])
def test_another_version_is_named_with_ours(
    master: Master, store: IdentityStore, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    """The caller is of another version; both sides say so, and what to do."""
    other = PROTOCOL_VERSION + (1 if direction == "newer" else -1)
    monkeypatch.setattr(connect, "PROTOCOL_VERSION", other)
    monkeypatch.setattr(connect, "pack_hello", lambda purpose, hello: hellos.pack_hello(purpose, hello, other))
    text = expect(ProtocolError, "install the same version of tpi on both", lambda: join(master.key, "pi", store))
    assert f"version {PROTOCOL_VERSION}, this device" in text and f"version {other}:" in text
    assert f"speaks protocol version {other}, this device" in master.refused.get(timeout=WAIT_S)


def test_nobody_there(store: IdentityStore, tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as listener:
        free = listener.getsockname()[1]
    key = Authority.open(tmp_path / "m").join_key((Address("127.0.0.1", free), Address("host.invalid", 7071)))
    text = expect(LinkError, "cannot reach the master", lambda: join(key, "pi", store))
    assert f"127.0.0.1:{free} refused the connection" in text and "host.invalid is an unknown host" in text
    assert "tpi serve" in text


def test_the_second_address_may_be_the_right_one(master: Master, store: IdentityStore) -> None:
    with listen("127.0.0.1", 0) as listener:
        free = listener.getsockname()[1]
    key = replace(master.key, addresses=(Address("127.0.0.1", free), master.address))
    identity = join(key, "pi", store)
    opened = open_control(key.addresses, identity)
    assert opened.address == master.address
    opened.socket.close()


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            ProtocolError,
            "what answers at .* is not the master: check the address and the port",
        ),
        (b"", LinkError, "closed the connection"),
        (None, LinkError, r"accepts connections but said nothing for 0\.3 s"),
    ],
)
def test_what_answers_is_no_master(
    store: IdentityStore, tmp_path: Path, answer: bytes | None, kind: type[TpiError], message: str
) -> None:
    done = threading.Event()
    with listen("127.0.0.1", 0) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                if answer is None:
                    done.wait(WAIT_S)
                else:
                    sock.recv(4096)
                    sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        key = Authority.open(tmp_path / "m").join_key((Address("127.0.0.1", listener.getsockname()[1]),))
        expect(kind, message, lambda: join(key, "pi", store, timeout_s=0.3 if answer is None else WAIT_S))
        done.set()
        thread.join()


def test_a_port_in_use_is_named(master: Master) -> None:
    text = expect(LinkError, "is in use", lambda: listen("127.0.0.1", master.acceptor.port))
    assert str(master.acceptor.port) in text and "another port" in text
    expect(LinkError, "not an address of this device", lambda: listen("192.0.2.1", 0))
    expect(LinkError, "ports go from 1 to 65535", lambda: listen("127.0.0.1", 70_000))


@pytest.mark.parametrize(
    ("text", "name"),
    [("raspberrypi", "raspberrypi"), ("Ana's MacBook (2)", "Ana-s-MacBook-2"), ("", "device"), ("äöü", "device")],
)
def test_names_are_made_of_host_names(text: str, name: str) -> None:
    assert make_device_name(text) == name


@given(st.text())
def test_any_text_makes_a_name(text: str) -> None:
    name = make_device_name(text)
    content = hellos.pack_hello(hellos.Purpose.CONTROL, ControlHello(name))[12:]
    assert hellos.decode_body(content, ControlHello, "x").name == name


@pytest.mark.parametrize("name", ["", "-", "a b", "a/b", "x" * 64, "ä", "a\n"])
def test_a_name_that_cannot_be_is_refused(master: Master, store: IdentityStore, name: str) -> None:
    def call() -> None:
        hello = JoinHello(name, master.key.secret, b"x")
        callee = connect._pinned(master.key.fingerprint)
        sock, address = connect._connect(master.key.addresses, stranger_context(), callee, WAIT_S)
        with sock:
            connect._converse(sock, str(address), hellos.Purpose.JOIN, hello, hellos.JoinWelcome, WAIT_S)

    expect(PairingError, "malformed JoinHello", call)


@pytest.mark.parametrize("file", ["registry.json", "authority.key", "authority.pem", "master.pem"])
def test_a_damaged_state_folder_is_named(tmp_path: Path, file: str) -> None:
    Authority.open(tmp_path / "m")
    (tmp_path / "m" / file).write_bytes(b"nonsense")
    expect(PairingError, "is damaged: remove it", lambda: Authority.open(tmp_path / "m"))


def test_a_damaged_identity_is_named(master: Master, store: IdentityStore) -> None:
    identity = join(master.key, "pi", store)
    (identity.folder / "device.pem").write_bytes(b"nonsense")
    expect(PairingError, "certificate in .* is damaged", lambda: open_control((master.address,), identity))


def test_a_state_folder_that_was_half_written_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "authority.key").write_bytes(b"half")
    assert Authority.open(tmp_path / "m").devices == ()


def test_nothing_is_left_when_the_acceptor_closes(tmp_path: Path) -> None:
    before = threading.active_count()
    with running_master(tmp_path / "m") as master:
        stranger = socket.create_connection(("127.0.0.1", master.acceptor.port))
        port = master.acceptor.port
    assert threading.active_count() == before
    stranger.close()
    listen("127.0.0.1", port).close()


def test_close_waits_for_a_link_that_is_being_handed_over(tmp_path: Path) -> None:
    """Whoever closes the acceptor gets no link afterwards."""
    authority = Authority.open(tmp_path / "m")
    begun, finish, taken = threading.Event(), threading.Event(), threading.Event()

    def take(link: AcceptedLink) -> None:
        begun.set()
        finish.wait(WAIT_S)
        link.socket.close()
        taken.set()

    with Acceptor(listen("127.0.0.1", 0), MasterGate(authority, LinkTokens()), take) as acceptor:
        key = authority.join_key((Address("127.0.0.1", acceptor.port),))
        opened = open_control(key.addresses, join(key, "pi", IdentityStore(tmp_path / "w")))
        assert begun.wait(WAIT_S)
        threading.Timer(0.1, finish.set).start()
        acceptor.close()
        assert taken.is_set()
    assert opened.socket.recv(1) == b""
    opened.socket.close()
