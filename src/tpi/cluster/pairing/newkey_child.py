"""The child of ``newkey``: reads a name from standard input, writes the length of a key (u32, little-endian), the key
as PEM, and a signing request as DER.
"""

import sys

from tpi.cluster.pairing.certificates import key_pem, make_signing_request, new_key


def main() -> None:
    """Makes one key."""
    key = new_key()
    pem = key_pem(key)
    request = make_signing_request(key, sys.stdin.buffer.read().decode())
    sys.stdout.buffer.write(len(pem).to_bytes(4, "little") + pem + request)


if __name__ == "__main__":
    main()
