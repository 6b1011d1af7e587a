"""Meshes of every kind."""

import pytest

from tests.unit.cluster.mesh.content import Open
from tpi.cluster.mesh.polling import SelectPoll
from tpi.native.exchange import load_helper
from tpi.testing.meshes import Connect, TlsPairs, open_meshes, socket_pair


@pytest.fixture(params=["python plain", "python TLS", "select TLS", "C plain", "C TLS"])
def opened(request: pytest.FixtureRequest, tls_pairs: TlsPairs, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens as many meshes as are wanted: in Python, by ``select`` where there is no ``poll``, or in C."""
    kind, connection = request.param.split()
    if kind == "select":
        monkeypatch.setattr("tpi.cluster.mesh.mesh.make_poll", SelectPoll)
    if kind == "C" and load_helper() is None:
        pytest.skip("there is no helper in C")
    connect: Connect = tls_pairs.connect if connection == "TLS" else socket_pair
    return lambda n_ranks: open_meshes(n_ranks, connect, with_helper=kind == "C")
