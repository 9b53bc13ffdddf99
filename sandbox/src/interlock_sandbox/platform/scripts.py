"""What the agents say: scripted answers, a word at a time.

A script yields the chunks of one answer, as the real platform streams them:
every word in a text block of its own, all with the same id.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

Chunk = dict[str, Any]


@dataclass(frozen=True)
class NamedEvent:
    """A server-sent event with a name, which ordinary chunks have not."""

    name: str
    data: dict[str, Any]


Piece = Chunk | NamedEvent
# How long an approval may wait before the run ends by itself, as on the real platform.
APPROVAL_LIFE_S = 600
# Enough volumes to pass the 12,000 characters that Slack takes in one message.
TOME_VOLUMES = 6
_WORD = re.compile(r"\S+\s*|\s+")
_SHAPE = re.compile(r"\bshape ([1-5])\b")
_ORDER = re.compile(r"\b[A-Z]{0,3}-?\d{3,8}\b")


@dataclass(frozen=True)
class Asking:
    """One question, and who asks it.

    Attributes:
        approve: Asks for a person's verdict on a tool call.
    """

    prompt: str
    first_name: str
    full_name: str
    organization: str
    word_delay_s: float
    approve: Callable[[str], asyncio.Future[bool]]


Script = Callable[[Asking], AsyncGenerator[Piece, None]]


@dataclass(frozen=True)
class _Article:
    words: frozenset[str]
    title: str
    answer: str


_ARTICLES = (
    _Article(
        frozenset({"refund", "return", "returns", "money", "back"}),
        "Returns and refunds",
        "Customers can return an order **within 30 days**. The money goes back to the card it"
        " came from, usually in three working days.\n\n"
        "1. Find the order and choose *Start a return*.\n"
        "2. Send the customer the label.\n"
        "3. The refund starts when the parcel is scanned.\n",
    ),
    _Article(
        frozenset({"password", "login", "sign", "vpn", "account", "access"}),
        "Getting back into your account",
        "Most sign-in trouble ends with a fresh password:\n\n"
        "1. Open `id.northwind.example` and choose *Forgot password*.\n"
        "2. Confirm the request on your phone.\n"
        "3. Restart the VPN client, so that it forgets the old one.\n",
    ),
    _Article(
        frozenset({"holiday", "vacation", "leave", "travel", "expense", "expenses"}),
        "Time off and travel",
        "You have **25 days** a year, and five of them may move into the next one. Ask your"
        " manager two weeks ahead; for trips, book first and file the receipts within a month.\n",
    ),
    _Article(
        frozenset({"deliver", "delivery", "shipping", "order", "parcel", "late"}),
        "Where a parcel is",
        "Parcels leave the warehouse **the same day** when the order came before 2 pm. After"
        " that the carrier's page knows more than we do; a parcel without news for five days"
        " counts as lost, and we send another.\n",
    ),
)
_ELSE = _Article(
    frozenset(),
    "Start here",
    "I found no article on exactly that, but these steps settle most questions:\n\n"
    "1. Search the help centre for *one* word of the question.\n"
    "2. Ask in **#help**, with what you tried.\n"
    "3. Still stuck? The desk answers every weekday from 8 to 18.\n",
)


async def help_desk(asking: Asking) -> AsyncGenerator[Chunk, None]:
    """Look an article up and quote it."""
    words = set(re.findall(r"[a-z]+", asking.prompt.lower()))
    article = max(_ARTICLES, key=lambda each: len(each.words & words))
    if not article.words & words:
        article = _ELSE
    async for chunk in _tool(asking, "search_articles", {"query": asking.prompt[:80]}, "1 article"):
        yield chunk
    async for chunk in _say(asking, f"Hello {asking.first_name}! {article.answer}"):
        yield chunk
    closing = (
        f"\nI answered as **{asking.full_name}** of {asking.organization}:"
        " I see what you may see, and nothing else."
    )
    async for chunk in _say(asking, closing):
        yield chunk
    slug = article.title.lower().replace(" ", "-")
    yield _citation(article.title, f"https://help.northwind.example/articles/{slug}")
    yield {"type": "data-summary", "data": {"type": "answer", "label": article.title}}


async def order_desk(asking: Asking) -> AsyncGenerator[Chunk, None]:
    """Use two tools, then answer with a table."""
    found = _ORDER.search(asking.prompt.upper())
    order = found[0] if found else "NW-10482"
    async for chunk in _tool(asking, "look_up_order", {"order": order}, {"state": "packed"}):
        yield chunk
    async for chunk in _tool(asking, "check_stock", {"sku": "LAMP-3"}, {"left": 41}):
        yield chunk
    answer = (
        f"Order **{order}** is packed and waits for the carrier.\n\n"
        "| Item | Quantity | State |\n| --- | --- | --- |\n"
        "| Desk lamp | 2 | packed |\n| Bulb, warm white | 4 | packed |\n"
        "| Extension cord | 1 | arrives tomorrow |\n\n"
        "The cord follows separately, so the customer gets *two* parcels."
    )
    async for chunk in _say(asking, answer):
        yield chunk


async def refunds(asking: Asking) -> AsyncGenerator[Chunk, None]:
    """Ask a person before the tool is used."""
    async for chunk in _say(asking, "I can pay back **€ 84.50** for order NW-10482."):
        yield chunk
    call = _call_id()
    given = {"order": "NW-10482", "amount": "84.50"}
    yield {"type": "tool-input-start", "toolCallId": call, "toolName": "issue_refund"}
    yield {
        "type": "tool-input-available",
        "toolCallId": call,
        "toolName": "issue_refund",
        "input": given,
    }
    # Somebody may answer as soon as the request is out.
    verdict = asking.approve(call)
    try:
        yield {"type": "tool-approval-request", "approvalId": f"aitxt-{call}", "toolCallId": call}
        approved = await asyncio.wait_for(verdict, APPROVAL_LIFE_S)
    except TimeoutError:
        approved = False
    finally:
        verdict.cancel()
    if approved:
        yield {"type": "tool-output-available", "toolCallId": call, "output": {"paid": True}}
        closing = "\n\nDone: the customer has the money in three working days."
    else:
        yield {"type": "tool-output-denied", "toolCallId": call}
        closing = "\n\nThen I leave it, and nothing was paid."
    async for chunk in _say(asking, closing):
        yield chunk


async def handbook(asking: Asking) -> AsyncGenerator[Chunk, None]:
    """Answer at length."""
    opening = f"{asking.first_name}, here is what the staff handbook says.\n\n"
    async for chunk in _say(asking, opening + _HANDBOOK):
        yield chunk
    yield _citation("Staff handbook, 2026", "https://handbook.northwind.example/2026")


async def tome(asking: Asking) -> AsyncGenerator[Chunk, None]:
    """Answer with more text than one message of Slack's holds, a paragraph at a time."""
    block = secrets.token_hex(8)
    for volume in range(1, TOME_VOLUMES + 1):
        for paragraph in (f"# Volume {volume}", *_HANDBOOK.strip().split("\n\n")):
            await asyncio.sleep(asking.word_delay_s)
            yield {"type": "text-start", "id": block}
            yield {"type": "text-delta", "id": block, "delta": f"{paragraph}\n\n"}
            yield {"type": "text-end", "id": block}


async def unlucky(asking: Asking) -> AsyncGenerator[Piece, None]:
    """Fail in the middle, in the way the real platform mostly does.

    A question with `shape 2` to `shape 5` gets one of its other ways.
    """
    async for chunk in _say(asking, "Let me work that out. First I gather the figures, and then"):
        yield chunk
    found = _SHAPE.search(asking.prompt)
    for piece in _FAILURES[int(found[1]) if found else 1]:
        yield piece


_TROUBLE, _TROUBLED_AT = "Unable to process request", 1_795_297_784_331
_FAILURES: dict[int, tuple[Piece, ...]] = {
    1: tuple(
        {
            "type": "data-operation",
            "data": {
                "type": "error",
                "message": message,
                "agent": agent,
                "severity": "error",
                "timestamp": _TROUBLED_AT,
            },
        }
        for agent, message in (
            ("unlucky", "Maximum error limit (3) reached"),
            ("system", _TROUBLE),
        )
    ),
    2: ({"type": "error", "errorText": _TROUBLE},),
    3: (
        {
            "type": "error",
            "message": "Stream lifetime exceeded",
            "severity": "error",
            "timestamp": _TROUBLED_AT,
        },
    ),
    4: ({"type": "error", "error": _TROUBLE},),
    5: (NamedEvent("error", {"error": "Stream error"}),),
}


async def silent(asking: Asking) -> AsyncGenerator[Chunk, None]:
    """Use a tool and say nothing."""
    async for chunk in _tool(asking, "think", {}, "nothing to say"):
        yield chunk


SCRIPTS: dict[str, Script] = {
    "help_desk": help_desk,
    "order_desk": order_desk,
    "refunds": refunds,
    "handbook": handbook,
    "tome": tome,
    "unlucky": unlucky,
    "silent": silent,
}


async def _say(asking: Asking, text: str) -> AsyncGenerator[Chunk, None]:
    block = secrets.token_hex(8)
    for word in _WORD.findall(text):
        await asyncio.sleep(asking.word_delay_s)
        yield {"type": "text-start", "id": block}
        yield {"type": "text-delta", "id": block, "delta": word}
        yield {"type": "text-end", "id": block}


async def _tool(
    asking: Asking, name: str, given: Chunk, output: Any
) -> AsyncGenerator[Chunk, None]:
    call = _call_id()
    yield {"type": "tool-input-start", "toolCallId": call, "toolName": name}
    yield {"type": "tool-input-available", "toolCallId": call, "toolName": name, "input": given}
    # A look-up takes as long as a short sentence.
    await asyncio.sleep(asking.word_delay_s * 12)
    yield {"type": "tool-output-available", "toolCallId": call, "output": output}


def _citation(title: str, url: str) -> Chunk:
    summary = {"title": title, "url": url}
    return {"type": "data-artifact", "data": {"type": "citation", "artifactSummary": summary}}


def _call_id() -> str:
    return f"call_{secrets.token_hex(8)}"


_HANDBOOK = """\
## Working hours

Most teams work between 8 and 18, and nobody counts minutes. What counts is that colleagues \
can reach you between 10 and 15, because that is when meetings are. If you start early, say \
so in your status; if you work late, let the message wait until the morning.

## Working from elsewhere

You may work **from anywhere in the country** up to three days a week, and from another \
country up to twenty days a year. Before you go abroad:

1. Tell your manager at least two weeks ahead.
2. Fill in the travel form, so that you are insured.
3. Leave devices with customer data at home; take a loan device instead.

## Time off

Everybody has **25 days**, and every second year one more. Ask in the calendar, not by mail: \
the calendar knows who else is away. Days that you could not take move into the next year, \
but only five of them, and only until the end of March.

When you are ill, say so before 9 and then rest. Nobody will ask what you have. From the \
fourth day we need a note from a doctor.

## Equipment

You choose your own machine from a short list, and you keep it for four years:

- a laptop with 14 or 16 inches,
- one screen, or two small ones,
- a chair that fits you, and *yes*, somebody comes to adjust it.

Broken things are replaced the same day at the desk on the second floor. Lost things have to \
be reported **within an hour**, at any time of day, so that we can lock them.

## Travel

Trains before planes whenever the journey takes less than six hours. Second class is the rule; \
first class is fine when it is cheaper, which happens more often than one thinks. Book with the \
travel desk, or book yourself and file the receipts within a month.

> Nobody should have to lend money to the company. If a trip costs more than you want to \
advance, the travel desk pays directly.

## Learning

Each year holds five days and a budget for learning. A course, a conference, a stack of books: \
your choice, as long as you tell the others what you found out. Twenty minutes on a Friday \
afternoon are enough.

## Visitors

Guests are welcome at any time, and every one of them signs in at the desk and wears the \
yellow badge. Whoever invited them stays with them, also at the coffee machine. Meetings with \
customers happen on the ground floor, where the good chairs are; the upper floors are for us.

## Pets, plants and parcels

A dog may come along when everybody in the room agrees, which is asked anew each spring. Plants \
belong to the one who waters them. Private parcels may be sent to the office, but not more than \
three a month: the desk on the ground floor is smaller than it looks.

## Money matters

Salaries are paid on the 25th, or on the last working day before it. Each spring your manager \
shows you the range for your work and where you are in it. If you think the range is wrong, say \
so in writing, and somebody outside your team looks at it again within four weeks.

## When something is wrong

Talk to your manager first. If that is the problem, talk to anybody in the people team, or \
write to the address on the last page, which only two people read. Nothing bad ever came to \
someone for raising a matter in good faith, and we mean to keep it that way.

That is the whole of it. Ask me about any part, and I will look up the details.
"""
