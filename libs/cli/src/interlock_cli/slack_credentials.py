"""Credentials of a real Slack app, when someone put them into the data folder."""

from dataclasses import dataclass
from pathlib import Path

from interlock_chassis.secret import Secret

_NAMES = ("app_id", "client_id", "client_secret", "signing_secret")


class IncompleteCredentials(Exception):
    """Some of the four files are there, but not all."""


@dataclass(frozen=True)
class SlackCredentials:
    """The files of one Slack app.

    Attributes:
        app_id: `A…`.
        client_id: As Slack's page *Basic Information* shows it.
        client_secret_file: Holds the client secret.
        signing_secret_file: Holds the signing secret.
        user_scopes: What to ask of whoever installs, as INTERLOCK_SLACK_USER_SCOPES;
            from the file `user_scopes`, which need not be there.
    """

    app_id: str
    client_id: str
    client_secret_file: Path
    signing_secret_file: Path
    user_scopes: str = ""


def find_credentials(folder: Path) -> SlackCredentials | None:
    """Return the credentials in a folder, or None when there are none.

    Raises:
        IncompleteCredentials: Only some of the files are there.
        ConfigError: A file is blank or ends in a newline.
    """
    there = [name for name in _NAMES if (folder / name).is_file()]
    if not there:
        return None
    if missing := [name for name in _NAMES if name not in there]:
        raise IncompleteCredentials(f"{folder} lacks {', '.join(missing)}")
    texts = {
        name: Secret.from_file(folder / name, variable=str(folder / name)).reveal()
        for name in ("app_id", "client_id")
    }
    scopes = folder / "user_scopes"
    return SlackCredentials(
        app_id=texts["app_id"],
        client_id=texts["client_id"],
        client_secret_file=folder / "client_secret",
        signing_secret_file=folder / "signing_secret",
        user_scopes=scopes.read_text().strip() if scopes.is_file() else "",
    )
