"""The master opens an epoch: every rank prepares what the plan says, links are opened, measured, and sums chosen.

Runs in the master's thread; what workers answer comes as membership's news.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from tpi.cluster.allreduce.arithmetic import make_arithmetic
from tpi.cluster.control.messages import Begin, Measure, Measured, Plan, Prepared
from tpi.cluster.epoch.answers import ANSWER_LIMIT_S, Answers, Check, check_links, check_trials
from tpi.cluster.epoch.choosing import choose, network_of, trials_of, ways
from tpi.cluster.epoch.footprint import few_tokens
from tpi.cluster.epoch.linking import Linking
from tpi.cluster.epoch.measuring import measure, trials_limit_s, trials_limited, tried_flow
from tpi.cluster.epoch.planning import with_rank
from tpi.cluster.epoch.rankplan import rank_settings
from tpi.cluster.membership.membership import Membership
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.mesh.mesh import Mesh
from tpi.cluster.mesh.nativemesh import open_mesh
from tpi.cluster.mesh.relay import Relays
from tpi.cluster.reports import Choice, Detour, Report, SumWay
from tpi.config import MasterSettings
from tpi.errors import LinkError
from tpi.gguf.reader import Gguf
from tpi.model.architectures import blocks_of
from tpi.weights.strips import Strips

_STUCK = "made no progress", "is its disk all right?"


@dataclass(frozen=True)
class Opened:
    """What was opened, until an epoch takes it over. ``mesh`` and ``choice`` None: the master is alone.

    A context manager; ``close`` is idempotent."""

    mesh: Mesh | None
    relays: Relays
    choice: Choice | None
    detours: tuple[Detour, ...]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends links and relays."""
        if self.mesh is not None:
            self.mesh.close()
        self.relays.close()


class Opening:
    """One epoch from its plan to its first pass."""

    def __init__(
        self, membership: Membership, plan: Plan, settings: MasterSettings, report: Report, check: Check
    ) -> None:
        """``check`` is called about every 0.2 s and may raise."""
        self._cache, self._prepare_limit_s = settings.folders.cache, settings.prepare_limit_s
        self._membership, self._plan = membership, plan
        self._members = membership.ranked
        self._answers = Answers(membership, plan.epoch, report, check)

    def send_plans(self, gguf: Gguf, strips: Strips) -> None:
        """Tells every worker its rank and what to hold; they begin to prepare, from slices of ``gguf``, for which rows
        are read once for all, into ``strips``.

        Raises:
            LinkError: a worker is gone.
        """
        strips.expect(blocks_of(self._plan.spec), self._plan.partition)
        for member in self._members:
            member.serve_slices(gguf, self._plan.spec, strips)
            member.send(with_rank(self._plan, member.rank))

    def poll(self) -> None:
        """One look at what happened; between steps of the master's own preparation.

        Raises:
            LinkError: a worker is gone or cannot go on.
            ProtocolError: a worker sent what does not belong here.
        """
        self._answers.poll(0)

    def wait_prepared(self) -> None:
        """Until every worker holds its part.

        Raises:
            LinkError: a worker is gone, cannot go on, or makes no progress.
        """
        self._answers.wait_for_all(Prepared, self._answers.by_rank, self._prepare_limit_s, _STUCK)

    def open_links(self, wanted: str | None, known: Choice | None = None) -> Opened:
        """Opens the mesh, measures it, chooses; the workers begin. ``wanted`` names an algorithm, or None. What was
        ``known`` to be best before, on these links, is so if again all can be opened.

        Raises:
            LinkError: a worker is gone, or links or measurements take too long.
        """
        with ExitStack() as stack:
            relays = stack.enter_context(Relays())
            if not self._members:
                stack.pop_all()
                return Opened(None, relays, None, ())
            links: dict[int, DataLink] = {}
            stack.callback(_close_all, links)
            linking = Linking(self._membership, self._plan, self._answers)
            is_complete, detours = linking.relay(linking.connect(links), relays)
            mesh = stack.enter_context(open_mesh(0, links, self._plan.epoch, self._cache))
            self._membership.on_end = mesh.shut_down
            self._membership.check_alive()  # who ended before that did not shut it down
            choice = known if known is not None and is_complete else self._choose(mesh, is_complete, wanted)
            for member in self._members:
                member.send(Begin(self._plan.epoch, choice))
            stack.pop_all()
            return Opened(mesh, relays, choice, detours)

    def _choose(self, mesh: Mesh, is_complete: bool, wanted: str | None) -> Choice:
        plan = self._plan
        few = few_tokens(rank_settings(plan, 1))
        flow = tried_flow(plan)
        links = self._measure(mesh, Measure(plan.epoch))
        check_links(self._answers.by_rank, links, plan.partition.n_ranks)
        network = network_of(links, plan.partition.n_ranks)
        if flow is None:
            way = SumWay("one-shot", plan.payload, 1, network.latency_s)
            return Choice(way, way, few, network.latency_s, network.bytes_per_s)
        candidates = ways(plan, flow, network, wanted, is_complete, few)
        trials = trials_of(candidates)
        foretold = [way.predicted_s for found in candidates.values() for way in found]
        limit_s = trials_limit_s(zip(trials, foretold, strict=True))
        with trials_limited(mesh, limit_s, [member.title for member in self._members]):
            measured = self._measure(mesh, Measure(plan.epoch, tuple(trials)))
        check_trials(self._answers.by_rank, measured, len(trials))
        return choose(candidates, measured, network, few)

    def _measure(self, mesh: Mesh, message: Measure) -> list[Measured]:
        """All ranks measure at once; what each has seen, the master first."""
        for member in self._members:
            member.send(message)
        try:
            mine = measure(mesh, self._plan, message, make_arithmetic(self._cache))
        except LinkError as error:
            raise self._membership.wait_end() or error from None
        return [mine, *self._answers.wait_for_all(Measured, self._answers.by_rank, ANSWER_LIMIT_S).values()]


def _close_all(links: dict[int, DataLink]) -> None:
    for link in links.values():
        link.close()
