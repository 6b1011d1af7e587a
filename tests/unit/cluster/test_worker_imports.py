"""What a worker loads of this folder stays small."""

import subprocess
import sys

WORKER_MODULES = (
    "pairing.acceptor",
    "allreduce.star",
    "pairing.connect",
    "control.link",
    "mesh.datalink",
    "pairing.identity",
    "pairing.joinkey",
    "control.messages",
)


def test_a_worker_loads_no_certificate_maker_until_it_pairs() -> None:
    imports = "; ".join(f"import tpi.cluster.{name}" for name in WORKER_MODULES)
    check = (
        "import sys; print([name for name in ('cryptography', 'tpi.cluster.pairing.authority') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", f"{imports}; {check}"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
