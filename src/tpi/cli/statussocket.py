"""The Unix socket at which a running master tells its cluster's state, and who asks there.

A connection gets one JSON object, ``{"status": …}`` or ``{"error": "…"}``, and its end. The folder's mode is 0700, the
socket's 0600: nobody but their owner. One thread serves, one connection at a time.
"""

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from tpi.cluster.reports import ClusterStatus
from tpi.errors import LinkError, ProtocolError, TpiError, UsageError

MAX_REPLY_BYTES = 4 << 20
_CLIENT_S = 5.0
_PAUSE_S = 0.05
_ASK_S = 30.0
_SOCKET = re.compile(r"^status-(\d+)\.sock$")
_MAX_PATH = 100


class StatusAnswer(msgspec.Struct, omit_defaults=True):
    """What the socket says; one of the two."""

    status: ClusterStatus | None = None
    error: str | None = None


class StatusServer:
    """Answers at ``FOLDER/status-PID.sock`` with what ``source`` gives, from construction to ``close``.

    ``source`` is called from the server's thread and may raise TpiError, which the client is told. So it is of anything
    else, which ``note`` is told as well: a defect here must not end anything.

    Raises:
        LinkError: the socket cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        source: Callable[[], ClusterStatus],
        pid: int | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._source, self._note = source, note
        self.path = folder / f"status-{pid or os.getpid()}.sock"
        self._closing = False
        try:
            self._socket = _listen(self.path)
        except OSError as error:
            raise LinkError(f"cannot listen for `tpi status` at {self.path}: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._serve, name="tpi-status", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stops answering and removes the socket; may be called again."""
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.path.unlink(missing_ok=True)
        self._thread.join(_CLIENT_S)

    def _serve(self) -> None:
        while not self._closing:
            try:
                client, _ = self._socket.accept()
            except OSError:  # closed, or too many files are open just now
                time.sleep(_PAUSE_S)
                continue
            with client, contextlib.suppress(OSError):
                client.settimeout(_CLIENT_S)
                client.sendall(self._answer())

    def _answer(self) -> bytes:
        try:
            return msgspec.json.encode(StatusAnswer(status=self._source()))
        except TpiError as error:
            return msgspec.json.encode(StatusAnswer(error=str(error)))
        except Exception as error:
            line = f"the state cannot be told ({type(error).__name__}: {error}): this is a defect of tpi"
            self._note(line)
            return msgspec.json.encode(StatusAnswer(error=line))


@dataclass(frozen=True)
class RunningMaster:
    """A process that has a status socket."""

    pid: int
    path: Path


def find_masters(folder: Path) -> list[RunningMaster]:
    """The masters that run, by process id; removes sockets that crashed ones left."""
    found = []
    for path in folder.glob("status-*.sock"):
        name = _SOCKET.match(path.name)
        if name is None:
            continue
        if _is_alive(int(name[1])):
            found.append(RunningMaster(int(name[1]), path))
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return sorted(found, key=lambda master: master.pid)


def choose_master(folder: Path, pid: int | None = None) -> RunningMaster:
    """The one master that runs, or the one with this process id.

    Raises:
        UsageError: there is none, or several.
    """
    masters = find_masters(folder)
    chosen = [master for master in masters if pid in (None, master.pid)]
    if not masters:
        raise UsageError("no cluster is running here: start one with `tpi serve` or `tpi run`")
    if not chosen:
        raise UsageError(f"process {pid} is no master; running are: {', '.join(str(m.pid) for m in masters)}")
    if len(chosen) > 1:
        raise UsageError(
            f"{len(chosen)} clusters run here: add --pid with one of {', '.join(str(m.pid) for m in chosen)}"
        )
    return chosen[0]


def ask(master: RunningMaster) -> ClusterStatus:
    """The state of the master's cluster; blocks for seconds at most.

    Raises:
        LinkError: the master does not answer, or says why it cannot.
        ProtocolError: the answer cannot be understood.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link, _short(master.path) as path:
            link.settimeout(_ASK_S)
            link.connect(path)
            data = _read_all(link)
    except OSError as error:
        raise LinkError(f"process {master.pid} does not tell its state: {error.strerror or error}") from error
    try:
        reply = msgspec.json.decode(data, type=StatusAnswer)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"process {master.pid} tells its state in another way: is it another version?") from error
    if reply.status is None:
        raise LinkError(reply.error or "the master gave no state")
    return reply.status


def _read_all(link: socket.socket) -> bytes:
    data = b""
    while len(data) <= MAX_REPLY_BYTES:
        more = link.recv(1 << 16)
        if not more:
            return data
        data += more
    raise OSError("the answer is too long")


def _listen(path: Path) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise OSError("this system has no Unix sockets")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as name:
            listener.bind(name)
        path.chmod(0o600)
        listener.listen(4)
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the socket that fits into its address, which has room for some hundred bytes only."""
    if len(os.fsencode(path)) <= _MAX_PATH:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
