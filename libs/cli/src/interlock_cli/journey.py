"""The product's main path, walked over HTTP as its users walk it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from interlock_cli.browser import Browser, Page
from interlock_cli.product import Urls

T = TypeVar("T")
Json = dict[str, Any]

# Every wait is for something that takes well under a second on an idle machine.
_PATIENCE = timedelta(seconds=30)
_POLL_S = 0.03
_WORK_APP = "/work-apps/slack/"


class JourneyFailed(Exception):
    """The product did not do what the next step needs; the message says what."""


@dataclass(frozen=True)
class Somebody:
    """A person of the sandbox.

    Attributes:
        name: As pages show it.
        account: Id at the auth server.
        slack_user: Id in the Slack workspace.
    """

    name: str
    account: str
    slack_user: str


ADA = Somebody("Ada Lindqvist", "user_ada", "U0ADA")
"""Owner of the organization and of the Slack workspace; installs the app."""

MIA = Somebody("Mia Castellanos", "user_mia", "U0MIA")
"""Member of both; asks a question."""

OLGA = Somebody("Olga Petrenko", "user_olga", "U0OLGA")
"""Owner of another organization and of its workspace."""

TEAM = "T0NORTHWIND"
"""The Slack workspace of Ada and Mia."""


@dataclass(frozen=True)
class Question:
    """A message that asked something.

    Attributes:
        ts: Names the message, and the thread below it.
    """

    channel: str
    ts: str
    asker: Somebody


@dataclass(frozen=True)
class Answer:
    """An answer in Slack, and how it came.

    Attributes:
        lengths: How long its text was each time it had changed.
    """

    text: str
    lengths: tuple[int, ...]


class Journey:
    """One walk through the product.

    Args:
        urls: Where the product answers.
        http: For the sandbox's control routes.
        patience: How long to wait for what the product does by itself.
    """

    def __init__(
        self, urls: Urls, http: aiohttp.ClientSession, *, patience: timedelta = _PATIENCE
    ) -> None:
        self._urls = urls
        self._patience = patience
        self._http = http
        self._link_codes: list[str] = []

    async def sign_in(self, browser: Browser, person: Somebody) -> Page:
        """Sign in from the welcome page and come back to the dashboard."""
        welcome = (await browser.open(f"{self._urls.edge}/")).require()
        return await self._sign_in_at(
            browser, await browser.open(welcome.find_link("/sign-in")), person
        )

    async def install(self, browser: Browser, dashboard: Page) -> Page:
        """Install the app into the workspace, by Slack's consent page.

        Returns:
            The dashboard, which shows the workspace.

        Raises:
            JourneyFailed: Slack has no installation afterwards.
        """
        consent = await browser.submit(dashboard, dashboard.find_form("/install"))
        form = consent.require("Interlock").find_form("/oauth/v2/authorize")
        choices = {"installer": f"{TEAM}/{ADA.slack_user}", "decision": "allow"}
        after = (await browser.submit(consent, form, choices)).require("Northwind")
        if (await self._workspace())["installation"] is None:
            raise JourneyFailed("Slack has no installation of the app")
        return after

    async def ask(self, asker: Somebody, words: str, channel: str = "help") -> Question:
        """Mention the app in a channel."""
        workspace = await self._workspace()
        if workspace["installation"] is None:
            raise JourneyFailed("the app is not installed")
        [place] = [each["id"] for each in workspace["channels"] if each["name"] == channel]
        bot = workspace["installation"]["bot_user"]
        posted = await self._control(
            "post",
            {
                "team": TEAM,
                "user": asker.slack_user,
                "channel": place,
                "text": f"<@{bot}> {words}",
            },
        )
        return Question(place, posted["ts"], asker)

    async def find_link_prompt(self, question: Question) -> str:
        """Wait for the prompt to link, and return its button's URL.

        Raises:
            JourneyFailed: None came, or others see it too.
        """

        async def look() -> str | None:
            for message in await self._messages(question):
                url = next(_link_urls(message.get("blocks", [])), None)
                if url is None:
                    continue
                if message.get("sandbox", {}).get("ephemeral_to") != question.asker.slack_user:
                    raise JourneyFailed("the prompt to link is not for the asker's eyes only")
                self._link_codes.append(URL(url).query["code"])
                return url
            return None

        return await self._until("no prompt to link came", look)

    async def link(self, browser: Browser, url: str, person: Somebody) -> Page:
        """Open the link, sign in, confirm, and return the page that says it is done."""
        confirm = await browser.open(url)
        if "sign-in" in confirm.url.path:
            confirm = await self._sign_in_at(browser, confirm, person)
        form = confirm.require(person.name, "Northwind").find_form("/link/redeem")
        choices = {name: value for name, value in form.choices if name == "confirm"}
        return (await browser.submit(confirm, form, choices)).require()

    async def watch_answer(self, question: Question) -> Answer:
        """Watch the thread until its answer has ended.

        Raises:
            JourneyFailed: No answer came, or it did not end.
        """
        lengths: list[int] = []

        async def look() -> Answer | None:
            for message in await self._messages(question):
                is_answer = message.get("thread_ts") == question.ts and "bot_id" in message
                beside = message.get("sandbox", {})
                if not is_answer or "ephemeral_to" in beside:
                    continue
                text = message["text"]
                if text and (not lengths or len(text) != lengths[-1]):
                    lengths.append(len(text))
                if text and beside.get("streaming", "closed") != "open":
                    return Answer(text, tuple(lengths))
            return None

        return await self._until("no finished answer came", look)

    async def read_audit(self, browser: Browser) -> Page:
        """Open the audit page of the workspace, from the dashboard."""
        dashboard = (await browser.open(f"{self._urls.edge}{_WORK_APP}")).require("Northwind")
        path = dashboard.find_link("/workspaces/")
        workspace = (await browser.open(f"{self._urls.edge}{path}")).require("Northwind")
        return (await browser.open(f"{self._urls.edge}{workspace.find_link('/audit')}")).require()

    async def list_secrets(self) -> dict[str, list[str]]:
        """Return every secret that was issued or shown on the way, by kind."""
        slack, platform, auth = [
            await self._get(f"{url}/_control/secrets")
            for url in (self._urls.slack, self._urls.platform, self._urls.auth)
        ]
        return {
            "Slack token": slack["tokens"],
            "OAuth code": slack["codes"],
            "link code": self._link_codes,
            "response URL": slack["response_urls"],
            "verification token": [slack["verification_token"]],
            "user token": platform["tokens"],
            "session token": auth["tokens"],
            "session cookie": auth["cookies"],
        }

    async def _sign_in_at(self, browser: Browser, page: Page, person: Somebody) -> Page:
        form = page.require().find_form("/sign-in")
        return (await browser.submit(page, form, {"person": person.account})).require(person.name)

    async def _until(self, failure: str, look: Callable[[], Awaitable[T | None]]) -> T:
        """Look again and again until something is seen."""
        seconds = self._patience.total_seconds()
        deadline = time.monotonic() + seconds
        while (seen := await look()) is None:
            if time.monotonic() > deadline:
                raise JourneyFailed(f"{failure} within {seconds:.0f} s")
            await asyncio.sleep(_POLL_S)
        return seen

    async def _messages(self, question: Question) -> list[Json]:
        asker = question.asker.slack_user
        query = f"team={TEAM}&channel={question.channel}&user={asker}"
        found = await self._get(f"{self._urls.slack}/_control/messages?{query}")
        messages: list[Json] = found["messages"]
        return messages

    async def _workspace(self) -> Json:
        state = await self._get(f"{self._urls.slack}/_control/state")
        [workspace] = [each for each in state["workspaces"] if each["id"] == TEAM]
        found: Json = workspace
        return found

    async def _control(self, what: str, body: Json) -> Json:
        async with self._http.post(f"{self._urls.slack}/_control/{what}", json=body) as response:
            answer: Json = await response.json()
            if not response.ok:
                raise JourneyFailed(f"the sandbox refused to {what}: {answer.get('error')}")
            return answer

    async def _get(self, url: str) -> Json:
        async with self._http.get(url) as response:
            response.raise_for_status()
            answer: Json = await response.json()
            return answer


def _link_urls(node: object) -> Iterator[str]:
    """Find the URLs of a message's blocks that lead to the link page."""
    if isinstance(node, dict):
        url = node.get("url")
        if isinstance(url, str) and f"{_WORK_APP}link?code=" in url:
            yield url
        for value in node.values():
            yield from _link_urls(value)
    elif isinstance(node, list):
        for value in node:
            yield from _link_urls(value)
