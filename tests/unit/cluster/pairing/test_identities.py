"""Who a device is: one identity for every name that was asked for, and the same name again after a lost answer."""

import stat
from pathlib import Path

import pytest

from tests.unit.cluster.pairing.masters import WAIT_S, Master, expect, running_master
from tpi.cluster.pairing.acceptor import Acceptor
from tpi.cluster.pairing.connect import find_or_join, join, open_control
from tpi.cluster.pairing.identity import IdentityStore, make_key
from tpi.errors import DiskSpaceError, LinkError, PairingError, RemovedError


def test_two_names_of_one_home_have_two_identities(master: Master, store: IdentityStore) -> None:
    one, two = find_or_join(master.key, "one", store), find_or_join(master.key, "two", store)
    assert (one.name, two.name) == ("one", "two") and one.folder != two.folder
    assert find_or_join(master.key, "one", store) == one and find_or_join(master.key, "two", store) == two
    assert (one.folder / "device.pem").read_bytes() != (two.folder / "device.pem").read_bytes()
    for identity in (one, two):
        open_control((master.address,), identity).socket.close()
        assert master.links.get(timeout=WAIT_S).device.name == identity.name
    store.forget(one.fingerprint, "one")
    assert store.find(one.fingerprint, "one") is None and store.find(two.fingerprint, "two") == two


def test_one_name_in_two_clusters(master: Master, store: IdentityStore, tmp_path: Path) -> None:
    with running_master(tmp_path / "other") as other:
        mine, theirs = join(master.key, "pi", store), join(other.key, "pi", store)
    assert (mine.name, theirs.name) == ("pi", "pi") and mine.folder != theirs.folder


def test_a_name_that_is_taken_is_kept_under_the_one_that_was_asked_for(master: Master, tmp_path: Path) -> None:
    join(master.key, "pi", IdentityStore(tmp_path / "a"))
    store = IdentityStore(tmp_path / "b")
    second = find_or_join(master.key, "pi", store)
    assert second.name == "pi-2" and find_or_join(master.key, "pi", store) == second
    assert [device.name for device in master.authority.devices] == ["pi", "pi-2"]


def test_a_lost_answer_costs_no_name(
    master: Master, store: IdentityStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The master has signed a certificate that never arrived; the same key gets another one, for the same name."""
    with monkeypatch.context() as patch:
        patch.setattr(Acceptor, "_answer", lambda self, sock, answer: None)
        for _ in range(2):
            expect(LinkError, "closed the connection", lambda: join(master.key, "pi", store))
    assert [device.name for device in master.authority.devices] == ["pi"]
    assert store.find(master.authority.fingerprint, "pi") is None
    identity = join(master.key, "pi", store)
    assert identity.name == "pi" and len(master.authority.devices) == 1
    open_control((master.address,), identity).socket.close()
    assert join(master.key, "pi", IdentityStore(tmp_path / "another")).name == "pi-2"


def test_a_key_is_kept_until_its_certificate_is_there(master: Master, store: IdentityStore, tmp_path: Path) -> None:
    fingerprint = master.authority.fingerprint
    first = store.new_key(fingerprint, "pi")
    assert store.new_key(fingerprint, "pi") == first != store.new_key(fingerprint, "attic")
    path = store._key_path(fingerprint, "pi")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"nonsense")
    second = store.new_key(fingerprint, "pi")
    assert second != first
    identity = join(master.key, "pi", store)
    assert not path.exists() and (identity.folder / "device.pem").read_bytes().startswith(second.key_pem)


def test_a_revoked_device_does_not_come_back_with_its_key(master: Master, store: IdentityStore) -> None:
    """The key that was certified is another's as soon as it was revoked: a new entry, and a new serial."""
    identity = join(master.key, "pi", store)
    serial = master.authority.devices[0].serial
    master.authority.revoke("pi")
    expect(RemovedError, "no longer part", lambda: open_control((master.address,), identity))
    assert join(master.key, "pi", store).name == "pi"
    assert [device.revoked for device in master.authority.devices] == [True, False]
    assert master.authority.devices[1].serial != serial


def test_a_key_that_cannot_be_made_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpi.cluster.pairing.identity.sys.executable", "/bin/false")
    expect(PairingError, "cannot make a key for this device: exit code 1", lambda: make_key("pi"))
    monkeypatch.setattr("tpi.cluster.pairing.identity.sys.executable", "/nowhere")
    expect(PairingError, "cannot make a key for this device: .*No such file", lambda: make_key("pi"))


def test_a_folder_that_cannot_be_written_is_one_line(master: Master, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    expect(
        PairingError,
        "cannot create the folder .*: Not a directory",
        lambda: join(master.key, "pi", IdentityStore(tmp_path / "file")),
    )
    store = IdentityStore(tmp_path / "worker")
    store.new_key(master.authority.fingerprint, "pi")
    place = store._place(master.authority.fingerprint, "pi")
    place.write_text("a file where a folder is to be")
    expect(DiskSpaceError, "cannot write .*: Not a directory", lambda: join(master.key, "pi", store))
