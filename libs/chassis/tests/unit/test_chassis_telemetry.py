"""Ids and traces cross from hop to hop, and no further than they should."""

import pytest
from opentelemetry import trace

from interlock_chassis import telemetry
from interlock_chassis.errors import ConfigError

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def trace_of(headers: dict[str, str]) -> str:
    """Return the trace that headers continue."""
    return telemetry.trace_id_of(trace.get_current_span(telemetry.trace_context(headers)))


def test_new_request_ids_are_well_formed_and_differ() -> None:
    """An id made here is accepted there, and there are enough of them."""
    made = {telemetry.new_request_id() for _ in range(100)}
    assert len(made) == 100
    assert all(telemetry.accept_request_id(one) == one for one in made)


@pytest.mark.parametrize("offered", [None, "", "short", "x" * 65, "with space", "line\nbreak99"])
def test_a_malformed_request_id_is_replaced(offered: str | None) -> None:
    """What a peer sends as an id cannot forge log lines or fill them."""
    assert telemetry.accept_request_id(offered) != offered


def test_a_scope_puts_an_id_in_force_and_takes_it_back() -> None:
    """Scopes nest; outside of any there is no id."""
    assert telemetry.current_request_id() == ""
    with telemetry.request_id_scope("outer-id"):
        with telemetry.request_id_scope("inner-id"):
            assert telemetry.current_request_id() == "inner-id"
        assert telemetry.current_request_id() == "outer-id"
    assert telemetry.current_request_id() == ""


def test_a_malformed_id_cannot_be_put_in_force() -> None:
    """An id that would not be accepted by the next hop is a bug here."""
    with pytest.raises(ValueError, match="request id"), telemetry.request_id_scope("bad id!"):
        pass


def test_a_trace_is_continued() -> None:
    """The trace of the peer is ours too."""
    assert trace_of({"traceparent": PARENT}) == TRACE_ID


def test_a_trace_crosses_as_it_came() -> None:
    """What is continued here is sent on to the next hop."""
    context = telemetry.trace_context({"traceparent": PARENT, "tracestate": "a=b"})
    with trace.use_span(trace.get_current_span(context)):
        assert telemetry.trace_headers() == {"traceparent": PARENT, "tracestate": "a=b"}


@pytest.mark.parametrize("header", ["", "garbage", PARENT + "-" + "x" * 500])
def test_a_malformed_or_oversized_trace_is_dropped(header: str) -> None:
    """A trace header nobody can use starts no trace and is not passed on."""
    assert trace_of({"traceparent": header}) == ""


def test_an_oversized_state_is_dropped_and_the_trace_kept() -> None:
    """More than 512 bytes of tracestate go no further."""
    context = telemetry.trace_context({"traceparent": PARENT, "tracestate": "a=" + "b" * 511})
    with trace.use_span(trace.get_current_span(context)):
        assert telemetry.trace_headers() == {"traceparent": PARENT}


@pytest.mark.parametrize("endpoint", ["collector:4317", "ftp://collector", "http://", "http://a@b"])
def test_a_bad_tracing_endpoint_stops_the_start(endpoint: str) -> None:
    """The endpoint is a plain http or https URL."""
    with pytest.raises(ConfigError) as refused:
        telemetry.configure_tracing("runner", endpoint)
    assert refused.value.variable == "INTERLOCK_OTLP_ENDPOINT"


def test_no_endpoint_means_no_tracing() -> None:
    """Empty is off, and shutting down what never started is fine."""
    before = trace.get_tracer_provider()
    telemetry.configure_tracing("runner", "")
    telemetry.shut_down_tracing()
    assert trace.get_tracer_provider() is before


def test_metrics_are_written_as_text() -> None:
    """Every metric of the registry is in the text, with its help."""
    text = telemetry.metrics_text().decode()
    assert "# TYPE interlock_rpc_seconds histogram" in text
    assert "# TYPE interlock_rpc_refused_total counter" in text
