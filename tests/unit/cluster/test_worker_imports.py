"""What a worker loads stays small."""

import subprocess
import sys

HEAVY = ("cryptography", "psutil", "rich", "typer", "pydantic", "tpi.cluster.pairing.authority", "tpi.cluster.master")


def test_a_worker_loads_no_certificate_maker_until_it_pairs() -> None:
    check = f"import tpi.cluster.worker, sys; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
