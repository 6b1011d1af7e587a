"""Orders for prefixes on their way: whole, and within the plan's bounds."""

import pytest

from tpi.cluster.mesh.frames import FrameBuffer
from tpi.cluster.mesh.passframes import pack_order, pack_rest, unpack_order
from tpi.cluster.prefixes.orders import Action, PrefixOrder, decode_order, encode_order
from tpi.errors import ProtocolError
from tpi.runtime.passes import CellCopy, Copies, SequenceCopy
from tpi.runtime.recurrent import StateMark

ID = "0123456789abcdef" * 2
N_CELLS, N_SEQUENCES = 128, 3
WHOLE = PrefixOrder(
    Action.RESTORE, "fox.1", ID, 2, 40, (96, 0), (StateMark(7, True), StateMark(40, False)), 32,
    Copies([CellCopy(0, 64, 5)], [SequenceCopy(1, 0, 9)]), 77,
)  # fmt: skip


def test_what_is_sent_comes() -> None:
    buffer = FrameBuffer(1000)
    n_bytes = pack_order(encode_order(WHOLE), buffer)
    content = unpack_order(buffer.payload[:n_bytes])
    assert content is not None and decode_order(content, N_CELLS, N_SEQUENCES) == WHOLE
    assert unpack_order(buffer.payload[: pack_rest(buffer)]) is None, "all logits of the last pass are wanted"
    with pytest.raises(ProtocolError, match="longer than the passes of this plan"):
        pack_order(encode_order(WHOLE), FrameBuffer(50))


@pytest.mark.parametrize(
    "more",
    [
        {"cells": (96, 1)},
        {"cells": (96, 128)},
        {"cells": (96,)},
        {"n_present": 31},
        {"n_present": 64},
        {"sequence": 3},
        {"marks": (StateMark(41, True),)},
        {"marks": (StateMark(0, True),)},
        {"copies": Copies((CellCopy(0, 120, 9),), ())},
        {"copies": Copies((CellCopy(-1, 32, 9),), ())},
        {"copies": Copies((CellCopy(0, 32, 0),), ())},
        {"copies": Copies((), (SequenceCopy(0, 3, 9),))},
        {"action": Action.CHECK},
        {"action": Action.CHECK, "cells": (), "n_tokens": 129},
        {"action": Action.CHECK, "cells": (), "copies": Copies((CellCopy(0, 120, 9),), ())},
        {"action": Action.PRUNE, "cells": (), "copies": Copies((), (SequenceCopy(0, 3, 9),))},
        {"name": "../fox"},
        {"name": "fox.part-1"},
        {"save_id": "x" * 32},
        {"action": "burn"},
        {"number": -1},
    ],
)
def test_what_does_not_fit_the_plan_is_refused(more: dict[str, object]) -> None:
    told = {name: getattr(WHOLE, name) for name in WHOLE.__struct_fields__} | more
    with pytest.raises(ProtocolError, match=r"does not fit the plan|cannot be understood"):
        decode_order(encode_order(PrefixOrder(**told)), N_CELLS, N_SEQUENCES)
