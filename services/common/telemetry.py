"""Logs, traces and metrics of a service process. Knows no service."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from services.common.settings import ServerSettings


def set_up(service: str, settings: ServerSettings) -> None:
    """Logs to standard error; traces to the OTLP endpoint and metrics to the Prometheus port, where set. Call once, first."""
    renderer = structlog.processors.JSONRenderer() if settings.log_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_trace,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    resource = Resource.create({"service.name": f"tunetrial-{service}"})
    provider = TracerProvider(resource=resource)
    if settings.otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  slow to import, seldom needed

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.otlp_endpoint)))
    trace.set_tracer_provider(provider)
    if settings.metrics_port is not None:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader  # noqa: PLC0415
        from prometheus_client import start_http_server  # noqa: PLC0415

        metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=[PrometheusMetricReader()]))
        start_http_server(settings.metrics_port, addr=settings.host)


def _add_trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = format(context.trace_id, "032x")
    return event


class CallMeter:
    """Counts calls by rpc and status and measures how long they take."""

    def __init__(self) -> None:
        meter = metrics.get_meter("tunetrial")
        self._calls = meter.create_counter("tunetrial_calls", description="Calls by rpc and status code")
        self._duration = meter.create_histogram("tunetrial_call_duration_ms", unit="ms", description="Duration of calls by rpc")

    def record(self, method: str, code: str, started: float) -> None:
        """`started` is a `time.monotonic()` value."""
        self._calls.add(1, {"rpc": method, "code": code})
        self._duration.record((time.monotonic() - started) * 1e3, {"rpc": method})
