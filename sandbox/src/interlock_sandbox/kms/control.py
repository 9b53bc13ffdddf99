"""The control API of the KMS stand-in: faults, records, plaintexts. It is not part of Google's."""

from http import HTTPStatus

from aiohttp import web

from interlock_sandbox.kms.crypto_keys import CryptoKeys
from interlock_sandbox.kms.service import METHODS, KeyManagementService
from interlock_sandbox.kms.trouble import ANY_METHOD, FAULT_KINDS, Fault, Trouble
from interlock_sandbox.web import CONTROL, ControlBody, refuse

MAX_FAULTS = 1_000_000
MAX_PROPAGATION_S = 3 * 3600


class Control:
    """Routes under `/_control`."""

    def __init__(self, keys: CryptoKeys, trouble: Trouble, service: KeyManagementService) -> None:
        self._keys = keys
        self._trouble = trouble
        self._service = service

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return all control routes."""
        return [
            web.get(f"{CONTROL}/state", self._state),
            web.get(f"{CONTROL}/calls", self._calls),
            web.get(f"{CONTROL}/secrets", self._secrets),
            web.get(f"{CONTROL}/faults", self._list_faults),
            web.post(f"{CONTROL}/faults", self._add_fault),
            web.delete(f"{CONTROL}/faults", self._clear_faults),
            web.post(f"{CONTROL}/propagation", self._set_propagation),
        ]

    async def _state(self, _request: web.Request) -> web.Response:
        """Show the keys without their material."""
        keys = [
            {
                "name": key["name"],
                "primary": key["primary"],
                "versions": [
                    {name: each[name] for name in ("name", "state", "destroy_at")}
                    for each in key["versions"]
                ],
            }
            for key in self._keys.snapshot()
        ]
        return web.json_response({"keys": keys, "propagation_s": self._keys.propagation_s})

    async def _calls(self, request: web.Request) -> web.Response:
        """List calls; `method` and `after` narrow the list."""
        after = request.query.get("after", "0")
        number = int(after) if after.isascii() and after.isdigit() else 0
        return web.json_response({"calls": self._trouble.rows(request.query.get("method"), number)})

    async def _secrets(self, _request: web.Request) -> web.Response:
        """List the latest plaintexts, base64, for searches in places they must not be."""
        return web.json_response({"tokens": self._service.list_plaintexts()})

    async def _list_faults(self, _request: web.Request) -> web.Response:
        return web.json_response({"faults": self._trouble.list_waiting()})

    async def _add_fault(self, request: web.Request) -> web.Response:
        """Let the next `count` calls of `method` (or `*`) go wrong as `kind` says."""
        body = await ControlBody.of(request)
        method, kind = body.text("method", ANY_METHOD), body.text("kind")
        count = int(body.number("count", 1))
        if kind not in FAULT_KINDS:
            refuse(HTTPStatus.BAD_REQUEST, f"kind must be one of {sorted(FAULT_KINDS)}")
        if method not in METHODS | {ANY_METHOD}:
            refuse(HTTPStatus.BAD_REQUEST, f"method must be * or one of {sorted(METHODS)}")
        if not 1 <= count <= MAX_FAULTS:
            refuse(HTTPStatus.BAD_REQUEST, f"count is 1 to {MAX_FAULTS}")
        fault = Fault(kind, body.number("seconds", 1), int(body.number("size", 16)))
        self._trouble.add(method, fault, count)
        return await self._list_faults(request)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        """Forget the faults that wait."""
        self._trouble.clear()
        return await self._list_faults(request)

    async def _set_propagation(self, request: web.Request) -> web.Response:
        """Have disabling, destroying and another primary take `seconds` from now on."""
        seconds = (await ControlBody.of(request)).number("seconds", 0)
        if not 0 <= seconds <= MAX_PROPAGATION_S:
            refuse(HTTPStatus.BAD_REQUEST, f"seconds is 0 to {MAX_PROPAGATION_S}")
        self._keys.propagation_s = seconds
        return await self._state(request)
