"""Plans that came over a link: right ones pass, impossible ones are one line."""

from typing import Any

import msgspec
import pytest

from tests.unit.model.specs import make_spec
from tpi.cluster.control.messages import Plan, decode_message, encode_message
from tpi.cluster.epoch.plancheck import check_plan
from tpi.errors import ProtocolError
from tpi.model.architectures import blocks_of
from tpi.model.partition import divide
from tpi.model.spec import TensorSpec

SPEC = make_spec()
PARTITION = divide(blocks_of(SPEC), [3, 0, 1])


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "epoch": 1, "rank": 2, "spec": SPEC, "partition": PARTITION, "n_cells": 64, "max_tokens": 8, "max_sampled": 8,
        "payload": "f16", "kv_type": "F16",
    }  # fmt: skip
    return Plan(**values | changes)


def test_a_plan_that_can_be_followed() -> None:
    there = decode_message(encode_message(plan())[4:])
    assert isinstance(there, Plan)
    check_plan(there)


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 3},
        {"payload": "f64"},
        {"kv_type": "Q4_1"},
        {"partition": divide(blocks_of(make_spec(n_layers=1)), [1, 1, 1])},
        {"partition": msgspec.structs.replace(PARTITION, n_ranks=4)},
        {"partition": msgspec.structs.replace(PARTITION, shares=())},
        {"spec": make_spec(entries={"attention.layer_norm_rms_epsilon": -1.0})},
        {"spec": msgspec.structs.replace(SPEC, architecture="camel")},
        {"spec": msgspec.structs.replace(SPEC, tensors={})},
        {"spec": msgspec.structs.replace(SPEC, n_layers=1 << 30)},
        {"spec": make_spec(entries={"attention.head_count": 0})},
        {
            "spec": msgspec.structs.replace(
                SPEC, tensors=SPEC.tensors | {"output.weight": TensorSpec("output.weight", 99, 256, 300)}
            )
        },
    ],
)
def test_plans_that_nobody_can_follow(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="the master's plan cannot be used") as caught:
        check_plan(plan(**changes))
    assert "\n" not in str(caught.value)
