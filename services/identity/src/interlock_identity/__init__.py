"""Who a Slack user is, and short-lived tokens that say so."""
