"""What edge counts."""

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram


class EdgeMetrics:
    """Counters and timings of the HTTP surface.

    Args:
        registry: Where to register them, once per process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "interlock_edge_request_seconds",
            "How long an HTTP request took, by route, method and status.",
            ("route", "method", "status"),
            registry=registry,
            # Slack waits 3 s; an install may take 30 s.
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30),
        )
        self.slack = Counter(
            "interlock_edge_slack_requests",
            "Requests at Slack's URLs by kind and outcome: stored, replay, ignored, challenge, "
            "bad_signature, malformed, foreign_app, unavailable or refused.",
            ("kind", "outcome"),
            registry=registry,
        )
        self.ignored = Counter(
            "interlock_edge_ignored",
            "Verified requests acknowledged without effect, by reason.",
            ("why",),
            registry=registry,
        )
        self.audited = Counter(
            "interlock_edge_audited",
            "Attempts at what is somebody else's, by event; any of them deserves a look.",
            ("event",),
            registry=registry,
        )

    def audit(self, event: str, **facts: str) -> None:
        """Write the audit line of an attempt at what is somebody else's, and count it.

        Args:
            event: What happened, in the past tense; one of a few names.
            facts: Ids, safe to log; no text that somebody chose.
        """
        structlog.get_logger().warning(event, audit=True, **facts)
        self.audited.labels(event).inc()
