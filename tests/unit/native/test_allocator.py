"""What is freed goes back to the system."""

import os
import subprocess
import sys

import pytest

KEEPS = """
import sys
from tpi.native.allocator import give_back_freed, keep_allocator_small
from tpi.observe import resident_bytes
if sys.argv[1] != "as it is":
    keep_allocator_small()
before = resident_bytes()
size = 30_000_000 if sys.argv[1] == "large" else 500_000
for _ in range(2):
    blocks = [bytearray(b"x") * size for _ in range(30_000_000 // size)]
    end = bytearray(b"x") * 400_000  # above them, and too large for a hole below
    del blocks
if sys.argv[1] == "given back":
    give_back_freed()
print(resident_bytes() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's allocator is known")
def test_freed_blocks_are_not_kept() -> None:
    def kept_bytes(how: str) -> int:
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        command = [sys.executable, "-c", KEEPS, how]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert kept_bytes("large") < 2_000_000
    assert kept_bytes("given back") < 2_000_000
    assert kept_bytes("as it is") > 10_000_000, "then the two calls are not needed"
