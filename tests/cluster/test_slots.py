"""What is kept of a text outlives the cluster that computed it: saved by all its ranks, restored by others'."""

from array import array
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.commands import Home
from tests.cluster.serving import Served, serve_on

TRAINED = Path(__file__).parents[1] / "trained"
PROMPT = "Once upon a time there was a fox who had a lantern, and the fox went into the wood. " * 3
FIXED = ("--shares", "1,1")


def ask(served: Served, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "n_predict": 12, "temperature": 0, "id_slot": 1, "n_probs": 1, **more}
    return dict(httpx.post(f"{served.root}/completion", json=body, timeout=60).raise_for_status().json())


def change(served: Served, action: str, slot: int = 1, name: str | None = "fox") -> tuple[int, dict[str, Any]]:
    body = {} if name is None else {"filename": name}
    answer = httpx.post(f"{served.root}/slots/{slot}?action={action}", json=body, timeout=60)
    return answer.status_code, answer.json()


@pytest.mark.parametrize("model", ["demo", "deltas"])
def test_a_saved_text_is_there_in_the_next_session(tmp_path: Path, cache: Path, model: str) -> None:
    file, folder = model if model == "demo" else str(TRAINED / f"{model}.gguf"), tmp_path / "saved"
    options = (*FIXED, "--slot-folder", str(folder), "--parallel", "3")
    with Home.several(2, tmp_path, cache) as homes:
        with serve_on(homes, file, *options, name=model) as served:
            first = ask(served, PROMPT)
            going_on = PROMPT + first["content"] + " And then"
            assert first["id_slot"] == 1 and first["timings"]["cache_n"] == 0
            status, saved = change(served, "save")
            assert status == 200 and saved["n_saved"] > first["tokens_evaluated"], saved
            expected = ask(served, going_on)
        assert (folder / "fox").stat().st_mode & 0o077 == 0
        parts = [path for home in homes for path in home.folder.glob("state/prefixes/*/*/fox.part-*")]
        tokens = array("I", [token["id"] for token in first["completion_probabilities"][:4]]).tobytes()
        assert tokens in (folder / "fox").read_bytes()
        assert len(parts) == 1 and tokens not in parts[0].read_bytes(), "the worker's own part, on its disk"
        killed = [part.with_name(".fox.abc.tpi-unfinished") for part in (folder / "fox", parts[0])]
        for path in killed:
            path.touch()
        with serve_on(homes, file, *options, name=model) as served:
            assert not any(path.exists() for path in killed), "what was being written when a process was killed"
            ask(served, "The crow sat in a tree.", id_slot=0)
            status, restored = change(served, "restore", 2)
            assert status == 200 and restored["n_restored"] == saved["n_saved"], restored
            assert restored["n_read"] == saved["n_written"]
            answer = ask(served, going_on, id_slot=2)
            assert answer["timings"]["cache_n"] >= first["tokens_evaluated"], answer["timings"]
            assert answer["content"] == expected["content"]
            assert_alike(answer, expected)
            damaged = bytearray(parts[0].read_bytes())
            damaged[len(damaged) // 2] ^= 1
            parts[0].write_bytes(damaged)
            status, refused = change(served, "restore", 0)
            assert status == 400 and "rank 1: " in refused["error"]["message"]
            assert "is damaged: its bytes differ" in refused["error"]["message"]
            parts[0].unlink()
            status, refused = change(served, "restore", 0)
            assert status == 400 and "rank 1: cannot read" in refused["error"]["message"]
            again = ask(served, going_on, id_slot=2)
            assert again["content"] == answer["content"], "nothing has changed by what was refused"
            assert again["timings"]["cache_n"] >= first["tokens_evaluated"]


def assert_alike(some: dict[str, Any], others: dict[str, Any]) -> None:
    """The same tokens, as probable."""
    for one, other in zip(some["completion_probabilities"], others["completion_probabilities"], strict=True):
        assert one["id"] == other["id"] and one["logprob"] == pytest.approx(other["logprob"], abs=0.25)
