"""Reads the model that a path names: a GGUF file, or a folder as model hubs have them. Reads no tensor data.

What a folder comes to is computed from its config and the headers of its safetensors files; the rows of its tensors are
made when somebody cuts slices (``weights.modelfiles``). Any thread.
"""

import hashlib
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import msgspec

from tpi.errors import UnsupportedModelError
from tpi.gguf.reader import Gguf, MetadataValue, read_gguf
from tpi.hub import families
from tpi.hub.description import Description
from tpi.hub.folder import CONFIG, HubFolder
from tpi.hub.talk import TALK_FILES, talk_entries

_VERSION = 1
"""Rises when the same folder comes to other bytes."""


class Family(Protocol):
    """What a file in ``families`` offers (the module satisfies this)."""

    CLASSES: tuple[str, ...]
    """Of the models, as ``architectures`` in their config names them."""

    def describe(self, folder: HubFolder) -> Description:
        """All that the folder comes to.

        Raises:
            ModelFileError, UnsupportedModelError: an entry or a tensor is missing or impossible.
        """
        ...


def _modules() -> Iterator[Family]:
    for found in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        module: Any = import_module(found.name)
        if hasattr(module, "CLASSES"):
            yield module


_BY_CLASS = {name: module for module in _modules() for name in module.CLASSES}


def read_model(path: Path) -> Gguf:
    """The model at ``path``.

    Raises:
        ModelFileError: it is missing, damaged or incomplete.
        UnsupportedModelError: it has data types, or is of a family, that cannot be read.
    """
    return read_folder(path) if path.is_dir() else read_gguf(path)


def path_of(gguf: Gguf) -> Path:
    """Where it was read from: what :func:`read_model` takes."""
    first = gguf.paths[0]
    return first.parent if first.name == CONFIG else first


def folder_name(path: Path) -> str:
    """What the model in a folder is called: as the folder is; in the cache of a hub's client, where folders have a
    revision's name, as the model is."""
    path = path.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.split("--")[-1]
    return path.name


def read_folder(path: Path) -> Gguf:
    """The folder as the GGUF file that it would make; raises as :func:`read_model`."""
    folder = HubFolder(path)
    family = next((_BY_CLASS[name] for name in folder.classes if name in _BY_CLASS), None)
    if family is None:
        raise UnsupportedModelError(
            f"{path} holds a {', '.join(folder.classes)[:80] or 'model of no class'}, which cannot be read; "
            f"those that can: {', '.join(sorted(_BY_CLASS))}; a GGUF file of it may do"
        )
    to = family.describe(folder)
    if left := folder.unused():
        raise UnsupportedModelError(
            f"{path}: {len(left)} tensors are not of a plain {to.architecture} model, e.g. {left[0]:.80}; not supported"
        )
    talk, lengths = talk_entries(folder)
    metadata: dict[str, MetadataValue] = {
        "general.architecture": to.architecture,
        "general.name": folder_name(path),
        **{f"{to.architecture}.{name}": value for name, value in to.entries.items()},
        **talk,
    }
    paths = (*folder.files, *(path / name for name in TALK_FILES if (path / name).is_file()))
    return Gguf(paths, metadata, lengths, to.tensors, _digest(folder, to))


def _digest(folder: HubFolder, to: Description) -> str:
    """Over all that decides how tensors are made, but for the data."""
    stored = [msgspec.json.encode((t.name, t.dtype, t.shape, t.file, t.offset)) for t in folder.tensors.values()]
    made = [msgspec.json.encode((t.name, t.type.name, t.n_columns, t.n_rows)) for t in to.tensors.values()]
    entries = msgspec.json.encode((_VERSION, to.architecture, sorted(to.entries.items())))
    return hashlib.sha256(b"\n".join((entries, *stored, *made))).hexdigest()
