"""A stand-in for Slack: its OAuth pages, Web API and signed requests."""
