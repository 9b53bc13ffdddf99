"""The main path over HTTP: install, ask, link, answer, audit."""

import pytest

from interlock_cli.browser import NotOnPage, open_browser
from interlock_cli.demo import MIN_STREAMED_STATES, QUESTION, search_for_leaks
from interlock_cli.journey import ADA, MIA, OLGA, Journey
from interlock_cli.launch import Running


async def test_first_question_is_answered_once_its_asker_has_linked(
    running: Running, journey: Journey
) -> None:
    """A mention by a stranger waits; after the link it runs by itself, streamed and audited."""
    async with open_browser(running.urls.edge) as ada, open_browser(running.urls.edge) as mia:
        await journey.install(ada, await journey.sign_in(ada, ADA))
        question = await journey.ask(MIA, QUESTION)
        await journey.link(mia, await journey.find_link_prompt(question), MIA)
        answer = await journey.watch_answer(question)
        audit = await journey.read_audit(ada)
    assert "30 days" in answer.text
    assert len(answer.lengths) >= MIN_STREAMED_STATES
    assert list(answer.lengths) == sorted(answer.lengths)
    audit.require("token.read")
    await search_for_leaks(running, await journey.list_secrets())


async def test_linked_person_is_answered_at_once(running: Running, journey: Journey) -> None:
    """The second question needs no link."""
    async with open_browser(running.urls.edge) as ada, open_browser(running.urls.edge) as mia:
        await journey.install(ada, await journey.sign_in(ada, ADA))
        first = await journey.ask(MIA, QUESTION)
        await journey.link(mia, await journey.find_link_prompt(first), MIA)
        await journey.watch_answer(first)
    second = await journey.ask(MIA, "I forgot my password")
    assert "password" in (await journey.watch_answer(second)).text


async def test_link_of_another_tenants_workspace_is_refused(
    running: Running, journey: Journey
) -> None:
    """Somebody of another organization who got hold of a link cannot use it up."""
    async with (
        open_browser(running.urls.edge) as ada,
        open_browser(running.urls.edge) as olga,
        open_browser(running.urls.edge) as mia,
    ):
        await journey.install(ada, await journey.sign_in(ada, ADA))
        question = await journey.ask(MIA, QUESTION)
        url = await journey.find_link_prompt(question)
        with pytest.raises(NotOnPage, match="another organization"):
            await journey.link(olga, url, OLGA)
        await journey.link(mia, url, MIA)
        await journey.watch_answer(question)


async def test_member_cannot_install(running: Running, journey: Journey) -> None:
    """Installing is for owners and admins; a member is shown no way to do it."""
    async with open_browser(running.urls.edge) as mia:
        dashboard = await journey.sign_in(mia, MIA)
        with pytest.raises(NotOnPage, match="/install"):
            await journey.install(mia, dashboard)
        refused = await mia.open(f"{running.urls.edge}/work-apps/slack/install")
    assert refused.status == 403
