"""Layouts as people write them: what they say, and every way in which they can be wrong, in one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.model.specs import make_spec
from tpi.errors import UsageError
from tpi.model.architectures import blocks_of
from tpi.model.layout import Group, Layout, divide_layers, parse_layout
from tpi.model.partition import Partition, divide, is_whole

NAMES = ("master", "attic", "cellar")
SPEC = make_spec(n_layers=4)
BLOCKS = blocks_of(SPEC)


def divided(text: str, by_memory: tuple[float, ...] = (1, 1, 1)) -> Partition:
    return divide_layers(BLOCKS, parse_layout(text, SPEC.n_layers), NAMES, by_memory)


def holders(partition: Partition) -> list[tuple[int, ...]]:
    """Who holds some of each block."""
    return [partition.contributors(block.index) for block in BLOCKS]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("0-3:*", [Group(0, 4, ("*",), None)]),
        ("0-1:a 2-3:b,c", [Group(0, 1, ("a",), None), Group(2, 4, ("b", "c"), None)]),
        ("2-3:b,c 0-1:a", [Group(0, 1, ("a",), None), Group(2, 4, ("b", "c"), None)]),
        (
            "0:a 1-3:a=3,b=1.5 head:*",
            [Group(0, 0, ("a",), None), Group(1, 3, ("a", "b"), (3, 1.5)), Group(4, 4, ("*",), None)],
        ),
        ("  0-3:0,1\t head:1 ", [Group(0, 3, ("0", "1"), None), Group(4, 4, ("1",), None)]),
        ("0-3:a=1,b=0", [Group(0, 4, ("a", "b"), (1, 0))]),
    ],
)
def test_what_a_layout_says(text: str, groups: list[Group]) -> None:
    layout = parse_layout(text, 4)
    assert layout == Layout(tuple(groups))
    for layer in range(5):
        group = layout.group_of(layer)
        assert group.first <= layer <= group.last


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "layer 0 stands in no part; the model has layers 0 to 3"),
        ("nonsense", "'nonsense' is no part of a layout: write it as in 0-10:a 11-21:b,c"),
        ("0-3", "is no part of a layout"),
        ("0-3:", "is no part of a layout"),
        (":a", "is no part of a layout"),
        ("-3:a", "is no part of a layout"),
        ("0-:a", "is no part of a layout"),
        ("0-3:a,", "'' is no device"),
        ("0-3:a=", "'a=' is no device"),
        ("0-3:a=-1", "'a=-1' is no device"),
        ("0-3:a=nan", "'a=nan' is no device"),
        ("0-3:\x1b[2J", "is no device"),
        ("0-4:a", "'0-4:a' names layers that are not there: the model has 0 to 3"),
        ("4:a", "names layers that are not there"),
        ("3-0:a", "names layers that are not there"),
        ("0-2:a", "layer 3 stands in no part"),
        ("1-3:a", "layer 0 must stand in exactly one part"),
        ("0-1:a 3:b", "layer 2 must stand in exactly one part"),
        ("0-2:a 2-3:b", "layer 3 must stand in exactly one part"),
        ("0-3:a 0-3:b", "must stand in exactly one part"),
        ("head:a", "layer 0 must stand in exactly one part"),
        ("0-2:a head:b", "layer 3 must stand in exactly one part"),
        ("0-3:a head:b head:c", "must stand in exactly one part"),
        ("0-3:a=1,b", "give all devices of a part shares, one above 0, or none"),
        ("0-3:a=0,b=0", "give all devices of a part shares, one above 0, or none"),
    ],
)
def test_what_is_no_layout_of_this_model(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_layout(text, 4)
    message = str(caught.value)
    assert said in message and message.isprintable()


@given(st.text("0123456789-:*=., ahed", max_size=30))
def test_any_text_is_a_layout_or_refused(text: str) -> None:
    try:
        layout = parse_layout(text, 4)
    except UsageError as error:
        assert str(error).isprintable()
        return
    assert [group.first for group in layout.groups] == [0, *(group.last + 1 for group in layout.groups[:-1])]
    assert layout.groups[-1].last == 4


def test_layers_go_where_the_layout_says() -> None:
    partition = divided("0-1:attic 2:master,cellar 3:2 head:0,attic")
    assert holders(partition) == [(1,)] * 4 + [(0, 2)] * 2 + [(2,)] * 2 + [(0, 1)]
    assert is_whole(BLOCKS, partition)


def test_a_head_without_a_name_lies_with_the_last_layer() -> None:
    assert holders(divided("0-2:master 3:cellar"))[-1] == (2,)


def test_shares_are_those_of_the_layout_or_of_the_memory() -> None:
    by_layout, by_memory = divided("0-3:master=3,attic=1", (1, 1, 1)), divided("0-3:master,attic", (1, 3, 9))
    ffn = next(block.index for block in BLOCKS if block.name == "ffn")
    assert [share.first.size for share in by_layout.shares[ffn]] == [384, 128, 0]
    assert [share.first.size for share in by_memory.shares[ffn]] == [128, 384, 0]


def test_a_star_is_all_devices_by_memory() -> None:
    assert divided("0-3:*", (3, 2, 1)) == divide(BLOCKS, (3, 2, 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0-3:kitchen", "there is no device 'kitchen'; there are master, attic, cellar"),
        ("0-3:3", "there is no device '3'"),
        ("0-3:attic,1", "a device stands twice in attic,1"),
        ("0-3:attic,attic", "a device stands twice"),
    ],
)
def test_devices_that_are_not_there(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        divided(text)


some = st.sampled_from(["*", "0", "1,2", "master=2,cellar=1", "attic", "0,1,2", "2=5,0=0.5"])


@given(st.lists(some, min_size=5, max_size=5), st.lists(st.integers(1, 100).map(float), min_size=3, max_size=3))
def test_every_layout_holds_every_block_once(devices: list[str], by_memory: list[float]) -> None:
    text = " ".join(f"{layer}:{devices[layer]}" for layer in range(4)) + f" head:{devices[4]}"
    assert is_whole(BLOCKS, divided(text, tuple(by_memory)))
