"""Where the residual stream flows: for every block who adds to it, and who needs the sum. Pure arithmetic of a
partition.

A rank that holds part of a layer takes part in all sums of that layer, so that its residual stream stays whole. From a
layer to the next the ranks may change (pipelines, mixtures): then the next layer's ranks get the last sum of this one.
If one of them has no residual stream of its own, the lowest contributor adds its stream to what it contributes, and the
sum replaces everybody's: the stream is handed over.

The sum of a block that leaves something (``Block.leaves``) is for those alone who hold a part of it, as they go on.

After a block that is everybody's own (``Block.is_own``) nothing is added up: each rank of the layer has computed the
same stream. Where the next layer lies elsewhere, the lowest of them hands it over."""

from collections.abc import Sequence
from itertools import groupby

import msgspec

from tpi.model.blocks import Block
from tpi.model.partition import Partition


class Flow(msgspec.Struct, frozen=True):
    """What happens after one block, the same on all ranks."""

    block: int
    """Index in execution order."""
    contributors: tuple[int, ...]
    """Ranks that hold a part of the block, ascending, at least one."""
    receivers: tuple[int, ...]
    """Ranks that need the sum, ascending; none after the last block."""
    is_handed_over: bool
    """The sum holds the residual stream itself, and replaces it."""
    is_own: bool = False
    """Every contributor computes all of the residual stream for itself: nothing is added, nothing travels."""
    is_exact: bool = False
    """The sum is no part of the residual stream, but what its ranks go on with: its values travel in 32 bits."""

    @property
    def participants(self) -> tuple[int, ...]:
        """Contributors and receivers, ascending."""
        return tuple(sorted({*self.contributors, *self.receivers}))

    @property
    def is_local(self) -> bool:
        """Nothing has to travel."""
        return self.is_own or len(self.participants) == 1

    @property
    def travels(self) -> bool:
        """A sum, or the stream itself, goes from rank to rank."""
        return bool(self.receivers) and not self.is_local


def flows_of(blocks: Sequence[Block], partition: Partition) -> tuple[Flow, ...]:
    """The flow after every block, in execution order."""
    layers = [list(group) for _, group in groupby(blocks, key=lambda block: block.layer)]
    members = [_members(layer, partition) for layer in layers]
    flows = []
    for number, layer in enumerate(layers):
        here, after = members[number], (*members[number + 1 :], ())[0]
        for block in layer:
            is_last = block is layer[-1]
            receivers = after if is_last else here
            is_handed_over = is_last and not set(after) <= set(here)
            if block.is_own:
                flows.append(
                    Flow(block.index, here[:1], after, True)
                    if is_handed_over
                    else Flow(block.index, here, here, False, is_own=True)
                )
                continue
            contributors = partition.contributors(block.index)
            if block.leaves is not None:
                flows.append(Flow(block.index, contributors, contributors, False, is_exact=True))
                continue
            if block.experts is not None and len(contributors) > 1:  # the sum says whether they have chosen alike
                receivers = tuple(sorted({*receivers, *contributors}))
            flows.append(Flow(block.index, contributors, receivers, is_handed_over))
    return tuple(flows)


def flows_that_travel(blocks: Sequence[Block], partition: Partition) -> list[Flow]:
    """Those over which something goes from rank to rank."""
    return [flow for flow in flows_of(blocks, partition) if flow.travels]


def first_members(blocks: Sequence[Block], partition: Partition) -> tuple[int, ...]:
    """The ranks at which the residual stream begins: those that need the embeddings."""
    return _members([block for block in blocks if block.layer == blocks[0].layer], partition)


def n_stages(flows: Sequence[Flow]) -> int:
    """In how many places the residual stream is computed one after the other."""
    return 1 + sum(flow.is_handed_over for flow in flows)


def typical_flow(flows: Sequence[Flow]) -> Flow | None:
    """The flow over which ways to add up are tried: one with the most ranks that add; None if nothing is added."""
    summed = [flow for flow in flows if len(flow.contributors) > 1 and not (flow.is_own or flow.is_exact)]
    adding = [flow for flow in summed if not flow.is_handed_over] or summed
    return max(adding, key=lambda flow: len(flow.participants), default=None)


def _members(layer: Sequence[Block], partition: Partition) -> tuple[int, ...]:
    return tuple(sorted({rank for block in layer for rank in partition.contributors(block.index)}))
