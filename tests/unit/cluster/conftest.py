"""One cluster's certificates for all tests of this folder."""

import pytest

from tpi.testing.meshes import TlsPairs


@pytest.fixture(scope="session")
def tls_pairs(tmp_path_factory: pytest.TempPathFactory) -> TlsPairs:
    return TlsPairs(tmp_path_factory.mktemp("cluster"))
