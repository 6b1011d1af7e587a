"""When frames of one link leave and come, for a trace. Used by the thread that drives the link."""

import time

from tpi.cluster.mesh.frames import NO_BLOCK, unpack_header
from tpi.trace import Kind, Trace


class FrameLog:
    """One link's: in each direction one frame is under way at a time."""

    def __init__(self, trace: Trace, peer: int) -> None:
        self._trace, self._peer = trace, peer
        self._begun_s = {Kind.SEND: 0.0, Kind.RECEIVE: 0.0}

    def begin(self, kind: Kind) -> None:
        """A frame's first bytes leave, or its header was read."""
        self._begun_s[kind] = time.monotonic()

    def end(self, kind: Kind, frame: memoryview) -> None:
        """The frame has left, or is complete."""
        header = unpack_header(frame)
        tag = header.tag
        self._trace.add(
            kind,
            self._begun_s[kind],
            time.monotonic(),
            tag.pass_id,
            -1 if tag.block == NO_BLOCK else tag.block,
            tag.part,
            self._peer,
            header.n_payload_bytes,
            tag.phase,
        )
