"""A local server that answers in whatever manner a test wants, HTTP or not."""

import contextlib
import gzip
import itertools
import re
import socketserver
import threading


class Request:
    """One request, and what may be sent in answer to it.

    Attributes:
        number: how many came before.
        method, headers: as they came; names of headers are lower case.
        spans: (first, last) of each range that was asked for.
        content: of the shard.
    """

    def __init__(self, handler, number, method, headers, content):
        self._handler = handler
        self.number, self.method, self.headers, self.content = number, method, headers, content
        found = re.findall(r"(\d+)-(\d*)", headers.get("range", ""))
        last = len(content) - 1
        self.spans = [(int(first), min(int(end or last), last)) for first, end in found]

    def send(self, content):
        self._handler.wfile.write(content)
        self._handler.wfile.flush()

    def answer(self, status, headers, body=b"", *, sized=True):
        """Send a whole answer; without a length the connection is closed after it."""
        if sized:
            headers = {"Content-Length": len(body)} | headers
        else:
            self._handler.keep = False
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.send(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode("latin-1"))
        if self.method != "HEAD":
            self.send(body)

    def whole(self, headers=(), **options):
        self.answer(200, dict(headers), self.content, **options)

    def ranged(self, headers=(), **options):
        """As a server that knows single ranges only."""
        if len(self.spans) != 1:
            self.whole(headers, **options)
            return
        [(first, last)] = self.spans
        found = {"Content-Range": f"bytes {first}-{last}/{len(self.content)}"}
        self.answer(206, found | dict(headers), self.content[first : last + 1], **options)

    def hang_up(self):
        self._handler.keep = False


class HostileServer:
    """Serves one content by a manner, a function of the `Request`, while it is entered."""

    def __init__(self, content, manner, context=None):
        self.content, self.manner, self.context = content, manner, context
        self.requests = []
        self.connections = []
        self._numbers = itertools.count()
        self._open = threading.Event()

    def __enter__(self):
        class Handler(_Handler):
            owner = self

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, name="a.tar"):
        scheme = "https" if self.context else "http"
        return f"{scheme}://127.0.0.1:{self._server.server_address[1]}/{name}"

    def wait(self, seconds):
        """Sleep, but not after the test; whether it is over."""
        return self._open.wait(seconds)

    def respond(self, handler, method, path, headers):
        self.requests.append((method, path, headers))
        request = Request(handler, next(self._numbers), method, headers, self.content)
        request.wait = self.wait
        self.manner(request)


class _Handler(socketserver.StreamRequestHandler):
    wbufsize = -1

    def setup(self):
        if self.owner.context:
            self.request = self.owner.context.wrap_socket(
                self.request, server_side=True, do_handshake_on_connect=False
            )
        super().setup()

    def handle(self):
        self.keep = True
        self.owner.connections.append(self.client_address)
        with contextlib.suppress(OSError, ValueError):
            while self.keep and (line := self.rfile.readline()):
                method, path, _ = line.decode().split(" ", 2)
                headers = {}
                while (header := self.rfile.readline()) not in (b"\r\n", b""):
                    name, _, value = header.decode("latin-1").partition(":")
                    headers[name.lower()] = value.strip()
                self.owner.respond(self, method, path, headers)

    def finish(self):
        with contextlib.suppress(OSError, ValueError):
            super().finish()


# Manners


def drip(request, content, every=0.03):
    for number in range(len(content)):
        request.send(content[number : number + 1])
        if request.wait(every):
            return


def chunked(body, ending=b"0\r\n\r\n", size=lambda part: b"%x" % len(part)):
    parts = [body[start : start + 700] for start in range(0, len(body), 700)]
    return b"".join(size(part) + b"\r\n" + part + b"\r\n" for part in parts) + ending


def raw(answer):
    """The same bytes in answer to everything; ``{}`` is the length of the content."""

    def manner(request):
        request.send(answer.replace(b"{}", b"%d" % len(request.content)))
        request.hang_up()

    return manner


def by_head(change=dict, body=lambda content: content, status=200, sized=True):
    """The whole content with these headers, or a body made of it."""
    return lambda request: request.answer(
        status, change() if callable(change) else change, body(request.content), sized=sized
    )


def in_chunks(**options):
    def manner(request):
        request.answer(200, {"Transfer-Encoding": "chunked"}, b"", sized=False)
        if request.method != "HEAD":
            request.send(chunked(request.content, **options))

    return manner


def with_range(text, body=lambda part, content: part):
    """A part whose Content-Range is made of first, last and all."""

    def manner(request):
        if len(request.spans) != 1:
            request.whole()
            return
        [(first, last)] = request.spans
        part = request.content[first : last + 1]
        found = text.format(first=first, last=last, all=len(request.content), after=first + 1)
        headers = {"Content-Range": found} if text else {}
        request.answer(206, headers, body(part, request.content))

    return manner


def changing(name, values):
    def manner(request):
        request.ranged({name: values[min(request.number, 1) if len(values) == 2 else 0]})

    return manner


def times(first, count, then=Request.ranged):
    """One manner for so many GET requests, then another."""
    left = itertools.count()

    def manner(request):
        is_first = request.method == "GET" and next(left) < count
        (first if is_first else then)(request)

    return manner


def cut_in_half(request):
    """Half of what was promised, then nothing."""
    body = request.content
    request.send(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(body))
    if request.method != "HEAD":
        request.send(body[: len(body) // 2 + 13])
    request.hang_up()


def endless(head, body=lambda content: b"", go_on=b"x" * 65_536):
    def manner(request):
        request.send(head + body(request.content))
        while not request.wait(0):
            request.send(go_on)

    return manner


def dripping_body(request):
    request.send(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(request.content))
    if request.method != "HEAD":
        drip(request, request.content)


def silent(request):
    request.wait(60)


def silent_after_headers(request):
    request.send(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(request.content))
    if request.method != "HEAD":
        request.wait(60)


def asking_to_wait(text, count=10**9, status=503):
    return times(lambda request: request.answer(status, {"Retry-After": text}), count)


HTML = b"<html><body>Sign in to go on</body></html>"
OK = b"HTTP/1.1 200 X\r\n"

# What every operation gets right bytes from.
MANNERS_THAT_SERVE = {
    "ranges": Request.ranged,
    "no ranges": Request.whole,
    "no length": lambda request: request.whole(sized=False),
    "chunks": in_chunks(),
    "chunks with extensions": in_chunks(size=lambda part: b"%x;a=b" % len(part)),
    "ranges without a length": lambda request: request.ranged(sized=False),
    "ranges of an unknown whole": with_range("bytes {first}-{last}/*"),
    "the same length twice": by_head(body=lambda content: content, change={"X-A": "b"}),
    "stored as gzip, it says, and is not": lambda request: request.ranged(
        {"Content-Encoding": "gzip"}
    ),
    "stored as what is no compression": lambda request: request.ranged(
        {"Content-Encoding": "aws-chunked, utf-8"}
    ),
    "busy twice": times(lambda request: request.answer(503, {}), 2),
    "busy, wait 0.1 s": asking_to_wait("0.1", 2),
    "busy, wait a nonsense": asking_to_wait("soon", 2),
    "cut once": times(cut_in_half, 1),
    "nothing twice": times(Request.hang_up, 2),
    "HEAD says 0": lambda request: (
        request.answer(200, {"Content-Length": 0}) if request.method == "HEAD" else request.ranged()
    ),
    "HEAD has a body": lambda request: (
        request.send(OK + b"Content-Length: %d\r\n\r\n" % len(request.content) + b"x" * 999)
        if request.method == "HEAD"
        else request.ranged()
    ),
    "more after each answer": lambda request: (request.ranged(), request.send(b"x" * 99)),
    "HEAD is refused": lambda request: (
        request.answer(405, {}) if request.method == "HEAD" else request.ranged()
    ),
    "a weak ETag": lambda request: request.ranged({"ETag": 'W/"1"'}),
    "an ETag that becomes weak": lambda request: request.ranged(
        {"ETag": 'W/"1"' if request.number else '"1"'}
    ),
    "an ETag and a time": lambda request: request.ranged(
        {"ETag": '"1"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
    ),
}

# What no operation gets anything from but an error.
MANNERS_THAT_FAIL = {
    "silence": silent,
    "silence after the headers": silent_after_headers,
    "a body that drips": dripping_body,
    "headers that drip": lambda request: drip(request, OK + b"X-A: b\r\n" * 99),
    "nothing": Request.hang_up,
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "a status that is no number": raw(b"HTTP/1.1 abc X\r\n\r\n"),
    "a status of no kind": raw(b"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n"),
    "a header without end": raw(OK + b"X-A: " + b"b" * 100_000),
    "a thousand headers": raw(OK + b"X-A: b\r\n" * 1000 + b"\r\n"),
    "half of it, always": cut_in_half,
    "half of it, without a length": by_head(
        body=lambda content: content[: len(content) // 2 + 13], sized=False
    ),
    "all members but the last, without a length": by_head(
        body=lambda content: content[: 7 * 20_992], sized=False
    ),
    "chunks that are no numbers": in_chunks(size=lambda part: b"zz"),
    "negative chunks": in_chunks(size=lambda part: b"-5"),
    "chunks larger than they are": in_chunks(size=lambda part: b"%x" % (len(part) + 9)),
    "a negative length": by_head({"Content-Length": -5}),
    "a length in words": by_head({"Content-Length": "many"}),
    "an empty length": by_head({"Content-Length": ""}),
    "two lengths": by_head({"Content-Length": "5, 6"}),
    "a length too large": by_head({"Content-Length": 10**7}),
    "a length too small": by_head({"Content-Length": 100}),
    "an HTML page": by_head(body=lambda content: HTML),
    "an empty body": by_head(body=lambda content: b""),
    "no content": by_head(status=204, body=lambda content: b""),
    "not modified": by_head(status=304, body=lambda content: b""),
    "never satisfiable": by_head(status=416, body=lambda content: b""),
    "an answer in brotli": by_head({"Content-Encoding": "br"}),
    "an answer in two compressions": by_head({"Content-Encoding": "gzip, ZSTD"}),
    "a loop": lambda request: request.answer(302, {"Location": "/a.tar"}),
    "a redirect to nowhere": lambda request: request.answer(302, {}),
    "a redirect to no URL": lambda request: request.answer(302, {"Location": "http://[::1/a"}),
    "a redirect to a file": lambda request: request.answer(302, {"Location": "file:///etc/passwd"}),
    "a redirect to a port of no kind": lambda request: request.answer(
        302, {"Location": "http://127.0.0.1:99999/a?secret"}
    ),
    "busy for an hour": asking_to_wait("3600"),
    "busy until the next century": asking_to_wait("Thu, 01 Jan 2125 00:00:00 GMT", status=429),
    "busy for ever": asking_to_wait("0"),
    "a hundred, and a hundred, and so on": endless(
        b"", go_on=b"HTTP/1.1 100 Continue\r\n\r\n" * 99
    ),
    "an error page without end": endless(b"HTTP/1.1 404 X\r\n\r\n"),
}

# What some operations may get right bytes from, and others an error.
MANNERS_BETWEEN = {
    "packed on the way": by_head({"Content-Encoding": "gzip"}, gzip.compress),
    "a shard without end": endless(OK + b"\r\n", lambda content: content),
    "no last chunk": in_chunks(ending=b""),
    "no Content-Range": with_range(""),
    "a Content-Range of nothing": with_range("nothing"),
    "a Content-Range of another unit": with_range("lines {first}-{last}/{all}"),
    "another start": with_range("bytes {after}-{last}/{all}"),
    "another end": with_range("bytes {first}-{after}/{all}"),
    "another whole": with_range("bytes {first}-{last}/1{all}"),
    "an end before the start": with_range("bytes {last}-{first}/{all}"),
    "beyond the whole": with_range("bytes {first}-{last}/{after}"),
    "all of it as a part": with_range("bytes {first}-{last}/{all}", lambda part, all_: all_),
    "less than it says": with_range("bytes {first}-{last}/{all}", lambda part, _: part[:-3]),
    "more than it says": with_range("bytes {first}-{last}/{all}", lambda part, _: part + b"123"),
    "another ETag each time": lambda request: request.ranged({"ETag": f'"{request.number}"'}),
    "another time each time": lambda request: request.ranged(
        {"Last-Modified": f"Thu, 01 Jan 2026 00:00:{request.number % 60:02} GMT"}
    ),
}
