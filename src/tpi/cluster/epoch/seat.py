"""A rank's seat in an epoch: its mesh, its sums, and its host connected to them. The same on master and workers.

Opens and closes as one. The thread that runs passes owns it; ``interrupt`` is for any.
"""

from typing import Self

from tpi.cluster.allreduce.algorithm import Algorithm, Scale
from tpi.cluster.allreduce.algorithms import ALL_ALGORITHMS
from tpi.cluster.allreduce.arithmetic import Arithmetic
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.mpi import Mpi
from tpi.cluster.allreduce.oneshot import OneShot
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.control.messages import Plan
from tpi.cluster.epoch.footprint import few_tokens
from tpi.cluster.epoch.host import RankHost
from tpi.cluster.epoch.rankplan import rank_settings, widest_sum
from tpi.cluster.mesh.mesh import Mesh
from tpi.cluster.reports import Choice
from tpi.errors import LinkError, ProtocolError
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Float32Array


class Seat:
    """A context manager; ``close`` is idempotent. Takes the mesh over; the host stays the caller's."""

    def __init__(
        self,
        plan: Plan,
        host: RankHost,
        mesh: Mesh | None = None,
        choice: Choice | None = None,
        arithmetic: Arithmetic | None = None,
    ) -> None:
        """``mesh`` and ``choice`` None: this rank is alone.

        Raises:
            ProtocolError: the choice names what is not known here.
        """
        self.plan, self.host, self.mesh, self.choice = plan, host, mesh, choice
        self._is_closed = False
        self.sums = _make_sums(plan, mesh, choice, arithmetic or Arithmetic())
        try:
            if mesh is not None and host.trace is not None:
                mesh.log_to(host.trace)
            host.connect(self.sums, lambda: mesh.counts() if mesh is not None else (0, 0))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, work: Pass) -> Float32Array | None:
        """See ``RankHost.run``."""
        try:
            return self.host.run(work)
        finally:
            self.sums.tell_log()

    def interrupt(self, error: LinkError) -> None:
        """Ends what runs, and what comes, with ``error`` or ``Cancelled``."""
        if self.mesh is not None:
            self.mesh.shut_down(error)
        self.host.interrupt()

    def close(self) -> None:
        """Ends the links; the host can be connected again afterwards."""
        if self._is_closed:
            return
        self._is_closed = True
        self.host.disconnect()
        if self.mesh is not None:
            self.mesh.shut_down(LinkError("the epoch is over"))
        self.sums.close()
        if self.mesh is not None:
            self.mesh.close()


def _make_sums(plan: Plan, mesh: Mesh | None, choice: Choice | None, arithmetic: Arithmetic) -> Sums:
    if mesh is None or choice is None:
        return Sums(None, None)
    settings = rank_settings(plan, 1)
    width, few = widest_sum(plan), min(choice.max_few_tokens, few_tokens(settings))
    try:
        # What one rank alone contributes goes straight to who needs it.
        scale = Scale(PayloadFormat(choice.many.payload), settings.part_tokens * width, plan.n_parts, arithmetic)
        sums = Sums(mesh, OneShot(mesh, scale))
        # Both parts of a long pass come here, too: where a block sums a few values only.
        few_scale = Scale(PayloadFormat(choice.few.payload), few * width, plan.n_parts, arithmetic)
        sums.use_for_few(_make(choice.few.algorithm, mesh, few_scale), few * width)
        many_scale = Scale(PayloadFormat(choice.many.payload), settings.part_tokens * width, plan.n_parts, arithmetic)
        sums.use_for_many(_make(choice.many.algorithm, mesh, many_scale))
    except ValueError as error:
        raise ProtocolError(f"the master's choice of an allreduce cannot be used: {error}") from error
    if plan.n_parts > 1 and choice.many.algorithm != Mpi.name:  # which waits for no links, so nobody can in its place
        sums.overlap()
    return sums


def _make(name: str, mesh: Mesh, scale: Scale) -> Algorithm:
    if name not in ALL_ALGORITHMS:
        raise ValueError(f"there is no {name!r}")
    return ALL_ALGORITHMS[name](mesh, scale)
