"""Finding the model that an argument names, trying its kernels, naming its bytes."""

import re
import time
from importlib.resources import files
from pathlib import Path

from tpi.cli.display import Display
from tpi.errors import ModelFileError
from tpi.gguf.reader import Gguf
from tpi.hub.folder import CONFIG
from tpi.hub.reader import folder_name, path_of, read_model
from tpi.runtime.ggml.probe import probe_kernels
from tpi.weights.identity import model_digest

DEMO = "demo"
_SHORT_S = 1.0
"""What takes less is not worth a line."""


def find_model(name: str) -> Path:
    """The path of the file or folder called ``name``, or of the model in this package for the word ``demo``.

    Raises:
        ModelFileError: there is none.
    """
    path = Path(name)
    if name == DEMO and not path.is_file():
        demo = Path(str(files("tpi"))) / "assets" / "demo.gguf"
        if not demo.is_file():
            raise ModelFileError("the demo model is missing from this installation: install tpi again")
        return demo
    if path.is_dir() and not (path / CONFIG).is_file():
        raise ModelFileError(f"{path} is a folder without {CONFIG}: name the GGUF file in it, or a model hub's folder")
    if not path.exists():
        raise ModelFileError(
            f"there is no file {path}: name a GGUF file, a model hub's folder, or `{DEMO}`, the model that comes along"
        )
    return path


def model_name(path: Path) -> str:
    """What callers of an API call the model: its folder's name, or its file's without what numbers the parts of a split
    one."""
    if path.is_dir():
        return folder_name(path)
    return re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)


def open_model(path: Path, cache: Path) -> Gguf:
    """Reads the model's header and makes sure that this machine computes with its data types.

    Raises:
        ModelFileError, UnsupportedModelError: see ``read_model``.
        KernelError: a kernel is missing or broken.
    """
    gguf = read_model(path)
    probe_kernels(cache).require(sorted({tensor.type.name for tensor in gguf.tensors.values()}))
    return gguf


def find_digest(gguf: Gguf, cache: Path, display: Display) -> str:
    """The model's digest, kept in the folder ``cache``; reading all of a large model takes a minute, and is shown.

    Raises:
        ModelFileError: see ``model_digest``.
    """
    started_s = time.monotonic()

    def progress(n_done: int, n_bytes: int) -> None:
        if time.monotonic() - started_s > _SHORT_S:
            display.progress(f"reading {model_name(path_of(gguf))}", n_done, n_bytes)

    try:
        return model_digest(gguf, cache, progress)
    finally:
        display.settle()
