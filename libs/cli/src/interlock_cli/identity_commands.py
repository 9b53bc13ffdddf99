"""`interlock identity`: forget people and organizations, and read what was done and refused."""

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from google.protobuf.json_format import MessageToJson
from grpc import aio

from interlock.identity.v1 import identity_pb2 as pb
from interlock.identity.v1.identity_pb2_grpc import AuditServiceStub, OffboardingServiceStub
from interlock_cli.operator_client import (
    DEFAULT_DATA_DIR,
    DataDir,
    TlsDir,
    VaultPlace,
    call_vault,
    require_yes,
)

app = typer.Typer(help="Forget who left; read identity's record.", no_args_is_help=True)

_SERVICE = "identity"
# Identity's own cap.
_CALL_S = 5
_LIST_S = 30
_MOST_OF_A_PAGE = 200

Address = Annotated[
    str,
    typer.Option(envvar="INTERLOCK_IDENTITY_ADDRESS", help="host:port of another identity."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

_T = TypeVar("_T")


@app.command("forget-user")
def forget_user(
    user: Annotated[str, typer.Argument(help="The platform's id of the account.")],
    *,
    yes: Yes = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Remove an account with all its links, in every organization.

    No token is issued for it from now on; one that is out lives for five
    minutes at most. Somebody who is still a member may link again.
    """
    require_yes(f"Forget the account {user} and its links?", yes=yes)
    request = pb.ForgetUserRequest(user_id=user)
    answer = _call(
        VaultPlace.find(data_dir, address, tls_dir, service=_SERVICE),
        lambda identity: identity.ForgetUser(request, timeout=_CALL_S),
    )
    typer.echo(f"{user} is forgotten; {_links(answer.mappings_removed)}.")


@app.command("forget-organization")
def forget_organization(
    organization: Annotated[str, typer.Argument(help="The auth server's id of it.")],
    *,
    yes: Yes = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Remove an organization with its workspaces, links and default agents.

    Another organization may install the app in its workspaces from now on.
    """
    require_yes(f"Forget the organization {organization} and everything of it?", yes=yes)
    request = pb.ForgetOrganizationRequest(tenant_id=organization)
    answer = _call(
        VaultPlace.find(data_dir, address, tls_dir, service=_SERVICE),
        lambda identity: identity.ForgetOrganization(request, timeout=_CALL_S),
    )
    typer.echo(f"{organization} is forgotten; {_links(answer.mappings_removed)}.")


@app.command("audit")
def audit(
    *,
    organization: Annotated[str, typer.Option(help="Only of this organization.")] = "",
    user: Annotated[
        str, typer.Option(help="Only what this account did, or what happened to it.")
    ] = "",
    event: Annotated[
        str, typer.Option(help="Only this, such as user.linked, token.issued, call.refused.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 100,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = "",
    tls_dir: TlsDir = None,
) -> None:
    """Print the record of links, tokens, grants and refusals as NDJSON, newest first.

    It holds ids only: no names, no addresses, no tokens.
    """

    async def work(channel: aio.Channel) -> None:
        record, left, token = AuditServiceStub(channel), limit, ""
        while left:
            request = pb.ListAuditEventsRequest(
                tenant_id=organization,
                user_id=user,
                event=event,
                page_size=min(left, _MOST_OF_A_PAGE),
                page_token=token,
            )
            page = await record.ListAuditEvents(request, timeout=_LIST_S)
            for each in page.events:
                typer.echo(MessageToJson(each, preserving_proto_field_name=True, indent=None))
            left, token = left - len(page.events), page.next_page_token
            if not token:
                return

    call_vault(VaultPlace.find(data_dir, address, tls_dir, service=_SERVICE), work)


def _call(place: VaultPlace, ask: Callable[[OffboardingServiceStub], Awaitable[_T]]) -> _T:
    async def work(channel: aio.Channel) -> _T:
        return await ask(OffboardingServiceStub(channel))

    return call_vault(place, work)


def _links(count: int) -> str:
    return "1 link was removed" if count == 1 else f"{count} links were removed"
