"""Runs an emulator of Google Cloud Storage on this machine, with additions and with faults.

The emulator ignores preconditions and does not return the generation of objects. Orbax's arrays and
exclusive creation need both, so they are added here. `POST /faults?share=0.1` makes the emulator
answer this share of requests with error 500 or 503. `?token=NAME` makes it refuse requests without
this token.

    python tests/object_store.py PORT BUCKET
"""

import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

REPOSITORY = Path(__file__).resolve().parent.parent
OBJECT = re.compile(r"(?:/storage/v1|/upload/storage/v1|/download/storage/v1)?/b/([^/]+)/o/?(.*)")


def serve(port: int, bucket: str) -> None:
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.server import RequestHandler, Router
    from gcp_storage_emulator.storage import Storage

    storage = Storage(use_memory_fs=True)
    storage.create_bucket(bucket, {"name": bucket, "kind": "storage#bucket"})
    lock, faults = threading.Lock(), {"share": 0.0, "token": "", "faults": 0}
    chance = random.Random(0)

    class Handler(RequestHandler):
        def answer(self, status: int, content: dict) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            super().end_headers()
            self.wfile.write(body)

        def refuse(self, status: int) -> None:
            self.answer(status, {"error": {"code": status, "message": f"planned {status}"}})

        def find_generation(self, url, query) -> str:
            match = OBJECT.fullmatch(url.path)
            if match is None:
                return ""
            name = unquote(match[2]) or query.get("name", [""])[0]
            try:
                return storage.get_file_obj(match[1], name)["generation"]
            except (NotFound, KeyError):
                return "0"

        def handle_method(self, method: str) -> None:
            url = urlparse(self.path)
            query = parse_qs(url.query)
            self.generation = ""
            if url.path == "/faults":
                faults.update({"share": float(query.get("share", ["0"])[0])})
                faults.update({"token": query.get("token", [""])[0]})
                chance.seed(0)
                return self.answer(200, faults)
            with lock:
                if chance.random() < faults["share"]:
                    faults["faults"] += 1
                    return self.refuse(chance.choice([500, 503]))
                if faults["token"] not in (self.headers.get("Authorization") or ""):
                    return self.refuse(401)
                self.generation = self.find_generation(url, query)
                wanted = query.get("ifGenerationMatch")
                if wanted is not None and wanted[0] != self.generation and method != "PUT":
                    return self.refuse(412)
                return Router(self).handle(method)

        def end_headers(self) -> None:
            if self.command == "GET" and self.generation not in ("", "0"):
                self.send_header("x-goog-generation", self.generation)
            super().end_headers()

        do_GET = lambda self: self.handle_method("GET")  # noqa: E731
        do_POST = lambda self: self.handle_method("POST")  # noqa: E731
        do_PUT = lambda self: self.handle_method("PUT")  # noqa: E731
        do_PATCH = lambda self: self.handle_method("PATCH")  # noqa: E731
        do_DELETE = lambda self: self.handle_method("DELETE")  # noqa: E731

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_) -> None:
            """Ignores errors of clients that close before they have read the answer."""

    Server(("localhost", port), partial(Handler, storage)).serve_forever()


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@contextmanager
def running_store(bucket: str = "bucket"):
    """A context that runs a store and yields its address for STORAGE_EMULATOR_HOST."""
    port = find_port()
    process = subprocess.Popen([sys.executable, __file__, str(port), bucket])
    address = f"http://localhost:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                set_faults(address)
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


def set_faults(address: str, share: float = 0.0, token: str = "") -> int:
    """Sets the faults of a store. Returns how many requests it has failed so far."""
    request = urllib.request.Request(f"{address}/faults?share={share}&token={token}", method="POST")
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["faults"]


def make_environment(address: str, folder) -> dict[str, str]:
    """The environment of a machine that shares only the store with other machines."""
    own = {name: str(folder / name.lower()) for name in ("HOME", "TMPDIR", "JAXCPT_CACHE")}
    for path in own.values():
        os.makedirs(path, exist_ok=True)
    return {**os.environ, **own, **name_store(address), "JAX_PLATFORMS": "cpu"}


def start_command(
    address: str, folder, *arguments: str, stderr: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Starts `jaxcpt` with these arguments, on the machine of `make_environment`."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxcpt", *arguments],
        cwd=folder,
        env=make_environment(address, folder) | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def name_store(address: str) -> dict[str, str]:
    """The variables by which gcsfs and tensorstore find the store."""
    return {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}


def use_store(address: str) -> None:
    """Makes this process use the store, also if it used another one before."""
    import fsspec

    from jaxcpt import objects

    os.environ |= name_store(address)
    fsspec.filesystem("gs").clear_instance_cache()
    objects.open_store.cache_clear()
    objects.check_bucket.cache_clear()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
