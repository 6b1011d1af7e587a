"""What environment variables say."""

from pathlib import Path

import pytest

from tpi.cli.environment import (
    JOIN_KEY,
    MpiPlace,
    child_variables,
    find_folders,
    find_mpi_place,
    find_status_folder,
    join_key,
)
from tpi.errors import UsageError


def test_one_home_for_everything(tmp_path: Path) -> None:
    folders = find_folders({"TPI_HOME": str(tmp_path), "XDG_CACHE_HOME": "/elsewhere"})
    assert (folders.state, folders.shards, folders.cache) == (
        tmp_path / "state",
        tmp_path / "shards",
        tmp_path / "cache",
    )
    assert find_status_folder({"TPI_HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "state/run"


def test_the_folders_of_the_xdg_specification() -> None:
    variables = {"XDG_STATE_HOME": "/s", "XDG_DATA_HOME": "/d", "XDG_CACHE_HOME": "relative/is/ignored"}
    folders = find_folders(variables)
    assert folders.state == Path("/s/tpi")
    assert folders.shards == Path("/d/tpi/shards")
    assert folders.cache == Path.home() / ".cache/tpi"
    assert find_status_folder(variables) == Path("/s/tpi/run")


def test_the_runtime_folder_is_used_if_it_exists(tmp_path: Path) -> None:
    assert find_status_folder({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "tpi"


def test_no_home_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(UsageError, match="TPI_HOME"):
        find_folders({})


def test_children_do_not_inherit_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOIN_KEY, "tpi1-secret")
    assert join_key() == "tpi1-secret"
    assert JOIN_KEY not in child_variables() and "PATH" in child_variables()


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1"}, MpiPlace(5, 8, 1)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, MpiPlace(0, 2, 0)),
        ({"PMIX_RANK": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, MpiPlace(3, 4, 0)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None),
        ({"PMI_RANK": "x", "PMI_SIZE": "2"}, None),
        ({"SLURM_NTASKS": "4"}, None),
        ({}, None),
    ],
)
def test_the_place_among_the_processes_of_mpiexec(variables: dict[str, str], place: MpiPlace | None) -> None:
    """Who is alone is none of several."""
    assert find_mpi_place(variables) == place
