"""A store that answers as another one does, but where it is told to fail."""

import contextlib
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
BROKEN = b"<Error><Code>InternalError</Code><Message>We encountered an error</Message></Error>"


class FlakyStore:
    """Passes requests on to the store at ``port``.

    Attributes:
        fault: "500", "denied", "dropped" (the connection ends without an answer) or "swallowed" (a
            put is said to be done, and is not); None lets all pass.
        method, ending: requests that the fault is for, by how their path ends.
        times: how many of them fail.
        failed: how many have.
    """

    def __init__(self, port):
        self.port = port
        self.fail(None, "")
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def handle_one_request(self):
                # Clients close connections when they like.
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def do_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = store.take(self.command, self.path)
                if fault == "dropped":
                    self.close_connection = True
                elif fault == "swallowed":
                    self.answer(200, {"ETag": '"1"'}, b"")
                elif fault:
                    status, text = (403, DENIED) if fault == "denied" else (500, BROKEN)
                    self.answer(status, {}, b"" if self.command == "HEAD" else text)
                else:
                    self.pass_on(body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_any

            def pass_on(self, body):
                connection = http.client.HTTPConnection("127.0.0.1", store.port)
                connection.request(self.command, self.path, body, dict(self.headers))
                found = connection.getresponse()
                content, headers = found.read(), dict(found.getheaders())
                headers.pop("Transfer-Encoding", None)
                connection.close()
                self.answer(found.status, headers, content)

            def answer(self, status, headers, content):
                self.send_response_only(status)
                length = headers.pop("Content-Length", str(len(content)))
                for name, value in headers.items():
                    if name not in ("Connection", "content-length"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def fail(self, fault, method, *, ending="", times=10**9):
        """Let requests fail from now on."""
        self.fault, self.method, self.ending = fault, method, ending
        self.times, self.failed = times, 0

    def mend(self):
        """Let all requests pass."""
        self.fault = None

    def take(self, method, path):
        """The fault of a request."""
        matches = method == self.method and path.partition("?")[0].endswith(self.ending)
        if self.fault is None or not matches or self.failed >= self.times:
            return None
        self.failed += 1
        return self.fault

    def close(self):
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()
