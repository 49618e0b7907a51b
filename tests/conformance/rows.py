"""Every row of the OTLP checklist, and what of it we do. A test proves that each has its test.

The numbers are those of the project's reading of the specification (opentelemetry-proto 1.11,
`docs/specification.md`, and `protocol/exporter.md`). Where a row says "may", or leaves it open,
the text here is the choice that its test holds us to.
"""

from __future__ import annotations

from typing import Final

RECEIVER: Final = {
    "R1": "none, gzip and deflate are accepted; over HTTP zstd as well",
    "R2": "the size limit also holds after decompression, for every coding",
    "R3": "responses stay small, whatever there is to say",
    "R4": "an empty request is a success",
    "R5": "full success has no partial_success",
    "R6": "a request is taken whole or refused whole: nothing is ever accepted in part",
    "R7": "full acceptance carries no warning: clients would log it for each request",
    "R8": "backpressure is retryable and says when",
    "R9": "bad data is refused for good",
    "R10": "unknown fields are ignored, and in protobuf they are passed on",
    "R11": "flags are passed on, high bits and all",
    "R12": "attribute values of every type, empty and mixed, are passed on",
    "R13": "string indexes are no error: passed on, read as absent, and warned of",
    "R14": "duplicate keys are passed on; the last one counts",
    "R15": "spans with invalid ids are passed on, counted, and not judged",
    "R16": "empty envelopes are passed on",
    "R17": "JSON and protobuf share the port, by Content-Type",
    "R18": "gRPC and HTTP do not share a port: the other one is refused at once",
}
GRPC: Final = {
    "G-services": "one service for each signal, on 4317",
    "G-throttling": "UNAVAILABLE with RetryInfo",
    "G-bad-data": "INVALID_ARGUMENT",
    "G-oversized": "RESOURCE_EXHAUSTED without RetryInfo",
    "G-retryable": "the six codes that are sent again",
    "G-not-retryable": "the nine codes that are not",
    "G-conditional": "RESOURCE_EXHAUSTED is, with RetryInfo alone",
    "G-unknown": "another service or method is UNIMPLEMENTED",
    "G-codings": "gzip and deflate; zstd and snappy are refused with the status of grpcio",
    "G-exception": "a bug of ours is retryable, never UNKNOWN",
}
HTTP: Final = {
    "H-port": "4318, POST to a path for each signal",
    "H-success": "200 with the response in the request's type",
    "H-media-type": "parameters of Content-Type are tolerated",
    "H-status-body": "every 4xx and 5xx has a google.rpc.Status in the request's type",
    "H-400": "undecodable: not sent again",
    "H-413": "over the limit: not sent again",
    "H-429": "overloaded, with or without Retry-After: sent again",
    "H-502": "a gateway in trouble: sent again",
    "H-other": "any other 4xx and 5xx: not sent again",
    "H-405": "wrong method",
    "H-415": "wrong type or coding",
    "H-404": "unknown path",
    "H-round-up": "Retry-After is rounded up to whole seconds",
}
JSON: Final = {
    "J-ids": "hex in any case, never base64",
    "J-bytes": "base64 elsewhere",
    "J-enums": "integers out; names are read as well",
    "J-64-bit": "decimal strings out; numbers are read as well",
    "J-keys": "lowerCamelCase out; snake_case is read as well",
    "J-unknown": "unknown names are ignored",
    "J-non-finite": "NaN, Infinity and -Infinity are strings",
    "J-file": "JSON lines: one request on each",
}
EXPORTER: Final = {
    "E1": "transient failures are retried, with backoff",
    "E2": "RetryInfo and both forms of Retry-After are honoured",
    "E3": "what may not be retried is not: dropped and counted",
    "E4": "partial success is not retried: told and counted",
    "E5": "an empty partial_success is success",
    "E6": "requests over the limit go in pieces; what cannot is dropped and counted",
    "E7": "a response over 4 MiB is final: after a success, the data counts as sent",
    "E8": "num_consumers requests are under way at once",
    "E9": "connections are kept, and made again when the server goes or falls silent",
    "E10": "a slow destination holds up no other; they share the bytes",
    "E11": "at shutdown what is held is delivered in time, or counted",
    "E12": "User-Agent names product, exporter, language and version",
    "E13": "http/protobuf is the default protocol of the environment; gRPC is there",
    "E14": "a lost acknowledgement is a duplicate, counted once",
}
ROWS: Final = {**RECEIVER, **GRPC, **HTTP, **JSON, **EXPORTER}
