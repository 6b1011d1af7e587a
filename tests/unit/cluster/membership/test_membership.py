"""Who is here: a door that strangers cannot wear out, devices that are turned away, removed, or lost."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.unit.cli.states import rank_state
from tests.unit.cluster.membership.guests import (
    WAIT_S,
    Guests,
    goodbye,
    is_ended,
    is_silent,
    offer,
    open_guests,
    wait_until,
)
from tpi.cluster.control.messages import (
    ClockReply,
    ClockRequest,
    Failed,
    Goodbye,
    Offer,
    Prepared,
    Progress,
    Revoked,
    StatusReply,
    StatusRequest,
)
from tpi.cluster.membership import membership as membership_module
from tpi.cluster.membership.member import Member
from tpi.cluster.membership.membership import MAX_NOTES, Membership
from tpi.cluster.pairing.authority import Authority
from tpi.cluster.pairing.connect import open_data
from tpi.cluster.pairing.joinkey import JoinKey
from tpi.errors import LinkError, ProtocolError, UsageError

N_STRANGERS = 300


@pytest.fixture
def guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guests]:
    monkeypatch.setattr(membership_module, "_WATCH_S", 0.02)
    with open_guests(tmp_path) as guests:
        yield guests


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def accept(member: Member, offer: Offer) -> None:
    """Any offer will do."""


def test_strangers_leave_a_few_lines_and_nothing_else(guests: Guests) -> None:
    membership = guests.membership
    address = ("127.0.0.1", membership.addresses[0].port)
    threads, open_files = threading.active_count(), descriptors()
    for _ in range(N_STRANGERS):
        with socket.create_connection(address, WAIT_S) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    acceptor = membership._acceptor
    wait_until(lambda: not acceptor._handshakes and membership.notes._n_new == N_STRANGERS)
    assert len(membership.notes.latest()) == MAX_NOTES
    new = membership.notes.take_new()
    assert new[0] == f"{N_STRANGERS - MAX_NOTES} lines before these were left out" and len(new) == MAX_NOTES + 1
    assert all("no TLS handshake" in line and line.startswith("turned away 127.0.0.1:") for line in new[1:])
    wait_until(lambda: threading.active_count() == threads and descriptors() == open_files)
    assert membership.take(0) == [] and membership.members == []
    guests.member("pi")


def test_a_full_door_says_so(guests: Guests) -> None:
    membership = guests.membership
    membership.close_door()
    late = guests.come("late")
    assert goodbye(late) == "the cluster has all its workers: stop it to let others join"
    assert is_ended(late) and membership._arrived.empty() and membership.members == []
    wait_until(lambda: bool(membership.notes.latest()))
    assert membership.notes.take_new() == [
        "turned away late: the cluster has all its workers: stop it to let others join"
    ]
    membership.close_door(False)
    guests.member("late")


def test_no_more_than_are_wanted_and_none_twice(guests: Guests) -> None:
    membership = guests.membership
    links = {name: guests.come(name) for name in ("one", "two")}
    twice = guests.come("one")
    wait_until(lambda: membership._arrived.qsize() == 3)
    membership.admit(1)
    assert [member.name for member in membership.members] == ["one"]
    assert goodbye(links["two"]) == "the cluster has its 1 workers"
    assert goodbye(twice) == "this device has joined already"
    assert membership.members[0].end is None and is_silent(links["one"])


def test_an_offer_makes_a_member(guests: Guests) -> None:
    member, link = guests.member("pi")
    link.send(offer())
    ((who, message),) = guests.membership.take(WAIT_S)
    assert who is member
    guests.membership.take_offer(member, message, accept)
    assert member.offer == offer() and guests.membership.members == [member]


def test_an_offer_that_cannot_be_used_is_turned_away(guests: Guests) -> None:
    def refuse(member: Member, offer: Offer) -> None:
        raise UsageError("its shard is of another model")

    member, link = guests.member("pi")
    link.send(offer())
    ((_, message),) = guests.membership.take(WAIT_S)
    guests.membership.take_offer(member, message, refuse)
    assert goodbye(link) == "its shard is of another model" and guests.membership.members == []
    assert guests.membership.notes.latest() == ("turned away pi: its shard is of another model",)


def test_something_else_than_an_offer_is_turned_away(guests: Guests) -> None:
    member, link = guests.member("pi")
    link.send(Progress(1, 2, "cut"))
    ((_, message),) = guests.membership.take(WAIT_S)
    guests.membership.take_offer(member, message, accept)
    assert goodbye(link) == "pi sent Progress before its offer" and guests.membership.members == []


def test_who_goes_before_an_offer_leaves_no_trace(guests: Guests) -> None:
    member, link = guests.member("pi")
    link.send(Failed("no\x1b[2J memory"))
    link.close()
    ((_, news),) = guests.membership.take(WAIT_S)
    assert isinstance(news, LinkError) and str(news) == "pi cannot go on: no [2J memory"
    guests.membership.take_offer(member, news, accept)
    assert guests.membership.members == [] and guests.membership.notes.latest() == ()
    assert guests.membership.take(0.05) == [], "that its link has ended is no news any more"


def test_a_member_that_is_lost_ends_what_runs(guests: Guests) -> None:
    ended: list[LinkError] = []
    guests.membership.on_end = ended.append
    member, link = guests.member("pi", rank=2)
    guests.membership.check_alive()
    link.close()
    wait_until(lambda: bool(ended))
    assert str(ended[0]).startswith("pi (rank 2) is gone: pi (127.0.0.1:")
    assert member.end is ended[0] and len(ended) == 1
    with pytest.raises(LinkError, match=r"pi \(rank 2\) is gone"):
        guests.membership.check_alive()
    assert guests.membership.take(WAIT_S) == [(member, ended[0])]


def test_ranks_have_their_order(guests: Guests) -> None:
    for name, rank in (("c", 3), ("x", -1), ("a", 1), ("b", 2)):
        guests.member(name, rank)
    assert [member.name for member in guests.membership.ranked] == ["a", "b", "c"]
    assert [member.title for member in guests.membership.members] == ["c (rank 3)", "x", "a (rank 1)", "b (rank 2)"]


def test_a_device_that_is_removed_is_ended_and_the_others_are_told(guests: Guests, tmp_path: Path) -> None:
    """By another process: ``tpi remove`` works on the same folder."""
    ended: list[LinkError] = []
    guests.membership.on_end = ended.append
    removed, _ = guests.member("gone", rank=1)
    stays, link = guests.member("stays", rank=2)
    Authority.open(tmp_path / "state" / "authority").revoke("gone")
    assert link.receive(WAIT_S) == Revoked(f"{removed.device.serial:x}")
    wait_until(lambda: bool(ended))
    assert [str(error) for error in ended] == ["gone (rank 1) was removed from the cluster"]
    assert removed.end is ended[0] and stays.end is None
    with pytest.raises(LinkError, match="was removed"):
        guests.membership.check_alive()
    assert is_silent(link, 0.1) and len(ended) == 1, "it is told once"


def test_a_registry_that_cannot_be_read_removes_nobody(guests: Guests, tmp_path: Path) -> None:
    member, _ = guests.member("pi", rank=1)
    watched: list[None] = []
    guests.membership.on_watch = lambda: watched.append(None)
    (tmp_path / "state" / "authority" / "registry.json").write_bytes(b"half wr")
    n_watched = len(watched)
    wait_until(lambda: len(watched) > n_watched + 3)
    assert member.end is None and guests.membership._watcher.is_alive()


def test_links_between_two_plans_do_not_end_the_watch(guests: Guests) -> None:
    watched: list[None] = []

    def watch() -> None:
        watched.append(None)
        raise LinkError("the cluster is between two plans")

    guests.membership.on_watch = watch
    wait_until(lambda: len(watched) > 3)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_defect_ends_the_watch(guests: Guests, tmp_path: Path) -> None:
    watched: list[None] = []

    def watch() -> None:
        watched.append(None)
        raise IndexError("rank 77")

    guests.membership.on_watch = watch
    wait_until(lambda: len(watched) > 3)
    assert guests.membership.notes.latest() == ("devices are not watched as they should be: IndexError: rank 77",)
    member, _ = guests.member("gone", rank=1)
    Authority.open(tmp_path / "state" / "authority").revoke("gone")
    wait_until(lambda: member.end is not None)


def test_data_links_wait_where_they_are_looked_for(guests: Guests) -> None:
    identity, membership = guests.identity("pi"), guests.membership
    token = membership.tokens.issue("pi", 3)
    opened = open_data(JoinKey.decode(membership.join_key).addresses[0], identity, 3, token)
    link = membership.data_links.get(timeout=WAIT_S)
    assert link.device.name == "pi" and membership._arrived.empty()
    link.socket.close()
    opened.socket.close()


def test_figures_that_are_asked_for(guests: Guests) -> None:
    member, link = guests.member("pi", rank=1)
    first, second, clock = member.ask(StatusRequest), member.ask(StatusRequest), member.ask(ClockRequest)
    assert second == first + 1
    assert link.receive(WAIT_S) == StatusRequest(first)
    assert member.wait_answer(first, 0.02) is None and member.status is None
    link.send(StatusReply(second, rank_state(1)))
    link.send(ClockReply(clock, 5.0))
    asked_s = time.monotonic()
    told, read = member.wait_answer(second, WAIT_S), member.wait_answer(clock, WAIT_S)
    assert told is not None and told.message == StatusReply(second, rank_state(1))
    assert read is not None and read.message == ClockReply(clock, 5.0)
    assert abs(read.at_s - asked_s) < WAIT_S
    assert member.status == rank_state(1, "pi")
    link.send(StatusReply(first, rank_state(2)))  # too late, and nobody waits for it any more
    third = member.ask(StatusRequest)
    threading.Timer(0.05, link.close).start()
    assert member.wait_answer(third, WAIT_S) is None, "whoever waits is told that nothing will come"
    assert member._answers == {}
    with pytest.raises(LinkError):
        member.ask(StatusRequest)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_member_that_floods_is_lost(guests: Guests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "MAX_NEWS", 4)
    with open_guests(guests._folder / "small") as small:
        member, link = small.member("pi", rank=1)
        innocent, other = small.member("desk", rank=2)
        with pytest.raises(LinkError):
            while True:
                link.wait_send(Prepared(1), WAIT_S)
        wait_until(lambda: member.end is not None)
        assert "pi sends more than can be taken: 4 of its messages wait already" in str(member.end)
        with pytest.raises(LinkError, match="sends more than can be taken"):
            small.membership.check_alive()
        other.send(Prepared(1))
        wait_until(lambda: small.membership._news.qsize() == 6)
        assert len(small.membership.take(0)) == 6 and innocent.end is None
        assert not small.membership._n_news


def test_progress_that_nobody_looks_at_ends_nothing(guests: Guests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "MAX_NEWS", 4)
    member, link = guests.member("pi", rank=1)
    for number in range(20):
        link.send(Progress(number, 20, "cut"))
    link.send(Prepared(1))
    wait_until(lambda: guests.membership._news.qsize() == 3)
    news = [message for _, message in guests.membership.take(0)]
    assert news == [Progress(0, 20, "cut"), Progress(1, 20, "cut"), Prepared(1)] and member.end is None


def test_what_a_worker_tells_of_itself_is_its_own(guests: Guests) -> None:
    """Neither another's rank or name, nor what moves a terminal's cursor."""
    member, link = guests.member("pi", rank=1)
    state = msgspec.structs.replace(rank_state(77, "desk"), doing="\x1b[2J" + "x" * 99, disk_mode="a\nb")
    number = member.ask(StatusRequest)
    link.send(StatusReply(number, state))
    member.wait_answer(number, WAIT_S)
    assert member.status is not None and (member.status.rank, member.status.name) == (1, "pi")
    assert member.status.doing == " [2J" + "x" * 60 and member.status.disk_mode == "a b"


def test_everybody_is_told_why_it_ends(guests: Guests) -> None:
    links = [guests.member(name, rank)[1] for rank, name in enumerate(("a", "b"), start=1)]
    guests.membership.dismiss("the master was stopped")
    assert [goodbye(link) for link in links] == ["the master was stopped"] * 2
    assert guests.membership.members == []


def test_closing_leaves_nothing(tmp_path: Path) -> None:
    threads, open_files = threading.active_count(), descriptors()
    with open_guests(tmp_path) as guests:
        _, link = guests.member("here")
        waiting = guests.come("waiting")
        wait_until(lambda: not guests.membership._arrived.empty())
        guests.membership.close()
        guests.membership.close()
        assert goodbye(link) == "" and is_ended(waiting)
    wait_until(lambda: threading.active_count() == threads and descriptors() == open_files)


def test_a_port_that_cannot_be_opened_leaves_nothing(tmp_path: Path, guests: Guests) -> None:
    threads = threading.active_count()
    with pytest.raises(LinkError, match="is in use"):
        Membership(tmp_path / "other", "master", "127.0.0.1", guests.membership.addresses[0].port)
    assert threading.active_count() == threads


def test_a_callback_that_refuses_ends_the_link(guests: Guests) -> None:
    """As when a worker asks for more slices than it may."""
    member, link = guests.member("pi", rank=1)

    def refuse(member: Member, news: object) -> None:
        if not isinstance(news, LinkError):
            raise ProtocolError("that is too much")

    member._deliver = refuse
    link.send(Goodbye("x"))
    wait_until(lambda: member.end is not None)
    assert "was ended: that is too much" in str(member.end)
