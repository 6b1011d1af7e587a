"""What an answer may be made of: before each of its tokens, which ones are allowed. A grammar is one.

Nothing here knows grammars. Masks are computed by a helper thread while the ranks compute; everything else is the
scheduler's thread.
"""

from concurrent.futures import Executor, Future
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tpi.errors import ConstraintError

Allowed: TypeAlias = npt.NDArray[np.bool_] | None
"""By token, whether it is allowed, [n_tokens]: as many as the vocabulary has; None: all are."""


class Constraint(Protocol):
    """Of one answer. It is asked in turns: a mask, then the token that was drawn from it, by one thread at a time.

    A ``ConstraintError`` from any of these ends this answer, and no other.
    """

    def mask(self) -> Allowed:
        """Which tokens may come next; those that end an answer too, where it may end. Not to be changed later."""

    def accept(self, token: int) -> None:
        """This one came."""

    @property
    def is_complete(self) -> bool:
        """Nothing more may come: the answer ends without another token."""


class Masks:
    """Of one answer: the next mask is on its way as soon as it can be."""

    def __init__(self, constraint: Constraint, helper: Executor) -> None:
        self._constraint, self._helper = constraint, helper
        self._next: Future[Allowed] = helper.submit(constraint.mask)

    def wait(self) -> Allowed:
        """The mask of the next token.

        Raises:
            ConstraintError: no token is allowed, or what the constraint raises.
        """
        mask = self._next.result()
        if mask is not None and not mask.any():
            raise ConstraintError("what the answer must look like allows no next token: ask for another form")
        return mask

    def accept(self, token: int) -> bool:
        """A token was drawn; whether the answer is complete. Raises what the constraint does."""
        self._constraint.accept(token)
        if self._constraint.is_complete:
            return True
        self._next = self._helper.submit(self._constraint.mask)
        return False
