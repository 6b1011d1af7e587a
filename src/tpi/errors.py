"""Every error that a user can cause or see: one line each, with the value, the limit and what to do.

The command line prints ``str(error)`` after ``tpi: `` and exits with ``error.exit_code``. Anything that is not a
``TpiError`` is a defect of this program. No input or output happens here.
"""


class TpiError(Exception):
    """Base of all errors that are reported in one line and without a traceback."""

    exit_code = 1


class UsageError(TpiError):
    """An argument or an environment variable has a value that cannot be used."""

    exit_code = 2


class ContextError(UsageError):
    """A prompt is ``n_over`` tokens longer than the context has room for."""

    def __init__(self, message: str, n_over: int) -> None:
        super().__init__(message)
        self.n_over = n_over


class ConstraintError(UsageError):
    """What an answer must look like cannot be kept to."""


class ModelFileError(TpiError):
    """A model or shard file is missing, damaged, or not what its name says."""


class UnsupportedModelError(TpiError):
    """The file is well-formed, but this program cannot compute the model in it."""


class ChecksumError(TpiError):
    """Bytes on disk or from a link differ from their checksum."""


class MemoryBudgetError(TpiError):
    """The memory that was allowed is less than what is needed."""


class DiskSpaceError(TpiError):
    """A file system has too little room for what must be written."""


class KernelError(TpiError):
    """The compute kernels are missing, of another version, or fail when tried."""


class PairingError(TpiError):
    """A join key is malformed or wrong, or a certificate is not of this cluster."""


class RemovedError(PairingError):
    """The master says that this device is no longer part of its cluster."""


class ProtocolError(TpiError):
    """A peer sent something that this version does not expect."""


class LinkError(TpiError):
    """A peer cannot be reached, went silent or went away."""


class Dismissed(LinkError):
    """The master has ended the session, and has said why."""


class LinkTimeoutError(LinkError):
    """A peer that is not known to be gone has not said what was waited for."""


class MissingDevicesError(LinkTimeoutError):
    """Fewer devices have joined than were waited for."""


class ProcessError(LinkError):
    """A process of this machine cannot be started, or has ended."""


class NumericError(TpiError):
    """A computation gave values that are not finite."""


class BusyError(TpiError):
    """There is more to do than can be taken in: whoever asks may ask again later."""


class Cancelled(TpiError):
    """The user stopped what was going on."""

    exit_code = 130
