"""The browser client of the Slack stand-in."""
