"""What a fault does to a call of an app, before it acts and after."""

import asyncio
from http import HTTPStatus

from aiohttp import web

from interlock_sandbox.faults import Fault, cut_short
from interlock_sandbox.slack.call_log import Record

# `error`, `rate_limit` and `http_status` answer instead of acting; `delay` waits and
# then acts; `delay_reply`, `drop_reply` and `cut` act, and then the answer is late,
# never comes, or ends in its middle.
KINDS = frozenset(
    {"error", "rate_limit", "http_status", "delay", "delay_reply", "drop_reply", "cut"}
)


async def strike_before(fault: Fault | None, record: Record) -> web.Response | None:
    """Do what a fault does before a call acts; a response means that it does not act."""
    if fault is None:
        return None
    record.fault = fault.kind
    match fault.kind:
        case "error":
            record.error = fault.error
            return web.json_response({"ok": False, "error": fault.error})
        case "rate_limit":
            record.error = "ratelimited"
            return too_many(int(fault.seconds))
        case "http_status":
            record.error = f"http_{fault.status}"
            return web.Response(status=fault.status, text="upstream trouble")
        case "delay":
            await asyncio.sleep(fault.seconds)
        case _:
            pass
    return None


async def strike_after(
    fault: Fault | None, request: web.Request, response: web.Response
) -> web.StreamResponse:
    """Do what a fault does to the answer of a call that has acted."""
    match fault.kind if fault else "":
        case "delay_reply" if fault:
            await asyncio.sleep(fault.seconds)
        case "drop_reply" if request.transport:
            request.transport.abort()
        case "cut":
            return await cut_short(request, response)
        case _:
            pass
    return response


def too_many(seconds: int) -> web.Response:
    """Return Slack's answer to a call that comes too soon."""
    return web.json_response(
        {"ok": False, "error": "ratelimited"},
        status=HTTPStatus.TOO_MANY_REQUESTS,
        headers={"Retry-After": str(seconds)},
    )
