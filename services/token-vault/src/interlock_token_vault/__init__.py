"""The only process that can open a Slack token."""
