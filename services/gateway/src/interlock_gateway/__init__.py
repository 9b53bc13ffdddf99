"""The Slack-facing gateway: an edge that admits and a worker that converses."""
