"""Settings of the identity process."""

from typing import Annotated

from pydantic import PlainValidator

from interlock_chassis.config import DatabaseUrlFile, DocumentFile, HttpUrl, ServiceSettings
from interlock_identity.domain.agents import Agent

_MAX_ID_LENGTH = 256


def _agent(value: object) -> Agent | None:
    if value is None or value == "":
        return None
    if isinstance(value, Agent):
        return value
    project_id, slash, agent_id = str(value).partition("/")
    parts = (project_id, agent_id)
    if not slash or "/" in agent_id or not all(0 < len(part) <= _MAX_ID_LENGTH for part in parts):
        raise ValueError("must be project/agent")
    return Agent(project_id, agent_id)


def _cookie_name(value: object) -> str:
    name = str(value)
    plain = name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    if not plain or name.startswith("__"):
        # The auth server itself puts `__Secure-` before it where it is https.
        raise ValueError("must be a cookie name without the prefix __Secure-")
    return name


class IdentitySettings(ServiceSettings):
    """What the identity process is told."""

    database_url_file: DatabaseUrlFile
    """File with the Postgres URL of identity's own database, as role `interlock_identity`."""

    auth_url: HttpUrl
    """Base URL of the auth server; `/api/auth/...` is asked below it."""

    session_cookie_name: Annotated[str, PlainValidator(_cookie_name)] = "better-auth.session_token"
    """Name of the auth server's session cookie, without `__Secure-`."""

    membership_database_url_file: DatabaseUrlFile
    """File with the Postgres URL of the auth server's database, as a role that reads `member`."""

    grant_keys_file: DocumentFile
    """Identity's private keyset: signs adminGrant, installGrant and renewedGrant."""

    grant_public_keys_file: DocumentFile
    """Public keyset that grants are verified with: the edge's and identity's own."""

    user_token_keys_file: DocumentFile
    """Keyset with the HS256 secret that the platform verifies slackUser tokens with."""

    default_agent: Annotated[Agent | None, PlainValidator(_agent)] = None
    """The agent that answers where no administrator chose one, `project/agent`."""
