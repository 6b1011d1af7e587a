"""The architectures that can be computed, by their GGUF name: each is a file in ``families``."""

import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import msgspec

from tpi.errors import ModelFileError, UnsupportedModelError
from tpi.gguf.reader import Gguf, GgufTensor
from tpi.gguf.types import TYPES_BY_ID
from tpi.model import families
from tpi.model.blocks import Block
from tpi.model.inputs import Model, ModelInputs
from tpi.model.metadata import Metadata, printable
from tpi.model.quantization import QUANTS
from tpi.model.spec import Dimensions, Entry, ModelSpec, TensorSpec
from tpi.model.tensors import EMBEDDING, Tensors

_MAX_ENTRY = 1 << 10
"""Values of an array that a spec keeps; one for each layer, not one for each token."""

CLASSES = "cls.output."
"""What tells of a text's vector how well the two parts of the text go together, where a model does."""
_PREDICTING = "nextn_predict_layers"
"""How many layers at the end predict further tokens; they are no part of the model proper."""

_NAMELESS = ("xielu.",)
"""How entries begin that are an architecture's own, and come without its name."""

_MAX_BYTES = 1 << 42
"""Of a model that somebody else describes; more than any has."""


class Architecture(Protocol):
    """What a file in ``families`` offers (the module satisfies this)."""

    NAMES: tuple[str, ...]
    """Of the architectures that are computed so."""

    def model(self, meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
        """All blocks in execution order, the head last, and what enters them.

        Raises:
            ModelFileError: an entry or a tensor is missing or impossible.
            UnsupportedModelError: the model has something that is not computed.
        """
        ...


def _modules() -> Iterator[Architecture]:
    for found in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        module: Any = import_module(found.name)
        yield module


_BY_NAME = {name: module for module in _modules() for name in module.NAMES}


def read_spec(gguf: Gguf, digest: str) -> ModelSpec:
    """The model in ``gguf``; ``digest`` is the identity of its bytes.

    Raises:
        ModelFileError: a required entry or tensor is missing or has an impossible value.
        UnsupportedModelError: the architecture, or something that the model has, is not computed.
    """
    found = gguf.metadata.get("general.architecture")
    architecture = found if isinstance(found, str) else ""
    _find(architecture)
    entries = _entries_of(gguf, f"{architecture}.")
    meta = Metadata(gguf.paths[0], architecture, entries)
    tensors = {name: _spec_of(tensor) for name, tensor in gguf.tensors.items()}
    title = gguf.metadata.get("general.name")
    spec = ModelSpec(
        **msgspec.structs.asdict(_dimensions(meta, Tensors(meta, tensors))),
        architecture=architecture,
        name=printable(title if isinstance(title, str) else meta.file.stem),
        digest=digest,
        entries=entries,
        tensors=tensors,
        quant=gguf.quant,
    )
    _model(meta, spec)
    return spec


def check_spec(spec: ModelSpec, file: Path) -> None:
    """Refuses a spec that did not come from :func:`read_spec` here, but from ``file``, e.g. a shard.

    Raises:
        ModelFileError, UnsupportedModelError: see the architecture's own ``blocks``.
    """
    for name, tensor in spec.tensors.items():
        kind = TYPES_BY_ID.get(tensor.type_id)
        if kind is None or tensor.name != name or tensor.n_columns % kind.block_elements:
            raise ModelFileError(f"{file}: tensor {printable(name)} has an impossible type or size")
    n_bytes = sum(tensor.n_bytes for tensor in spec.tensors.values())
    if spec.name != printable(spec.name) or not 0 <= n_bytes < _MAX_BYTES:
        raise ModelFileError(f"{file}: a model of {n_bytes:,} bytes called {printable(spec.name)} cannot be")
    if spec.quant and spec.quant not in QUANTS:
        raise ModelFileError(f"{file}: matrices cannot be quantised to {printable(spec.quant, 20)}")
    _find(spec.architecture)
    meta = Metadata(file, spec.architecture, spec.entries)
    for name, value in msgspec.structs.asdict(_dimensions(meta, Tensors(meta, spec.tensors))).items():
        meta.require(getattr(spec, name) == value, name, getattr(spec, name))
    _model(meta, spec)


def blocks_of(spec: ModelSpec) -> tuple[Block, ...]:
    """All blocks of a model that was checked, in execution order."""
    return model_of(spec).blocks


def inputs_of(spec: ModelSpec) -> ModelInputs:
    """What enters a model that was checked."""
    return model_of(spec).inputs


def model_of(spec: ModelSpec) -> Model:
    """All of a model that was checked."""
    return _model(Metadata(Path(spec.name), spec.architecture, spec.entries), spec)


def _find(name: str) -> Architecture:
    found = _BY_NAME.get(name)
    if found is None:
        raise UnsupportedModelError(f"architecture {name!r} is not supported; supported: {', '.join(sorted(_BY_NAME))}")
    return found


def _entries_of(gguf: Gguf, prefix: str) -> dict[str, Entry]:
    return {
        key.removeprefix(prefix): value
        for key, value in gguf.metadata.items()
        if key.startswith((prefix, *_NAMELESS)) and not (isinstance(value, tuple) and len(value) > _MAX_ENTRY)
    }


def _spec_of(tensor: GgufTensor) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.type.id, tensor.n_columns, tensor.n_rows)


def _dimensions(meta: Metadata, tensors: Tensors) -> Dimensions:
    embedding, n_embd = tensors.find(EMBEDDING), meta.positive("embedding_length")
    shape = embedding.n_columns, embedding.n_rows
    meta.require(shape[0] == n_embd and 0 < shape[1] < 1 << 31, embedding.name, shape)
    n_layers, n_context_train = meta.positive("block_count"), meta.positive("context_length")
    n_predicting = meta.integer(_PREDICTING, 0)
    meta.require(n_predicting < n_layers, _PREDICTING, n_predicting)
    n_layers -= n_predicting
    return Dimensions(n_layers, n_embd, embedding.n_rows, n_context_train, embedding)


def _model(meta: Metadata, spec: ModelSpec) -> Model:
    """All of the model; every tensor is used.

    Raises:
        ModelFileError, UnsupportedModelError: see ``Architecture.model``; there are more tensors than the architecture
            has.
    """
    if not meta.flag("attention.causal", True):
        raise UnsupportedModelError(f"{meta.file}: every token sees all others (attention.causal); not supported")
    tensors = Tensors(meta, spec.tensors)
    tensors.find(EMBEDDING)
    tensors.skip(CLASSES)  # the master's alone
    model = _find(spec.architecture).model(meta, spec, tensors)
    skipped = sum(tensors.skip(f"blk.{spec.n_layers + number}.") for number in range(meta.integer(_PREDICTING, 0)))
    if skipped:
        remark = f"{spec.name}: its heads that predict further tokens ({skipped} tensors) are left out"
        model = replace(model, remarks=(*model.remarks, remark))
    blocks = tuple(replace(block, slots=tensors.scaled(block.slots)) for block in model.blocks)
    model = replace(model, blocks=blocks)
    if unused := tensors.unused:
        raise UnsupportedModelError(
            f"{meta.file}: {len(unused)} tensors are not of a plain {spec.architecture} model, e.g. {min(unused)}; "
            "not supported"
        )
    return model
