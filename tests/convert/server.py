"""A web server on the loopback interface for tests of downloading."""

import contextlib
import dataclasses
import http.server
import threading


@dataclasses.dataclass
class Page:
    """What one path answers.

    Attributes:
      content: the whole of it.
      headers: more headers.
      breaks: how many answers stop after half of what they announced.
    """

    content: bytes
    headers: dict = dataclasses.field(default_factory=dict)
    breaks: int = 0


@contextlib.contextmanager
def serve(pages):
    """Serves a dict of paths to pages; yields the URL and the list of requests (path, range)."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path)
            requests.append((self.command, self.path, self.headers.get("Range")))
            if page is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = 0
            wanted = self.headers.get("Range")
            unchanged = self.headers.get("If-Range", page.headers.get("ETag"))
            if wanted and unchanged == page.headers.get("ETag"):
                start = int(wanted.removeprefix("bytes=").rstrip("-").partition("-")[0])
            body = page.content[start:]
            self.send_response(206 if start else 200)
            if start:
                size = len(page.content)
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("Content-Length", str(len(body)))
            for name, value in page.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if page.breaks > 0:
                page.breaks -= 1
                body = body[: len(body) // 2]
                self.close_connection = True
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
