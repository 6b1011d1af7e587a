"""Numbers as kernels make them: in 32 bits, step by step, so that graphs compute the same bits."""

import numpy as np


def inverse_root(number: float) -> float:
    """``1 / sqrt(number)``."""
    return float(np.float32(1) / np.sqrt(np.float32(number)))


def root(number: float) -> float:
    """``sqrt(number)``."""
    return float(np.sqrt(np.float32(number)))


def inverse(number: float) -> float:
    """``1 / number``."""
    return float(np.float32(1) / np.float32(number))
