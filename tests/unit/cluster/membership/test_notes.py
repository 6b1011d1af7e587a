"""What the user should know: the latest lines, never more than a few."""

import threading

from tpi.cluster.membership.membership import MAX_NOTES, Notes


def test_new_lines_are_told_once() -> None:
    notes = Notes()
    assert notes.take_new() == [] and notes.latest() == ()
    notes.add("one")
    notes.add("two")
    assert notes.take_new() == ["one", "two"] and notes.take_new() == []
    notes.add("three")
    assert notes.take_new() == ["three"] and notes.latest() == ("one", "two", "three")


def test_of_many_lines_the_latest_are_kept_and_the_others_counted() -> None:
    notes = Notes()
    for number in range(300):
        notes.add(f"line {number}")
    latest = [f"line {number}" for number in range(300 - MAX_NOTES, 300)]
    assert list(notes.latest()) == latest
    assert notes.take_new() == ["268 lines before these were left out", *latest]
    assert notes.take_new() == [] and list(notes.latest()) == latest


def test_a_line_that_was_told_is_not_told_as_left_out() -> None:
    notes = Notes()
    for number in range(MAX_NOTES):
        notes.add(f"{number}")
    notes.take_new()
    for number in range(MAX_NOTES):
        notes.add(f"new {number}")
    assert notes.take_new() == [f"new {number}" for number in range(MAX_NOTES)]


def test_threads_lose_no_line() -> None:
    notes = Notes()
    taken: list[str] = []

    def add(first: int) -> None:
        for number in range(first, first + 200):
            notes.add(str(number))

    threads = [threading.Thread(target=add, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken += notes.take_new()
    for thread in threads:
        thread.join()
    taken += notes.take_new()
    left_out = sum(int(line.split()[0]) for line in taken if "left out" in line)
    assert left_out + sum("left out" not in line for line in taken) == 800
