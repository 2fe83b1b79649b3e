"""The HTTP side of the strict KMS: the server, the fault script, the record of calls, and moto behind it."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.sax.saxutils import escape

_STATUS = {"KeyUnavailableException": 500, "KMSInternalException": 500, "DependencyTimeoutException": 503}
_STS_STATUS = {"ValidationError": 400, "Throttling": 400, "InternalFailure": 500, "ServiceUnavailable": 503}


class AwsError(Exception):
    """An answer that is an error."""

    def __init__(self, code: str, message: str = "", status: int | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.message = message
        self.status = status


class Drop(Exception):
    """Close the connection without an answer."""


@dataclass
class FaultRule:
    """What goes wrong, and when.

    Attributes:
        operation: ``Decrypt``, ``AssumeRole`` …; None for every one.
        key: The key or role ARN; None for every one.
        times: For how many requests; None for all to come.
        after: How many matching requests go well first.
        error: The error code to answer with.
        status: Its HTTP status; None for the usual one.
        message: Its message.
        latency: Seconds to wait, before an error or before the ordinary answer.
        drop: Close the connection without an answer.
        black_hole: Never answer, until the server is closed.
        alter: Change an ordinary answer: given the JSON document, return another, or raw bytes.
    """

    operation: str | None = None
    key: str | None = None
    times: int | None = 1
    after: int = 0
    error: str = ""
    status: int | None = None
    message: str = ""
    latency: float = 0.0
    drop: bool = False
    black_hole: bool = False
    alter: Callable[[dict[str, Any]], dict[str, Any] | bytes] | None = None
    region: str | None = None


@dataclass
class Call:
    """One HTTP request. `outcome` is ``ok``, an error code, ``dropped``, or ``open`` while there is no
    answer."""

    time: float
    operation: str
    key: str = ""
    principal: str = ""
    region: str = ""
    context: dict[str, str] = field(default_factory=dict)
    outcome: str = "open"
    parameters: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass
class Counter:
    """The calls of a `with` block."""

    calls: list[Call] = field(default_factory=list)

    def count(self, operation: str | None = None, *, key: str | None = None, outcome: str | None = None) -> int:
        return len(self.matching(operation, key=key, outcome=outcome))

    def matching(
        self, operation: str | None = None, *, key: str | None = None, outcome: str | None = None
    ) -> list[Call]:
        return [
            call
            for call in list(self.calls)
            if operation in (None, call.operation) and key in (None, call.key) and outcome in (None, call.outcome)
        ]


class FaultScript:
    """The rules that are still in force. Thread-safe."""

    def __init__(self) -> None:
        self._rules: list[FaultRule] = []
        self._lock = threading.Lock()
        self.closed = threading.Event()

    def add(self, rules: tuple[FaultRule, ...]) -> None:
        with self._lock:
            self._rules += [replace(rule) for rule in rules]

    def clear(self, key: str | None = None) -> None:
        """Drop all rules, or those for one key."""
        with self._lock:
            self._rules[:] = [rule for rule in self._rules if key is not None and rule.key != key]

    def take(self, operation: str, key: str, region: str = "") -> FaultRule | None:
        """Return the first rule for this request and count it."""
        with self._lock:
            for rule in self._rules:
                if rule.operation not in (None, operation) or rule.key not in (None, key) or rule.times == 0:
                    continue
                if rule.region not in (None, region):
                    continue
                if rule.after:
                    rule.after -= 1
                    continue
                if rule.times is not None:
                    rule.times -= 1
                return rule
        return None

    def suffer(self, rule: FaultRule, *, sts: bool) -> None:
        """Do what a rule says before the ordinary answer."""
        if rule.latency:
            self.closed.wait(rule.latency)
        if rule.black_hole:
            self.closed.wait()
            raise Drop
        if rule.drop:
            raise Drop
        if rule.error or rule.status:
            usual = (_STS_STATUS.get(rule.error, 403)) if sts else _STATUS.get(rule.error, 400)
            raise AwsError(rule.error, rule.message, rule.status or usual)


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    content_type: str = "application/x-amz-json-1.1"


Respond = Callable[[Mapping[str, str], bytes], Reply]


class HttpServer:
    """A threaded HTTP/1.1 server on a free port of 127.0.0.1; `respond` answers or raises `Drop`."""

    def __init__(self, respond: Respond, *, tls: ssl.SSLContext | None = None) -> None:
        connections: set[socket.socket] = set()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # One packet for head and body: two would wait 40 ms for each other (Nagle's algorithm).
            wbufsize = -1

            def setup(self) -> None:
                super().setup()
                connections.add(self.connection)

            def finish(self) -> None:
                connections.discard(self.connection)
                with suppress(OSError):
                    super().finish()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                try:
                    reply = respond(self.headers, body)
                except Drop:
                    self.close_connection = True
                    with suppress(OSError):
                        self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.content_type)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 256

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self._connections = connections
        self._server = Server(("127.0.0.1", 0), Handler)
        scheme = "http"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@lru_cache(maxsize=1)
def moto_address() -> tuple[str, int]:
    """Start moto once in a process: its state is global anyway, and stopping it takes half a second."""
    from moto.kms import models
    from moto.server import ThreadedMotoServer

    # moto gives symmetric keys an RSA key too, which nothing uses and which takes longer than everything else.
    generate = models.generate_private_key
    models.generate_private_key = lambda spec: None if spec == "SYMMETRIC_DEFAULT" else generate(spec)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # moto imports a service at its first request, which takes longer than a client under test may wait.
    for service, body in (("kms", b"{}"), ("sts", b"Action=GetCallerIdentity&Version=2011-06-15")):
        _send_to_moto((host, port), service, "111122223333", "eu-west-1", _WARM_UP[service], body)
    return host, port


_WARM_UP: dict[str, Mapping[str, str]] = {
    "kms": {"X-Amz-Target": "TrentService.CreateKey", "Content-Type": "application/x-amz-json-1.1"},
    "sts": {"Content-Type": "application/x-www-form-urlencoded"},
}


def ask_moto(service: str, account: str, region: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
    """Send a request to moto as if by somebody of this account, in this region."""
    return _send_to_moto(moto_address(), service, account, region, headers, body)


def _send_to_moto(
    address: tuple[str, int], service: str, account: str, region: str, headers: Mapping[str, str], body: bytes
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=60)
    scope = f"AKIAMOTO/20260101/{region}/{service}/aws4_request"
    signed = {
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0",
        "x-moto-account-id": account,
    }
    try:
        connection.request("POST", "/", body, {**headers, **signed})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def ask_moto_kms(account: str, region: str, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Call one KMS operation of moto and return its answer; its errors become `AwsError`."""
    headers = {"X-Amz-Target": f"TrentService.{operation}", "Content-Type": "application/x-amz-json-1.1"}
    status, body = ask_moto("kms", account, region, headers, json.dumps(parameters).encode())
    answer: dict[str, Any] = json.loads(body or b"{}")
    if status >= 400:
        raise AwsError(answer["__type"].rpartition("#")[2], answer.get("message", answer.get("Message", "")), status)
    return answer


def iterate_counter(counters: list[Counter]) -> Iterator[Counter]:
    """Register a counter for the length of a `with` block."""
    counter = Counter()
    counters.append(counter)
    try:
        yield counter
    finally:
        # By identity: two empty counters are equal.
        counters[:] = [one for one in counters if one is not counter]


def error_reply(error: AwsError, *, sts: bool) -> Reply:
    status = error.status or 400
    if not sts:
        body = {"__type": error.code, "message": error.message} if error.code else {}
        return Reply(status, json.dumps(body).encode())
    xml = (
        '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
        f"<Code>{escape(error.code)}</Code><Message>{escape(error.message)}</Message></Error>"
        "<RequestId>00000000-0000-0000-0000-000000000000</RequestId></ErrorResponse>"
    )
    return Reply(status, xml.encode(), "text/xml")


def caller_identity(arn: str, account: str) -> bytes:
    return (
        '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
        f"<Arn>{escape(arn)}</Arn><UserId>AIDA</UserId><Account>{account}</Account>"
        "</GetCallerIdentityResult></GetCallerIdentityResponse>"
    ).encode()


def element(xml: str, name: str) -> str:
    match = re.search(f"<{name}>(.*?)</{name}>", xml)
    assert match is not None, f"moto answered without {name}"
    return match[1]
