"""What callers are told of the model that is served, from its file's header. Pure but for the file's time."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

from tpi.gguf.reader import Gguf, MetadataValue

_MOST_CHARS = 1 << 16
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


@dataclass(frozen=True)
class About:
    """``metadata`` is the file's own, without arrays; ``quantization`` the type of most of its bytes."""

    architecture: str
    n_parameters: int
    n_bytes: int
    n_layers: int
    n_embd: int
    n_context_train: int
    n_vocab: int
    quantization: str
    digest: str
    modified: datetime
    template: str
    metadata: dict[str, MetadataValue]

    @property
    def parameter_size(self) -> str:
        """In the field's short form, ``7.2B``."""
        for size, unit in _UNITS:
            if self.n_parameters >= size:
                return f"{self.n_parameters / size:.1f}{unit}"
        return str(self.n_parameters)


def describe_model(gguf: Gguf) -> About:
    """Of a file that has been read."""
    metadata = gguf.metadata
    architecture = str(metadata.get("general.architecture", ""))
    n_bytes = Counter[str]()
    for tensor in gguf.tensors.values():
        n_bytes[tensor.type.name] += tensor.n_bytes

    def own(name: str) -> int:
        value = metadata.get(f"{architecture}.{name}", 0)
        return value if isinstance(value, int) else 0

    template = metadata.get("tokenizer.chat_template", "")
    return About(
        architecture,
        sum(tensor.n_columns * tensor.n_rows for tensor in gguf.tensors.values()),
        n_bytes.total(),
        own("block_count"),
        own("embedding_length"),
        own("context_length"),
        gguf.array_lengths.get("tokenizer.ggml.tokens", 0),
        n_bytes.most_common(1)[0][0] if n_bytes else "",
        gguf.header_digest,
        datetime.fromtimestamp(gguf.paths[0].stat().st_mtime, UTC),
        template if isinstance(template, str) else "",
        {name: value for name, value in metadata.items() if isinstance(value, int | float) or _is_short(value)},
    )


def _is_short(value: MetadataValue) -> bool:
    return isinstance(value, str) and len(value) <= _MOST_CHARS
