"""The identity of a model's bytes: what shards and plans compare. Reads a few KB per tensor; any thread."""

import hashlib
import os

from tpi.gguf.reader import Gguf
from tpi.weights.files import open_for_reading, read_exactly

SAMPLE_BYTES = 4096


def model_digest(gguf: Gguf) -> str:
    """64 hex digits that name the model's bytes without reading all of them.

    The sha256 over, in this order: the digest of all headers (metadata, tensor names, shapes, types, places), the size
    of every file as 8 bytes little-endian, and of every tensor in the header's order ``SAMPLE_BYTES`` from its start,
    its middle and its end (overlapping or fewer in a smaller tensor). Two files of one name, shape and quantisation but
    other weights differ in every tensor, so samples tell them apart; damage between the samples is found by the
    checksums of shards instead. Copies of a file have the same digest, another split of the same model has not.

    Raises:
        ModelFileError: a file is gone or shorter than it was.
    """
    digest = hashlib.sha256(bytes.fromhex(gguf.header_digest))
    descriptors: list[int] = []
    try:
        for path in gguf.paths:
            descriptors.append(open_for_reading(path))
            digest.update(os.fstat(descriptors[-1]).st_size.to_bytes(8, "little"))
        for tensor in gguf.tensors.values():
            size = min(SAMPLE_BYTES, tensor.n_bytes)
            sample = memoryview(bytearray(size))
            for place in (0, (tensor.n_bytes - size) // 2, tensor.n_bytes - size):
                read_exactly(descriptors[tensor.file], gguf.paths[tensor.file], tensor.offset + place, sample)
                digest.update(sample)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return digest.hexdigest()
