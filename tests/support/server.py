"""A real local HTTP server of a folder, that fails where a test wants it to."""

import contextlib
import http.server
import re
import threading
from http import HTTPStatus
from pathlib import Path


class ShardServer:
    """Serves the files of a folder on a free port while it is entered.

    Args:
        folder: where the files lie.
        ranges: know range requests; otherwise every answer is the whole file.
        multipart: answer several ranges by several parts; otherwise by the whole file.
        head: answer HEAD.
        fail_status, fails: answer so many GET requests first with this status.
        cut_after, cuts: close the connection after so many bytes of a body, so many times.
        redirect: send all requests on to this URL.
    """

    def __init__(
        self,
        folder,
        *,
        ranges=True,
        multipart=True,
        head=True,
        fail_status=503,
        fails=0,
        cut_after=0,
        cuts=0,
        redirect="",
    ):
        self.folder = Path(folder)
        self.ranges, self.multipart, self.head = ranges, multipart, head
        self.fail_status, self.fails = fail_status, fails
        self.cut_after, self.cuts = cut_after, cuts
        self.redirect = redirect
        self.requests = []
        self.headers = []
        self.bytes_sent = 0
        self.lock = threading.Lock()

    def __enter__(self):
        class Handler(_Handler):
            owner = self

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, name):
        return f"http://127.0.0.1:{self._server.server_address[1]}/{name}"

    def takes(self, what):
        """Whether one more of these failures is due."""
        with self.lock:
            left = getattr(self, what)
            setattr(self, what, max(left - 1, 0))
            return left > 0


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_HEAD(self):
        path = self._path()
        self.owner.headers.append(self.headers)
        if self.owner.redirect:
            self._end(HTTPStatus.FOUND)
        elif not self.owner.head or not path.is_file():
            self._end(HTTPStatus.METHOD_NOT_ALLOWED if path.is_file() else HTTPStatus.NOT_FOUND)
        else:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()

    def do_GET(self):
        path, owner = self._path(), self.owner
        with owner.lock:
            owner.requests.append((path.name, self.headers.get("Range")))
            owner.headers.append(self.headers)
        if owner.redirect:
            self._end(HTTPStatus.FOUND)
        elif owner.takes("fails"):
            self._end(owner.fail_status)
        elif not path.is_file():
            self._end(HTTPStatus.NOT_FOUND)
        else:
            self._send(path.read_bytes(), self._spans())

    def _path(self):
        return self.owner.folder / Path(self.path.split("?")[0]).name

    def _spans(self):
        if not self.owner.ranges:
            return []
        return re.findall(r"(\d+)-(\d*)", self.headers.get("Range", ""))

    def _send(self, content, spans):
        size = len(content)
        spans = [(int(first), min(int(last or size - 1), size - 1)) for first, last in spans]
        if any(first >= size for first, _ in spans):
            self._end(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        if not spans or (len(spans) > 1 and not self.owner.multipart):
            self.send_response(HTTPStatus.OK)
            body = content
        elif len(spans) == 1:
            [(first, last)] = spans
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            body = content[first : last + 1]
        else:
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Type", "multipart/byteranges; boundary=xyz")
            parts = [
                f"\r\n--xyz\r\nContent-Type: application/x-tar\r\nContent-Range: bytes "
                f"{first}-{last}/{size}\r\n\r\n".encode()
                + content[first : last + 1]
                for first, last in spans
            ]
            body = b"".join(parts) + b"\r\n--xyz--\r\n"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._send_body(body)

    def _send_body(self, body):
        cut = self.owner.cut_after
        if len(body) > cut and self.owner.takes("cuts"):
            body = body[:cut]
            self.close_connection = True
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(body), 1 << 16):
                part = body[start : start + (1 << 16)]
                # Before whoever gets it may look.
                with self.owner.lock:
                    self.owner.bytes_sent += len(part)
                self.wfile.write(part)
            self.wfile.flush()

    def _end(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if self.owner.redirect:
            self.send_header("Location", self.owner.redirect)
        self.end_headers()

    def log_message(self, *arguments):
        pass
