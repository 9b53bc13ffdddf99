"""The runner's settings."""

from datetime import timedelta
from typing import Literal

from pydantic import Field

from interlock_chassis.config import HttpUrl, ServiceSettings


class RunnerSettings(ServiceSettings):
    """What the runner is told; it holds no secret but its own certificate."""

    manage_url: HttpUrl
    """Base URL of the agents platform's Manage API."""

    run_url: HttpUrl
    """Base URL of the agents platform's Run API."""

    manage_path_style: Literal["plain", "tenant"] = "plain"
    """`plain`: `/manage/api/projects`; `tenant`: `/manage/tenants/{tenant}/projects`."""

    run_silence_seconds: int = Field(default=60, ge=1, le=1800)
    """How long a run may say nothing before it is ended, in seconds."""

    @property
    def run_silence(self) -> timedelta:
        """`run_silence_seconds` as a duration."""
        return timedelta(seconds=self.run_silence_seconds)
