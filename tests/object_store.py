"""Google Cloud Storage in miniature, in memory, for the libraries that the commands really use.

TensorStore takes another address from the environment. TensorFlow, through which `etils.epath`
reads and writes `gs://`, does not: it is given a proxy, which is this server too and answers as
`www.googleapis.com` and `storage.googleapis.com` with a certificate made for the occasion.
"""

import contextlib
import dataclasses
import json
import re
import ssl
import subprocess
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

HOSTS = ("www.googleapis.com", "storage.googleapis.com")
_OBJECT = re.compile(
    r"/(upload/)?storage/v1/b/([^/]+)/o(?:/([^/]+))?(?:/rewriteTo/b/([^/]+)/o/(.+))?"
)


@dataclasses.dataclass(frozen=True)
class Stored:
    """An object."""

    data: bytes
    generation: int


class ObjectStore:
    """A server with one bucket.

    Attributes:
      objects: by name.
      requests: how many there were, by method and kind.
      downloaded: bytes of objects sent out.
      failures: requests that the next ones answer with 503 instead.
    """

    def __init__(self, bucket, folder):
        self.bucket = bucket
        self.objects = {}
        self.requests = Counter()
        self.downloaded = 0
        self.failures = 0
        self.failed = 0
        self.lock = threading.RLock()
        self.sessions = {}
        self.generation = 0
        self.certificate, key = folder / "certificate.pem", folder / "key.pem"
        names = ",".join(f"DNS:{host}" for host in HOSTS)
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
            + ["-pkeyopt", "ec_paramgen_curve:prime256v1"]
            + ["-subj", "/CN=object store of a test", "-addext", f"subjectAltName={names}"]
            + ["-keyout", str(key), "-out", str(self.certificate)],
            check=True,
            capture_output=True,
        )
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.certificate, key)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.store = self
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def environment(self):
        """What a command needs to find it."""
        address = f"http://127.0.0.1:{self.server.server_address[1]}"
        return {
            "TENSORSTORE_GCS_HTTP_URL": address,
            "https_proxy": address,
            "no_proxy": "localhost,127.0.0.1",
            "CURL_CA_BUNDLE": str(self.certificate),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "a token",
            "NO_GCE_CHECK": "true",
        }

    def names(self, prefix=""):
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def put(self, name, data):
        with self.lock:
            self.generation += 1
            self.objects[name] = Stored(data, self.generation)
            return self.describe(name)

    def describe(self, name):
        found = self.objects[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": self.bucket,
            "size": str(len(found.data)),
            "generation": str(found.generation),
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
        }

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    @property
    def store(self):
        return self.server.store

    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            tunnel = self.store.tls.wrap_socket(self.connection, server_side=True)
            _Handler(tunnel, self.client_address, self.server)
            tunnel.close()

    def answer(self, status, body=b"", headers=()):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def handle_request(self):
        body = self.body()
        store, url = self.store, urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        with store.lock:
            if store.failures > 0:
                store.failures -= 1
                store.failed += 1
                self.answer(503, {"error": {"code": 503, "message": "try again"}})
                return
            if match := _OBJECT.fullmatch(url.path):
                upload, _, name, _, target = match.groups()
                name = None if name is None else unquote(name)
                kind = "upload" if upload else "rewrite" if target else "object" if name else "list"
                store.requests[f"{self.command} {kind}"] += 1
                if upload:
                    self.upload(query, body)
                elif target:
                    self.rewrite(name, unquote(target))
                elif name is None:
                    self.list(query)
                elif self.command == "DELETE":
                    self.delete(name)
                elif query.get("alt") == "media":
                    self.media(name, query)
                else:
                    self.metadata(name)
            elif re.fullmatch(r"/storage/v1/b/[^/]+", url.path):
                self.answer(200, {"name": store.bucket, "location": "US"})
            elif url.path.endswith("/storageLayout"):
                self.answer(200, {"hierarchicalNamespace": {"enabled": False}})
            else:  # storage.googleapis.com/BUCKET/OBJECT
                store.requests["GET object"] += 1
                self.media(unquote(url.path).lstrip("/").partition("/")[2], query)

    do_GET = do_POST = do_PUT = do_DELETE = handle_request

    def metadata(self, name):
        if name in self.store.objects:
            self.answer(200, self.store.describe(name))
        else:
            self.answer(404, {"error": {"code": 404, "message": "no such object"}})

    def media(self, name, query):
        found = self.store.objects.get(name)
        if found is None:
            self.answer(404)
            return
        if query.get("ifGenerationNotMatch") == str(found.generation):
            self.answer(304)
            return
        data, status, headers = found.data, 200, [("x-goog-generation", str(found.generation))]
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first = int(match[1])
            last = min(int(match[2]) if match[2] else len(data) - 1, len(data) - 1)
            if first > last:
                self.answer(416, headers=headers)
                return
            headers.append(("Content-Range", f"bytes {first}-{last}/{len(data)}"))
            data, status = data[first : last + 1], 206
        self.store.downloaded += len(data)
        self.answer(status, data, headers)

    def delete(self, name):
        gone = self.store.objects.pop(name, None)
        self.answer(204 if gone else 404)

    def rewrite(self, name, target):
        if name not in self.store.objects:
            self.answer(404)
            return
        described = self.store.put(target, self.store.objects[name].data)
        self.answer(200, {"done": True, "resource": described})

    def list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in self.store.names(prefix):
            if name < query.get("startOffset", "") or name >= query.get("endOffset", "\U0010ffff"):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if found:
                prefixes.add(prefix + head + found)
            else:
                items.append(name)
        # In pages, as a client must cope with them.
        both = sorted([*items, *prefixes])
        start = int(query.get("pageToken", 0))
        page = both[start : start + min(int(query.get("maxResults", 1000)), 1000)]
        answer = {
            "items": [self.store.describe(name) for name in page if name in items],
            "prefixes": [name for name in page if name in prefixes],
        }
        if start + len(page) < len(both):
            answer["nextPageToken"] = str(start + len(page))
        self.answer(200, answer)

    def upload(self, query, body):
        store, name = self.store, query.get("name")
        wanted = query.get("ifGenerationMatch")
        if wanted is not None and name is not None:
            found = store.objects.get(name)
            if int(wanted) != (found.generation if found else 0):
                self.answer(412)
                return
        if query["uploadType"] == "media":
            self.answer(200, store.put(name, body))
        elif "upload_id" in query:
            self.resume(query["upload_id"], body)
        else:
            session = str(len(store.sessions))
            store.sessions[session] = (name, b"")
            path = f"/upload/storage/v1/b/{store.bucket}/o?uploadType=resumable"
            location = f"https://{HOSTS[0]}{path}&upload_id={session}&name={quote(name, safe='')}"
            self.answer(200, headers=[("Location", location)])

    def resume(self, session, body):
        name, data = self.store.sessions[session]
        whole = f"bytes 0-{len(body) - 1}/{len(body)}"  # said of empty objects by silence
        place = self.headers.get("Content-Range", whole)
        span, _, total = place.removeprefix("bytes ").partition("/")
        if span != "*":
            data = data[: int(span.partition("-")[0])] + body
            self.store.sessions[session] = (name, data)
        if total.isdigit() and len(data) == int(total):
            self.answer(200, self.store.put(name, data))
        else:
            headers = [("Range", f"bytes=0-{len(data) - 1}")] if data else []
            self.answer(308, headers=headers)
