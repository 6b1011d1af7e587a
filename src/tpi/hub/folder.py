"""A model's folder: its config, its tensors by their own names, and what of them is 8-bit floats with scales beside
them. Reads headers and JSON, no data. One thread.
"""

from collections.abc import Sequence
from pathlib import Path

from tpi.errors import ModelFileError, UnsupportedModelError
from tpi.hub.config import Config, read_json
from tpi.hub.safetensors import StoredTensor, read_header
from tpi.hub.values import Scaled, Stored, Values

CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_FILES = 10_000
_SCALES = ("_scale_inv", "_scale")
_UNUSED = (
    ".rotary_emb.inv_freq",
    ".input_scale",
    ".activation_scale",
    "_activation_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".input_scale_ub",
)
"""Ends of names of what belongs to other ways to compute."""
_F8 = ("F8_E4M3", "F8_E5M2")
_METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "mxfp4")
_FORMATS = ("float-quantized", "naive-quantized")


class HubFolder:
    """The folder at ``path``. ``files`` are those with tensors, by the numbers that ``StoredTensor.file`` has."""

    def __init__(self, path: Path) -> None:
        """Raises:
        ModelFileError: a file is missing or damaged.
        UnsupportedModelError: its weights are quantised in a way that cannot be read.
        """
        self.path = path
        values = read_json(path / CONFIG)
        self.config = Config(path / CONFIG, values)
        names = values.get("architectures")
        self.classes = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        self.files = (path / CONFIG, *_weight_files(path))
        self.tensors: dict[str, StoredTensor] = {}
        for number, file in enumerate(self.files[1:], start=1):
            found = read_header(file, number)
            if twice := self.tensors.keys() & found.keys():
                raise ModelFileError(f"tensor {min(twice)!r:.80} stands in two files of {path}")
            self.tensors.update(found)
        self._block = self._scale_block()
        self._used = set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def found_class(self, classes: Sequence[str]) -> str:
        """The one of these that the folder's config names."""
        return next(name for name in self.classes if name in classes)

    def find(self, name: str) -> StoredTensor:
        """A tensor as it lies there.

        Raises:
            ModelFileError: there is none.
            UnsupportedModelError: it is of a type that cannot be used.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{self.path} has no tensor {name}: it is incomplete, fetch it again")
        if not Stored.can_be(tensor):
            raise UnsupportedModelError(f"{self.path}: tensor {name} has type {tensor.dtype:.20}, which cannot be used")
        self._used.add(name)
        return tensor

    def values(self, name: str) -> Values:
        """A tensor's values, times its scales if it has any.

        Raises:
            ModelFileError, UnsupportedModelError: as :meth:`find`.
        """
        tensor = self.find(name)
        scale = next((name + end for end in _SCALES if name + end in self.tensors), None)
        if scale is None or tensor.dtype not in _F8:
            return Stored.of(tensor)
        return self._scaled(tensor, self.find(scale))

    def unused(self) -> list[str]:
        """Names of tensors that nobody has asked for, but for those that mean nothing here."""
        return sorted(name for name in self.tensors.keys() - self._used if not name.endswith(_UNUSED))

    def skip(self, *parts: str) -> None:
        """What has one of ``parts`` in its name need not be asked for."""
        self._used.update(name for name in self.tensors if any(part in name for part in parts))

    def _scaled(self, tensor: StoredTensor, scale: StoredTensor) -> Scaled:
        """One scale for each block, row, or matrix, as the shapes tell."""
        n_inner = tensor.shape[-2] if len(tensor.shape) > 1 else 1
        n_matrices, width = tensor.n_rows // max(1, n_inner), tensor.n_columns
        n_scales, (height, across) = scale.n_rows * scale.n_columns, self._block or (n_inner, width)
        n_down, n_across = -(-n_inner // max(1, height)), -(-width // max(1, across))
        if self._block and n_scales == n_matrices * n_down * n_across:
            return Scaled(Stored.of(tensor), Stored.of(scale, n_across), n_inner, self._block)
        if n_scales == tensor.n_rows:
            return Scaled(Stored.of(tensor), Stored.of(scale, 1), n_inner, (1, width))
        if n_scales == n_matrices:
            return Scaled(Stored.of(tensor), Stored.of(scale, 1), n_inner, (n_inner, width))
        raise UnsupportedModelError(
            f"{self.path}: {tensor.name} of {list(tensor.shape)} has scales of {list(scale.shape)}, which are neither "
            "for blocks nor rows nor all of it; fetch the model in BF16"
        )

    def _scale_block(self) -> tuple[int, int] | None:
        """Rows and columns that have one scale, where the config tells.

        Raises:
            UnsupportedModelError: the weights are quantised otherwise than in 8-bit floats or MXFP4.
        """
        found = self.config.part("quantization_config", "compression_config")
        method = found.text("quant_method")
        weights, is_known = found, not method or method in _METHODS
        if method == "compressed-tensors":
            groups = found.part("config_groups")
            weights = groups.part(*groups.keys()).part("weights")
            is_known = found.text("format") in _FORMATS and weights.text("type") == "float"
            is_known = is_known and weights.integer("num_bits", 0) == 8 and len(groups.keys()) == 1
            method = f"{method} ({found.text('format', '?')})"
        elif method == "modelopt":
            is_known = found.text("quant_algo").startswith("FP8")
            method = f"{method} ({found.text('quant_algo', '?')})"
        if not is_known:
            raise UnsupportedModelError(
                f"{self.path} is quantised by {method:.40}, which cannot be read: fetch the model in BF16 or in 8-bit "
                "floats, or as a GGUF file"
            )
        block = weights.list("weight_block_size") or weights.list("block_structure")
        if not block:
            return None
        if len(block) != 2 or not all(isinstance(size, int) and 0 < size < 1 << 31 for size in block):
            raise weights.impossible("weight_block_size")
        return block[0], block[1]


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files that make the model.

    Raises:
        ModelFileError: there are none, or one is missing.
    """
    if not (path / _INDEX).exists():
        if not (path / _SINGLE).exists():
            raise ModelFileError(
                f"{path} has no {_SINGLE} and no {_INDEX}: name a folder as model hubs have them, or a GGUF file"
            )
        return [path / _SINGLE]
    places = read_json(path / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(_is_name(name) for name in places.values()):
        raise ModelFileError(f"{path / _INDEX} is damaged: it does not tell which tensors are in which file")
    names = sorted(set(places.values()))
    if len(names) > _MAX_FILES:
        raise ModelFileError(f"{path / _INDEX} names {len(names):,} files, the limit is {_MAX_FILES:,}")
    if missing := [name for name in names if not (path / name).is_file()]:
        raise ModelFileError(f"{path} is incomplete: {missing[0]} is missing, and {len(missing) - 1} others; fetch it")
    return [path / name for name in names]


def _is_name(name: object) -> bool:
    """Whether it is the name of a file in the folder."""
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name
