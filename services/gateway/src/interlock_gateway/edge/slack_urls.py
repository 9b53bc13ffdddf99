"""Addresses of Slack's own pages."""

from urllib.parse import urlencode


class SlackUrls:
    """Where to send a browser at Slack.

    Args:
        slack_url: Slack's origin.
        app_id: Our app, `A…`.
    """

    def __init__(self, slack_url: str, app_id: str) -> None:
        self._slack_url = slack_url.rstrip("/")
        self._app_id = app_id

    def app_in(self, slack_team_id: str) -> str:
        """Return where the app opens in a workspace."""
        query = urlencode({"app": self._app_id, "team": slack_team_id})
        return f"{self._slack_url}/app_redirect?{query}"
