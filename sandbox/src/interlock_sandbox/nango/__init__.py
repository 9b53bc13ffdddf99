"""A stand-in for Nango: it keeps Slack's tokens for an app that asks for them."""
