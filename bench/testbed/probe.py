"""What the self-check runs on an emulated device. A script of its own with the standard library only, so that it starts
at once: prints one JSON value, or serves until it is ended.

    probe.py serve ADDRESS PORT            echoes bytes ("e" first), or takes them and answers with how many ("t" first)
    probe.py ping ADDRESS PORT COUNT       half of each round trip of a byte, in seconds
    probe.py send ADDRESS PORT SECONDS     bits per second that arrived, after a start of half a second
    probe.py burn SECONDS                  share of a core that a busy loop gets
    probe.py read FILE                     bytes per second of direct reads
"""

import json
import mmap
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

_BLOCK = 1 << 18
_READ = 1 << 22
_START_S = 0.5
_GAP_S = 0.003


def serve(address: str, port: str) -> None:
    with socket.create_server((address, int(port))) as server:
        print(json.dumps("ready"), flush=True)
        while True:
            client, _ = server.accept()
            threading.Thread(target=_answer, args=(client,), daemon=True).start()


def _answer(client: socket.socket) -> None:
    with client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if client.recv(1) == b"e":
            while data := client.recv(_BLOCK):
                client.sendall(data)
            return
        total, started, ended = 0, 0.0, 0.0
        buffer = bytearray(_BLOCK)
        first = time.perf_counter()
        while n := client.recv_into(buffer):
            ended = time.perf_counter()
            if started:
                total += n
            elif ended - first > _START_S:
                started = ended
        client.sendall(struct.pack("<d", total * 8 / max(ended - started, 1e-9)))


def _connect(address: str, port: str, kind: bytes) -> socket.socket:
    sock = socket.create_connection((address, int(port)), 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(kind)
    return sock


def ping(address: str, port: str, count: str) -> list[float]:
    halves = []
    with _connect(address, port, b"e") as sock:
        for _ in range(int(count)):
            time.sleep(_GAP_S)
            started = time.perf_counter()
            sock.sendall(b"x")
            sock.recv(1)
            halves.append((time.perf_counter() - started) / 2)
    return halves


def send(address: str, port: str, seconds: str) -> float:
    data = bytes(_BLOCK)
    with _connect(address, port, b"t") as sock:
        end = time.perf_counter() + _START_S + float(seconds)
        while time.perf_counter() < end:
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = sock.recv(8, socket.MSG_WAITALL)
    return float(struct.unpack("<d", answer)[0])


def burn(seconds: str) -> float:
    started, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - started < float(seconds):
        pass
    return (time.process_time() - used) / (time.perf_counter() - started)


def read(file: str) -> float:
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, _READ) as memory:
        size, done, started = os.fstat(descriptor).st_size, 0, time.perf_counter()
        while done < size:
            done += os.preadv(descriptor, [memory], done)
    os.close(descriptor)
    return done / (time.perf_counter() - started)


if __name__ == "__main__":
    actions: dict[str, Callable[..., object]] = {"serve": serve, "ping": ping, "send": send, "burn": burn, "read": read}
    result = actions[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(result))
