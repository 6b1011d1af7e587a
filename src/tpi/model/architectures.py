"""The architectures that can be computed, by their GGUF name. To add one: write its file, list it here."""

from pathlib import Path
from typing import Protocol

from tpi.errors import ModelFileError, UnsupportedModelError
from tpi.gguf.reader import Gguf
from tpi.gguf.types import TYPES_BY_ID
from tpi.model import llama
from tpi.model.metadata import Metadata, printable
from tpi.model.spec import Block, BlockKind, ModelSpec
from tpi.model.steps import Steps, V


class Architecture(Protocol):
    """What a file of an architecture offers (a module satisfies this)."""

    NAME: str

    def read_spec(self, gguf: Gguf, digest: str) -> ModelSpec: ...

    def check(self, meta: Metadata, spec: ModelSpec) -> None: ...

    def blocks(self, spec: ModelSpec) -> tuple[Block, ...]: ...

    def build(self, kind: BlockKind, has_rope_factors: bool, g: Steps[V]) -> V: ...


_MODULES: tuple[Architecture, ...] = (llama,)
_BY_NAME = {module.NAME: module for module in _MODULES}


def architecture(name: str) -> Architecture:
    """The architecture called ``name``.

    Raises:
        UnsupportedModelError: not in the list.
    """
    found = _BY_NAME.get(name)
    if found is None:
        raise UnsupportedModelError(f"architecture {name!r} is not supported; supported: {', '.join(_BY_NAME)}")
    return found


def read_spec(gguf: Gguf, digest: str) -> ModelSpec:
    """The model in ``gguf``; ``digest`` is the identity of its bytes.

    Raises:
        ModelFileError, UnsupportedModelError: see the architecture's own ``read_spec``.
    """
    name = gguf.metadata.get("general.architecture")
    return architecture(name if isinstance(name, str) else "").read_spec(gguf, digest)


def check_spec(spec: ModelSpec, file: Path) -> None:
    """Refuses a spec that did not come from :func:`read_spec` here, but from ``file``, e.g. a shard.

    Raises:
        ModelFileError, UnsupportedModelError: see the architecture's own ``check``.
    """
    for name, tensor in spec.tensors.items():
        kind = TYPES_BY_ID.get(tensor.type_id)
        if kind is None or tensor.name != name or tensor.n_columns % kind.block_elements:
            raise ModelFileError(f"{file}: tensor {printable(name)} has an impossible type or size")
    architecture(spec.architecture).check(Metadata(Gguf((file,), {}, {}, {}, ""), spec.architecture), spec)


def blocks_of(spec: ModelSpec) -> tuple[Block, ...]:
    """All blocks of the model in execution order."""
    return architecture(spec.architecture).blocks(spec)
