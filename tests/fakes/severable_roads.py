"""Roads between node processes of one machine that a test can cut and mend, as a dead router would.

Each node listens on a port of its own and announces another one, its gate here; peers reach it through that gate alone.
A gate asks the system which process has dialed it, so that some pairs can be cut while others go on. A cut road is
silent: it carries nothing, neither bytes nor the end of a connection, until it is mended.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Collection
from contextlib import suppress

import psutil

PIECE_BYTES = 65536


class SeverableRoads:
    """Gates for any number of nodes, served by threads until `close`."""

    def __init__(self, process_of: Callable[[str], int]) -> None:
        """`process_of` tells the process id of a node, asked when it has dialed or is dialed."""
        self._process_of = process_of
        self._gates: dict[str, socket.socket] = {}
        self._inside: dict[str, int] = {}
        self._halves: tuple[frozenset[str], ...] = ()
        self._changed = threading.Condition()
        self._sockets: list[socket.socket] = []
        self._closed = False

    def gate(self, name: str) -> tuple[str, str]:
        """(where the node shall listen, what it shall announce), both `HOST:PORT`."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._inside[name] = free.getsockname()[1]
        gate = self._gates[name] = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, args=(name, gate), daemon=True).start()
        return f"127.0.0.1:{self._inside[name]}", f"127.0.0.1:{gate.getsockname()[1]}"

    def cut(self, *halves: Collection[str]) -> None:
        """From now on nodes of different halves do not hear one another."""
        with self._changed:
            self._halves = tuple(frozenset(half) for half in halves)

    def mend(self) -> None:
        """Carry everything again, also what has waited."""
        self.cut()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End every road and gate."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for each in (*self._gates.values(), *self._sockets):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _accept(self, name: str, gate: socket.socket) -> None:
        while True:
            try:
                outside, _ = gate.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(name, outside), daemon=True).start()

    def _carry(self, name: str, outside: socket.socket) -> None:
        """One connection, from the dialer to the node behind the gate."""
        pair = frozenset((name, self._dialer(outside.getpeername()[1])))
        self._wait_until_open(pair)
        with self._changed:
            self._sockets.append(outside)
            try:
                inside = socket.create_connection(("127.0.0.1", self._inside[name]))
            except OSError:
                outside.close()
                return
            self._sockets.append(inside)
        threads = [
            threading.Thread(target=self._pour, args=(pair, source, sink), daemon=True)
            for source, sink in ((outside, inside), (inside, outside))
        ]
        for thread in threads:
            thread.start()

    def _pour(self, pair: frozenset[str], source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                self._wait_until_open(pair)
                sink.sendall(piece)
        self._wait_until_open(pair)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _dialer(self, port: int) -> str:
        """Whose process has a connection from that port."""
        for name in self._gates:
            with suppress(psutil.Error):
                if any(c.laddr.port == port for c in psutil.Process(self._process_of(name)).net_connections("tcp")):
                    return name
        return ""

    def _wait_until_open(self, pair: frozenset[str]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._severed(pair))

    def _severed(self, pair: frozenset[str]) -> bool:
        sides = {next((n for n, half in enumerate(self._halves) if name in half), -1) for name in pair}
        return bool(self._halves) and len(sides) > 1
