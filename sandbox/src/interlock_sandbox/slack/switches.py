"""What can be changed about this Slack while it runs."""

from dataclasses import dataclass

from interlock_sandbox.slack.tokens import Rotation


@dataclass
class Switches:
    """Rules of Slack that are on for some apps and off for others.

    Attributes:
        rotation: Token rotation of the app.
        rate_limits: Whether calls over a method's tier are answered 429.
        history_once_a_minute: Whether history and replies are limited as for
            apps outside of Slack's Marketplace: one call a minute, 15 messages.
        delayed_events: Whether an event that was never taken is sent again
            every `delayed_event_interval_s` for a day.
        skew_s: How wrong the clock is by which Slack stamps its requests.
    """

    rotation: Rotation
    rate_limits: bool
    history_once_a_minute: bool
    delayed_events: bool
    delayed_event_interval_s: float
    skew_s: float = 0
