"""Texts as vectors: what the model makes of a text's tokens, normed as its head does it; and how well two texts go
together, where the model says that. Master only, any thread.

The residual stream comes from a pass, and its normalisation from the model's own head, played with numpy. The file says
(``pooling_type``) whether the last token's vector is the text's, the first one's, their mean, or none. Models here look
back only, so the last token alone has seen the whole text; that is what is taken where the file says nothing.
"""

from enum import IntEnum
from typing import Any

import numpy as np

from tpi.errors import ModelFileError, UnsupportedModelError, UsageError
from tpi.gguf.reader import Gguf
from tpi.model.architectures import CLASSES, blocks_of
from tpi.model.spec import ModelSpec
from tpi.runtime.ggml.dequantize import to_float
from tpi.runtime.protocols import Float32Array
from tpi.weights.modelfiles import ModelFiles

_CLASSES = f"{CLASSES}weight"
_MOST_CLASSES = 16
_MOST_VALUES = 1 << 20
_VALUE_BYTES = 52
"""In 32 bits, and twice as JSON: of a text, and of all."""


class Pooling(IntEnum):
    """What of a text's rows is its vector, by the numbers of model files."""

    NONE = 0
    MEAN = 1
    CLS = 2
    LAST = 3
    RANK = 4


class Embedder:
    """The parts of a model file that make vectors of the residual stream."""

    def __init__(self, gguf: Gguf, spec: ModelSpec) -> None:
        """Raises:
        ModelFileError: the file cannot be read.
        """
        self._gguf, self._head = gguf, blocks_of(spec)[-1]
        self._name, self._n_embd = spec.name, spec.n_embd
        self.pooling = _pooling_of(gguf)
        self._vectors: dict[str, Float32Array] = {}
        slots = {slot.role: slot.tensor.name for slot in self._head.slots if slot.tensor.n_rows == 1}
        self._norms = {role: self._tensor(name)[0] for role, name in slots.items()}

    def check_pooled(self) -> None:
        """Raises:
        UnsupportedModelError: the model is made for vectors of tokens, and none of a text.
        """
        if self.pooling is Pooling.NONE:
            raise UnsupportedModelError(f"{self._name} makes a vector of every token, and none of a text")

    def check_each(self, n_tokens: int) -> None:
        """Whether the vectors of so many tokens can be had at once.

        Raises:
            UsageError: they take more memory than there is for them.
        """
        n_most = _MOST_VALUES // self._n_embd
        if n_tokens > n_most:
            raise UsageError(
                f"the texts have {n_tokens} tokens together, {n_tokens - n_most} more than the {n_most} whose vectors "
                "a request can have: ask for fewer texts at once, or shorter ones"
            )

    @property
    def can_rank(self) -> bool:
        """It is made to tell how well two texts go together."""
        return self.pooling is Pooling.RANK and _CLASSES in self._gguf.tensors

    def vector(self, stream: Float32Array) -> Float32Array:
        """Of a row of the residual stream, f32 [n_embd], normed as the head does it, of length 1."""
        return _of_length_1(self.normed(stream))

    def score(self, stream: Float32Array) -> float:
        """How probable it is that two texts, of which the row is the end, go together: 0 to 1.

        Raises:
            ModelFileError: the file cannot be read any more.
        """
        scores = self._tensor(_CLASSES) @ self.normed(stream)
        if scores.size == 1:
            return float(scores[0])
        likely = np.exp(scores - scores.max())
        return float(likely[0] / likely.sum())

    def normed(self, streams: Float32Array) -> Float32Array:
        """Of rows of the residual stream, f32 [..., n_embd], as the head norms them."""
        steps: Any = _Norms(streams, self._norms)
        self._head.graph.build(steps)
        return np.asarray(steps.normed, np.float32)

    def _tensor(self, name: str) -> Float32Array:
        """A small one, f32 [rows, columns]; kept."""
        if name not in self._vectors:
            tensor = self._gguf.tensors[name]
            if tensor.n_rows > _MOST_CLASSES:
                raise ModelFileError(
                    f"{name} of {self._gguf.paths[0]} has {tensor.n_rows} rows, at most {_MOST_CLASSES} can be"
                )
            data = bytearray(tensor.n_bytes)
            with ModelFiles(self._gguf) as files:
                files.read_rows(tensor, 0, memoryview(data))
            values = np.empty(tensor.n_rows * tensor.n_columns, np.float32)
            to_float(tensor.type.id, bytes(data), values)
            self._vectors[name] = values.reshape(tensor.n_rows, tensor.n_columns)
        return self._vectors[name]


def vectors_bytes(gguf: Gguf) -> int:
    """What a process needs while it tells the vectors of as many tokens as a request can have, where the model makes
    them."""
    return _MOST_VALUES * _VALUE_BYTES if _pooling_of(gguf) is Pooling.NONE else 0


def _pooling_of(gguf: Gguf) -> Pooling:
    value = gguf.metadata.get(f"{gguf.metadata.get('general.architecture')}.pooling_type", int(Pooling.LAST))
    return Pooling(int(value)) if value in tuple(Pooling) else Pooling.NONE


class Mean:
    """The mean of the vectors of a text's tokens, as they come. One thread at a time."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder, self._sum, self._n = embedder, np.zeros(0), 0

    def take(self, first: int, streams: Float32Array) -> None:
        """See ``Request.on_streams``."""
        if not first:
            self._sum, self._n = np.zeros(streams.shape[1]), 0
        self._sum += self._embedder.normed(streams).sum(axis=0, dtype=np.float64)
        self._n += len(streams)

    @property
    def vector(self) -> Float32Array:
        """f32 [n_embd], of length 1."""
        return _of_length_1((self._sum / max(self._n, 1)).astype(np.float32))


class Each:
    """The vectors of all of a text's tokens, as they come. One thread at a time."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder, self._parts = embedder, list[Float32Array]()

    def take(self, first: int, streams: Float32Array) -> None:
        """See ``Request.on_streams``."""
        if not first:
            self._parts.clear()
        self._parts.append(self._embedder.normed(streams))

    @property
    def rows(self) -> Float32Array:
        """f32 [n_tokens, n_embd], of any length."""
        return np.concatenate(self._parts)


def _of_length_1(vector: Float32Array) -> Float32Array:
    return vector / np.float32(float(np.linalg.norm(vector)) or 1.0)


class _Norms:
    """The steps of a head (``model.steps.Steps``) up to its product: ``normed`` is what enters that."""

    def __init__(self, stream: Float32Array, vectors: dict[str, Float32Array]) -> None:
        self._stream, self._vectors = stream.astype(np.float64), vectors
        self.normed = self._stream

    def has(self, role: str) -> bool:
        return role in self._vectors

    def residual(self) -> Any:
        return self._stream

    def rms_norm(self, x: Any, role: str, eps: float) -> Any:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * self._vectors[role]

    def layer_norm(self, x: Any, role: str, eps: float) -> Any:
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + eps) * self._vectors[role]

    def matmul(self, _: str, x: Any) -> Any:
        self.normed = x
        return x

    def biased(self, role: str, x: Any) -> Any:
        return self.matmul(role, x)

    def plus(self, x: Any, role: str) -> Any:
        return x + self._vectors[role]

    def scale(self, x: Any, _: float) -> Any:
        return x

    def apply(self, _: Any, x: Any) -> Any:
        return x
