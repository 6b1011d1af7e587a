"""Turns the bytes of tokens into text that is safe to show: never half a character.

Knows no vocabulary. Runs on the master's generation thread; one detokenizer per answer.
"""

import codecs


class Detokenizer:
    """Incremental UTF-8: bytes in, whole characters out.

    A character whose bytes come in several tokens is held back until it is complete. Bytes that cannot become a
    character any more turn into U+FFFD. However the bytes are cut, the texts joined are the same.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, piece: bytes) -> str:
        """Returns the characters that this piece completes; may be empty."""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """Ends the text: an unfinished character becomes U+FFFD. The next ``push`` starts a new text."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
