"""A local HTTP server of the files of a folder, with ranges, in a process of its own."""

import contextlib
import multiprocessing
import os
import re
import socket
import socketserver
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO

_RANGES = re.compile(rb"\r\n[Rr]ange: bytes=([\d,-]+)\r\n")
_RANGE = re.compile(rb"\r\n[Rr]ange: bytes=(\d+)-(\d*)\r\n")


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Yield the URL of a server of this folder."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(folder, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(folder: Path, connection: Connection) -> None:
    class Files(_Files):
        root = folder

    socketserver.ThreadingTCPServer.request_queue_size = 128
    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Files) as server:
        connection.send(server.server_address[1])
        server.serve_forever()


class _Files(socketserver.BaseRequestHandler):
    """Answers GET and HEAD by sendfile, so that what is measured is not this server."""

    root = Path()

    def handle(self) -> None:
        """Answer requests until the client leaves."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            while request := self._request():
                self._answer(request)

    def _request(self) -> bytes:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            part = self.request.recv(65_536)
            if not part:
                return b""
            request += part
        return request

    def _answer(self, request: bytes) -> None:
        method, target, _ = request.split(b" ", 2)
        path = self.root / Path(target.decode()).name
        if not path.is_file():
            self.request.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first, last, status = 0, size - 1, b"200 OK"
            if b"," in (ranges := _RANGES.search(request) or [b""])[0]:
                self._answer_ranges(file, ranges[1], size)
                return
            if match := _RANGE.search(request):
                first, last = int(match[1]), min(int(match[2] or size), size - 1)
                status = b"206 Partial Content\r\nContent-Range: bytes %d-%d/%d"
                status %= first, last, size
            head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, last + 1 - first)
            self.request.sendall(head)
            if method == b"GET":
                self._send(file, first, last + 1 - first)

    def _answer_ranges(self, file: BinaryIO, ranges: bytes, size: int) -> None:
        """A multipart answer, of a part for each range."""
        parts, end = [], b"\r\n--part--\r\n"
        for span in ranges.split(b","):
            first, last = map(int, span.split(b"-"))
            head = b"\r\n--part\r\nContent-Range: bytes %d-%d/%d\r\n\r\n" % (first, last, size)
            parts.append((head, first, last + 1 - first))
        length = len(end) + sum(len(head) + count for head, _, count in parts)
        answer = (
            b"HTTP/1.1 206 Partial Content\r\nContent-Type: multipart/byteranges; boundary=part\r\n"
            b"Content-Length: %d\r\n\r\n" % length
        )
        for head, first, count in parts:
            self.request.sendall(answer + head, socket.MSG_MORE)
            self._send(file, first, count)
            answer = b""
        self.request.sendall(end)

    def _send(self, file: BinaryIO, first: int, count: int) -> None:
        while count > 0:
            sent = os.sendfile(self.request.fileno(), file.fileno(), first, count)
            first, count = first + sent, count - sent
