"""What is measured of cutting is a whole rank's, as it is and quantised."""

from pathlib import Path

from bench.cutting import AS_IT_IS, Cut, measure
from tests.models import write_random_model


def test_a_rank_is_cut_as_it_is_and_smaller(tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "model.gguf", types="BF16")
    plain, small = (measure(Cut(model, 1, 2, quant)) for quant in (AS_IT_IS, "Q8_0"))
    assert plain["slices_mb"] == small["slices_mb"] and list(tmp_path.iterdir()) == [model]
    sizes = [float(str(found["shard_mb"])) for found in (plain, small)]
    assert 0.5 * sizes[0] < sizes[1] < 0.65 * sizes[0]
