"""A list of any length as a table, sent while it is read.

A part of the list is in memory at a time, and the next one is asked for when the
browser has taken the last: whoever reads slowly, or not at all, costs no memory.
"""

import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from http import HTTPStatus

import structlog
from aiohttp import hdrs, web

from interlock_chassis.errors import ServiceError

# What spreadsheets take for the begin of a formula, full-width forms included:
# owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


async def send_csv(
    request: web.Request,
    name: str,
    columns: Sequence[str],
    parts: AsyncIterator[Iterable[Sequence[str]]],
) -> web.StreamResponse:
    """Send a table part by part.

    Cells that a spreadsheet would calculate get an apostrophe in front. A list
    that breaks off cuts the connection, so that nobody takes the part for the whole.

    Args:
        request: Whom to answer.
        name: The file's name, of plain characters.
        columns: The first row.
        parts: Rows, at least one part of them.

    Raises:
        ServiceError: The first part is not to be had; nothing was sent.
    """
    first = await anext(parts)
    response = web.StreamResponse(
        status=HTTPStatus.OK,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
    response.content_type, response.charset = "text/csv", "utf-8"
    await response.prepare(request)
    if request.method == hdrs.METH_HEAD:
        return response
    try:
        await response.write(_lines([columns, *first]))
        async for rows in parts:
            await response.write(_lines(rows))
    except ServiceError as error:
        structlog.get_logger().warning("export_cut", reason=error.reason)
        if request.transport is not None:
            request.transport.abort()
    except ConnectionError:
        # The browser has gone; there is nobody to tell.
        structlog.get_logger().info("export_left")
    return response


def _lines(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([_harmless(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
