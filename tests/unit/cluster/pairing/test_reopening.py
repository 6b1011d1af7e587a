"""A worker that comes back: it forgets who it is only when the master that it knows says so."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.cluster.pairing.masters import WAIT_S, Master, expect, running_master
from tpi.cluster.pairing import connect
from tpi.cluster.pairing.connect import enter_cluster, find_or_join
from tpi.cluster.pairing.identity import Identity, IdentityStore
from tpi.cluster.pairing.joinkey import JoinKey
from tpi.config import Folders, WorkerSettings
from tpi.errors import LinkError, PairingError, RemovedError


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    folders = Folders(tmp_path / "state", tmp_path / "shards", tmp_path / "cache")
    return WorkerSettings("", folders, name="pi")


@pytest.fixture
def store(tmp_path: Path) -> IdentityStore:
    """Where the worker keeps who it is."""
    return IdentityStore(tmp_path / "state" / "identities")


def opened(key: JoinKey, settings: WorkerSettings) -> Identity:
    link, identity = enter_cluster(key, settings.name, IdentityStore(settings.folders.state / "identities"))
    link.socket.close()
    return identity


def test_a_worker_joins_once(master: Master, settings: WorkerSettings) -> None:
    first = opened(master.key, settings)
    assert opened(master.key, settings) == first and first.name == "pi"
    assert len(master.authority.devices) == 1


def test_another_certificate_at_the_masters_address_changes_nothing(
    master: Master, settings: WorkerSettings, store: IdentityStore, tmp_path: Path
) -> None:
    """Whoever answers there, be it an impostor or a master that was set up anew, the identity stays."""
    key = master.key
    identity = opened(key, settings)
    master.acceptor.close()
    with running_master(tmp_path / "impostor", key.addresses[0].port) as impostor:
        for _ in range(2):
            expect(PairingError, "not the master that made this join key", lambda: opened(key, settings))
        assert impostor.links.empty() and impostor.authority.devices == ()
    assert store.find(key.fingerprint, "pi") == identity
    with running_master(tmp_path / "master", key.addresses[0].port) as again:
        assert opened(key, settings) == identity
        assert len(again.authority.devices) == 1


def test_nobody_at_the_masters_address_changes_nothing(
    master: Master, settings: WorkerSettings, store: IdentityStore
) -> None:
    identity = opened(master.key, settings)
    key = master.key
    master.acceptor.close()
    expect(LinkError, "cannot reach the master", lambda: opened(key, settings))
    assert store.find(key.fingerprint, "pi") == identity


def test_a_master_that_cannot_answer_now_changes_nothing(
    master: Master, settings: WorkerSettings, store: IdentityStore, tmp_path: Path
) -> None:
    """It refuses, but does not say that the device was removed."""
    identity = opened(master.key, settings)
    key, registry = master.key, tmp_path / "master" / "registry.json"
    content = registry.read_bytes()
    registry.write_bytes(b"damaged")
    expect(PairingError, "refused: the cluster's state in .* is damaged", lambda: opened(key, settings))
    assert store.find(key.fingerprint, "pi") == identity
    registry.write_bytes(content)
    assert opened(key, settings) == identity


def test_the_master_that_it_knows_can_remove_it(master: Master, settings: WorkerSettings, store: IdentityStore) -> None:
    old = master.key
    first = opened(old, settings)
    before = (first.folder / "device.pem").read_bytes()
    master.authority.revoke("pi")
    expect(PairingError, "this join key is wrong or no longer valid", lambda: opened(old, settings))
    assert store.find(old.fingerprint, "pi") is None
    second = opened(master.key, settings)
    assert second.name == "pi" and (second.folder / "device.pem").read_bytes() != before


def test_a_removed_device_with_a_new_key_joins_at_once(master: Master, settings: WorkerSettings) -> None:
    opened(master.key, settings)
    master.authority.revoke("pi")
    while not master.links.empty():
        master.links.get().socket.close()
    assert opened(master.key, settings).name == "pi"
    accepted = master.links.get(timeout=WAIT_S)
    assert f"{accepted.device.serial:x}" == master.authority.devices[-1].serial
    accepted.socket.close()


def test_a_device_that_has_just_joined_does_not_try_again(
    master: Master, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = []

    def join_and_be_removed(key: JoinKey, name: str, store: IdentityStore) -> Identity:
        joined.append(name)
        identity = find_or_join(key, name, store)
        master.authority.revoke(name)
        return identity

    monkeypatch.setattr(connect, "find_or_join", join_and_be_removed)
    expect(RemovedError, "no longer part", lambda: opened(master.key, settings))
    assert joined == ["pi"]


def test_an_address_that_was_named_is_called_instead(master: Master, settings: WorkerSettings) -> None:
    """The fingerprint is what counts, not where the key says that the master is."""
    key = replace(master.key, secret=bytes(16))
    identity = opened(master.key, settings)
    assert opened(key, settings) == identity, "the secret is for those who have no certificate"
