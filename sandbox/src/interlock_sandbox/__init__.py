"""Stand-ins for Slack, the agents platform and the auth server, and the playground."""
