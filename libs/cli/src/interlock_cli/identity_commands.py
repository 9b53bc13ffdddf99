"""`interlock identity`: forget people and organizations before the sweep does."""

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from grpc import aio

from interlock.identity.v1 import identity_pb2 as pb
from interlock.identity.v1.identity_pb2_grpc import OffboardingServiceStub
from interlock_cli.operator_client import (
    DEFAULT_DATA_DIR,
    DataDir,
    TlsDir,
    VaultPlace,
    call_vault,
    require_yes,
)

app = typer.Typer(help="Forget who left.", no_args_is_help=True)

_SERVICE = "identity"
# Identity's own cap.
_CALL_S = 5

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


def _call(place: VaultPlace, ask: Callable[[OffboardingServiceStub], Awaitable[_T]]) -> _T:
    async def work(channel: aio.Channel) -> _T:
        return await ask(OffboardingServiceStub(channel))

    return call_vault(place, work)


def _links(count: int) -> str:
    return "1 link was removed" if count == 1 else f"{count} links were removed"
