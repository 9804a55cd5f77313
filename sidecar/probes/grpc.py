"""gRPC probes: `grpc.health.v1.Health/Check` over HTTP/2, in the clear or in TLS, always on a new connection."""

from __future__ import annotations

from sidecar.core.model import Reason
from sidecar.net.dial import Wire
from sidecar.probes.attempt import Attempt, Failed, now

PATH = "/grpc.health.v1.Health/Check"
MAX_RECEIVED = 64 * 1024
MAX_MESSAGE = 1024
MAX_EVENTS = 100
"""More happens in no health call; a flood of small frames would keep our processor busy until the bytes are too many."""
SLICE_BYTES = 1024
"""Taken at once, so that the flood is seen early."""
SETTINGS = 4

_SERVING = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_CODES = {
    1: "CANCELLED", 2: "UNKNOWN", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND", 7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED", 12: "UNIMPLEMENTED", 13: "INTERNAL", 14: "UNAVAILABLE", 16: "UNAUTHENTICATED",
}  # fmt: skip


async def ask_grpc(attempt: Attempt) -> None:
    """Good when the server says SERVING."""
    wire = await attempt.dial()
    attempt.phase = "headers"
    call = _Call(attempt)
    sent = now()
    await wire.send(call.request())
    await _converse(attempt, wire, call, sent)
    call.judge()


async def _converse(attempt: Attempt, wire: Wire, call: _Call, sent: float) -> None:
    received = 0
    while not call.is_done:
        data = await wire.receive(just_sent=received == 0)
        if received == 0 and data:
            attempt.first_byte_s = now() - sent
        received += len(data)
        if not data:
            raise Failed(Reason.BAD_RESPONSE, f"the server closed without a complete answer, after {received} bytes", by_lateness=True)
        if received > MAX_RECEIVED:
            raise Failed(Reason.BAD_RESPONSE, f"the answer is longer than {MAX_RECEIVED // 1024} KiB")
        reply = call.feed(data)
        if call.has_head:
            attempt.phase = "body"
        if reply:
            await wire.send(reply)


class _Call:
    """One unary call in the hands of h2, which is imported only where gRPC is probed."""

    def __init__(self, attempt: Attempt) -> None:
        from h2.config import H2Configuration
        from h2.connection import H2Connection

        self._attempt = attempt
        self._connection = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._head: dict[bytes, bytes] = {}
        self._message = bytearray()
        self._first = b""
        self._events = 0
        self.has_head = False
        self.is_done = False

    def request(self) -> bytes:
        """The connection preface and the whole request."""
        spec, address = self._attempt.spec, self._attempt.address
        scheme = "https" if self._attempt.question.context is not None else "http"
        self._connection.initiate_connection()
        self._connection.send_headers(
            1,
            [
                (":method", "POST"),
                (":scheme", scheme),
                (":path", PATH),
                (":authority", spec.host or str(address)),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("user-agent", "lb-sidecar"),
                ("grpc-timeout", f"{max(1, int(self._attempt.timeout_s * 1000))}m"),
            ],
        )
        self._connection.send_data(1, _framed(_health_request(spec.grpc or "")), end_stream=True)
        return self._connection.data_to_send()

    def feed(self, data: bytes) -> bytes:
        """Take what arrived; what must be sent in return. `Failed` when it is no HTTP/2 or the server gave the call up."""
        from h2 import events
        from h2.exceptions import H2Error

        self._check_preface(data)
        happened: list[events.Event] = []
        try:
            for at in range(0, len(data), SLICE_BYTES):
                happened += self._connection.receive_data(data[at : at + SLICE_BYTES])
                if self._events + len(happened) > MAX_EVENTS:
                    raise Failed(Reason.BAD_RESPONSE, f"more than {MAX_EVENTS} HTTP/2 frames and no end of the answer")
        except (H2Error, ValueError, IndexError) as error:
            raise Failed(Reason.BAD_RESPONSE, f"not a valid HTTP/2 answer: {error}; it began {data[:24]!r}") from error
        self._events += len(happened)
        for event in happened:
            if isinstance(event, events.ResponseReceived | events.TrailersReceived):
                self.has_head = True
                self._head.update((bytes(name), bytes(value)) for name, value in event.headers or ())
            elif isinstance(event, events.DataReceived):
                self._message += event.data or b""
                self._connection.acknowledge_received_data(event.flow_controlled_length or 0, 1)
            elif isinstance(event, events.StreamEnded):
                self.is_done = True
            elif isinstance(event, events.StreamReset | events.ConnectionTerminated) and not self.is_done:
                raise Failed(Reason.BAD_RESPONSE, f"the server gave the call up: HTTP/2 error {event.error_code!s}")
        if len(self._message) > MAX_MESSAGE:
            raise Failed(Reason.BAD_RESPONSE, f"the health answer is longer than {MAX_MESSAGE} bytes")
        return self._connection.data_to_send()

    def _check_preface(self, data: bytes) -> None:
        """A server begins with SETTINGS (RFC 9113, 3.4). h2 would wait for the millions of bytes that `HTTP/1.1` means as a frame."""
        if len(self._first) < 4:
            self._first += data[:24]
            if len(self._first) >= 4 and (self._first[3] != SETTINGS or self._first[:2] != b"\0\0"):
                raise Failed(Reason.BAD_RESPONSE, f"not a valid HTTP/2 answer; it began {self._first!r}")

    def judge(self) -> None:
        """`Failed` unless the complete answer says SERVING."""
        status = self._head.get(b":status", b"")
        if status != b"200":
            raise Failed(Reason.STATUS, f"HTTP status {status.decode('latin-1')}, so gRPC is not spoken here")
        code = self._head.get(b"grpc-status", b"")
        if code != b"0":
            raise Failed(Reason.STATUS, _code_detail(code, self._head.get(b"grpc-message", b"")))
        serving = _health_answer(bytes(self._message))
        if serving != 1:
            raise Failed(Reason.STATUS, f"the service says {_SERVING.get(serving, serving)}")


def _code_detail(code: bytes, message: bytes) -> str:
    if not code.isdigit() or len(code) > 3:
        return "the answer has no grpc-status"
    number = int(code)
    hint = {5: ": the server does not know this service name", 12: ": the server has no health service"}.get(number, "")
    said = f" ({message[:80].decode('latin-1')})" if message else ""
    return f"gRPC code {number} {_CODES.get(number, '')}{hint}{said}"


def _framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def _health_request(service: str) -> bytes:
    """HealthCheckRequest: field 1, the service's name."""
    name = service.encode("ascii")
    return b"\x0a" + _varint(len(name)) + name if name else b""


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _health_answer(framed: bytes) -> int:
    """The serving status in a framed HealthCheckResponse; 0 when the message leaves it out. `Failed` if it is none."""
    if len(framed) < 5 or framed[0] != 0 or int.from_bytes(framed[1:5], "big") != len(framed) - 5:
        raise Failed(Reason.BAD_RESPONSE, "the gRPC message is compressed or cut short")
    status, at = 0, 5
    while at < len(framed):
        tag, at = _read_varint(framed, at)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _read_varint(framed, at)
            status = value if field == 1 else status
        elif kind == 2:
            size, at = _read_varint(framed, at)
            at += size
        else:
            at += {1: 8, 5: 4}.get(kind, len(framed))
    if at != len(framed):
        raise Failed(Reason.BAD_RESPONSE, "the health answer is no valid message")
    return status


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 127) << shift
        at += 1
        if not data[at - 1] & 128:
            return value, at
        shift += 7
    raise Failed(Reason.BAD_RESPONSE, "the health answer is no valid message")
