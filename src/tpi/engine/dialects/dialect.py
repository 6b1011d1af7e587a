"""What a family's dialect is made of. Data only."""

from dataclasses import dataclass

from tpi.engine.dialects.calls import CallFormat


@dataclass(frozen=True, slots=True)
class Tags:
    """What thinking stands between."""

    opener: str
    closer: str
    closing: str = ""
    """What is written to end it early; the ``closer`` where empty."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """Everything about a family that is no template."""

    calls: CallFormat
    thinking: Tags | None = None
    silent: tuple[str, ...] = ()
    """Marks that are no text, wherever they stand."""
    answer_opener: str = ""
    """What comes before an answer that is no call."""
    is_harmony: bool = False
    """Everything stands in channels, which ``harmony`` reads."""
    short_ids: bool = False
    """Calls are named by nine letters and digits."""
    named_ids: bool = False
    """Calls are named by their tool and their number in the chat."""

    example: str = ""
    """How a call looks, where templates write calls without telling of tools."""

    @property
    def marks(self) -> tuple[str, ...]:
        """All that a reader has to see of special tokens."""
        tags = () if self.thinking is None else (self.thinking.opener, self.thinking.closer)
        return (*tags, *self.calls.marks, *self.silent)
