"""What a folder comes to as a GGUF file: entries and tensors, put together by a family. Pure; one thread."""

import re
from collections.abc import Mapping

from tpi.errors import ModelFileError, UnsupportedModelError
from tpi.gguf.reader import GgufTensor, MetadataValue, Recipe
from tpi.gguf.types import TYPES_BY_NAME
from tpi.hub.folder import HubFolder
from tpi.hub.recipes import Encoded, Mxfp4
from tpi.hub.values import Scaled, Stacked, Stored, Values

_FLOATS = re.compile(r"\.(ffn_gate_inp|ffn_gate_inp_shexp|ssm_conv1d)\.weight$")
"""Matrices that kernels want in 32 bits."""


class Description:
    """``entries`` by their GGUF names without the architecture's, ``tensors`` by GGUF names."""

    def __init__(self, folder: HubFolder, architecture: str, entries: Mapping[str, MetadataValue]) -> None:
        """Raises:
        ModelFileError: the folder has no table of embeddings.
        """
        self.folder, self.architecture, self.entries = folder, architecture, dict(entries)
        self.tensors: dict[str, GgufTensor] = {}
        ends = [name for name in folder.tensors if re.fullmatch(r"(.*\.)?embed_tokens\.weight", name)]
        if not ends:
            raise ModelFileError(f"{folder.path} has no tensor embed_tokens.weight: it is incomplete, fetch it again")
        self.prefix = min(ends, key=len).removesuffix("embed_tokens.weight")
        """Before the names of all but the head's tensors."""

    def put(self, name: str, values: Values) -> None:
        """The tensor ``name`` has these values: as they are where they lie in a type that GGUF has, else made; small
        ones in 32 bits.

        Raises:
            UnsupportedModelError: they are packed in a way that is not this tensor's.
        """
        type_name = self._type_of(name, values)
        if type_name not in TYPES_BY_NAME:
            raise UnsupportedModelError(f"{self.folder.path}: {name} cannot be made of values of type {type_name}")
        if isinstance(values, Stored) and values.kind == type_name:
            tensor = GgufTensor(
                name, TYPES_BY_NAME[type_name], values.n_columns, values.n_rows, values.file, values.offset
            )
            self.tensors[name] = tensor
        else:
            self._put(name, type_name, values.n_columns, values.n_rows, Encoded(values, type_name))

    def put_mxfp4(self, name: str, blocks: Values, scales: Values) -> None:
        """The tensor ``name`` is of 4-bit values: 16 bytes and a scale for every 32.

        Raises:
            ModelFileError: there are not so many of one as of the other.
        """
        if (blocks.n_rows, blocks.n_columns) != (scales.n_rows, 16 * scales.n_columns):
            raise ModelFileError(f"{self.folder.path}: {name} has {blocks.n_rows} rows, and {scales.n_rows} of scales")
        self._put(name, "MXFP4", scales.n_columns * 32, scales.n_rows, Mxfp4(blocks, scales))

    def rename(self, names: Mapping[str, str], source: str, target: str) -> None:
        """What the folder has of these names after ``source``, as it is, under the others after ``target``."""
        for theirs, ours in names.items():
            if source + theirs in self.folder:
                self.put(target + ours, self.folder.values(source + theirs))

    def _put(self, name: str, type_name: str, n_columns: int, n_rows: int, recipe: Recipe) -> None:
        self.tensors[name] = GgufTensor(name, TYPES_BY_NAME[type_name], n_columns, n_rows, recipe=recipe)

    def _type_of(self, name: str, values: Values) -> str:
        is_small = values.n_rows == 1 or not name.endswith(".weight") or name.endswith("_norm.weight")
        if is_small or _FLOATS.search(name):
            return "F32"
        return _kept_type(values)


def _kept_type(values: Values) -> str:
    """The type that loses nothing, but for 8-bit floats with scales, which lose what BF16 does."""
    while not isinstance(values, Scaled):
        below = values.sources[0] if isinstance(values, Stacked) else getattr(values, "source", None)
        if below is None:
            break
        values = below
    if isinstance(values, Scaled) or values.kind.startswith("F8"):
        return "BF16"
    return values.kind
