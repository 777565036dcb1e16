"""An S3 server on loopback behind a proxy that counts, and fails where it is told to; a process of its own.

GDAL asks for side files without letting other threads of Python run, so a server in the same process would wait for itself.
Prints the addresses of the server and of the proxy, and ends with its standard input. ``/_plan`` (POST, JSON ``{"match": regex of the path,
"pattern": [fault or null, ...]}``) sets what befalls the n-th matching request; ``/_log`` tells requests, faults and bytes sent since.
Faults: a status code, ``reset`` (of the connection), ``short`` (half a body).
"""

from __future__ import annotations

import http.client
import http.server
import json
import logging
import re
import socket
import struct
import sys
import threading
from typing import Any

from moto.server import ThreadedMotoServer
from werkzeug.serving import WSGIRequestHandler


class Proxy:
    """State shared by the proxy's threads."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target, self.lock = target, threading.Lock()
        self.plan({"match": "", "pattern": []})

    def plan(self, plan: dict[str, Any]) -> None:
        with self.lock:
            self.match, self.pattern = re.compile(plan["match"]), plan["pattern"]
            self.count, self.log, self.sent = 0, [], 0

    def fault(self, method: str, path: str) -> str | None:
        with self.lock:
            fault = None
            if self.pattern and self.match.search(path):
                fault, self.count = self.pattern[self.count % len(self.pattern)], self.count + 1
            self.log.append([method, path, fault])
            return fault

    def forward(self, request: http.server.BaseHTTPRequestHandler) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(*self.target)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        upstream.request(request.command, request.path, body=body or None, headers=dict(request.headers))
        answer = upstream.getresponse()
        headers = [pair for pair in answer.getheaders() if pair[0].lower() not in ("transfer-encoding", "connection", "date", "server")]
        return answer.status, headers, answer.read()


def handler(proxy: Proxy) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path.startswith("/_"):
                self.control()
                return
            fault = proxy.fault(self.command, self.path)
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            elif fault and fault.isdigit():
                self.answer(int(fault), [("Content-Length", "0")], b"")
            else:
                self.answer(*proxy.forward(self), short=fault == "short")

        do_HEAD = do_GET
        do_POST = do_GET

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, short: bool = False) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            cut = short and len(body) > 1
            self.wfile.write(body[: len(body) // 2] if cut else body)
            with proxy.lock:
                proxy.sent += len(body) // 2 if cut else len(body)
            if cut:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        def control(self) -> None:
            if self.path == "/_plan":
                proxy.plan(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            with proxy.lock:
                body = json.dumps({"log": proxy.log, "sent": proxy.sent}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main() -> None:
    logging.disable(logging.CRITICAL)
    # An answer is two writes, of which the second would wait for the delayed acknowledgement of the first.
    WSGIRequestHandler.disable_nagle_algorithm = True
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    target = server.get_host_and_port()
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(Proxy(target)))
    proxy.daemon_threads = True
    proxy.handle_error = lambda request, address: None  # type: ignore[method-assign]  # connections that we broke
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    print(json.dumps({"s3": "http://{}:{}".format(*target), "proxy": f"http://127.0.0.1:{proxy.server_address[1]}"}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
