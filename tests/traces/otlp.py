"""A judge that is not ours: OpenTelemetry's own schema reads what we send."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


def decoded(body: bytes) -> ExportTraceServiceRequest:
    """Return a message as the schema has it; what the schema does not know is an error.

    OTLP's JSON is protobuf's, but for ids, which are hex instead of base64.
    """
    value = copy.deepcopy(json.loads(body))
    for of_resource in value["resourceSpans"]:
        for of_scope in of_resource["scopeSpans"]:
            for span in of_scope["spans"]:
                for name, size in (("traceId", 16), ("spanId", 8), ("parentSpanId", 8)):
                    if name in span:
                        raw = bytes.fromhex(span[name])
                        assert len(raw) == size
                        assert any(raw)
                        span[name] = base64.b64encode(raw).decode()
    found = ExportTraceServiceRequest()
    json_format.ParseDict(value, found)
    return found


def spans_in(*bodies: bytes) -> list[Span]:
    """Return all spans of messages, the earliest first."""
    found = [
        span
        for body in bodies
        for of_resource in decoded(body).resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]
    return sorted(found, key=lambda one: (one.start_time_unix_nano, one.end_time_unix_nano))


def attributes(span: Span) -> dict[str, Any]:
    """Return a span's attributes."""
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value") or "") for one in span.attributes
    }


__all__ = ["Span", "attributes", "decoded", "spans_in"]
