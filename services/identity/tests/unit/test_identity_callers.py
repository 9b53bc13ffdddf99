"""The table of callers: every RPC has a row, and every row its reason."""

from interlock_chassis.callers import may_call, require_complete
from interlock_identity.rpc import CALLERS

_SERVICES = [
    f"interlock.identity.v1.{name}Service"
    for name in ("Session", "Link", "Workspace", "Subject", "Offboarding", "Audit")
]
_WORKERS = {
    "CreateLinkCode",
    "UnlinkSelf",
    "ResolveUser",
    "IssueUserToken",
    "ResolveAgent",
    "RenewGrant",
}
_VAULTS = {"ClaimWorkspace", "ReleaseWorkspace", "ReportScopes", "ReportWorkspace", "TakeNotices"}
_OPERATORS = {"IssueImportGrant", "ForgetUser", "ForgetOrganization"}
# Each shows something else: an administrator's grant, or nothing but who they are.
_READERS = {"ListAuditEvents"}


def test_every_rpc_has_a_row() -> None:
    """An RPC that nobody thought about would stop the start."""
    require_complete(CALLERS, _SERVICES)


def test_each_rpc_has_exactly_one_kind_of_caller() -> None:
    """What proves a browser is not called by the worker, nor the other way round."""
    for method in CALLERS:
        name = method.rpartition("/")[2]
        allowed = {
            caller
            for caller in (
                "gateway-edge",
                "gateway-worker",
                "token-vault",
                "runner",
                "operator",
                "identity",
                "app/reports",
                "",
            )
            if may_call(CALLERS, method, caller)
        }
        if name in _WORKERS:
            assert allowed == {"gateway-worker"}, name
        elif name in _VAULTS:
            assert allowed == {"token-vault"}, name
        elif name in _OPERATORS:
            assert allowed == {"operator"}, name
        elif name in _READERS:
            assert allowed == {"gateway-edge", "operator"}, name
        else:
            assert allowed == {"gateway-edge"}, name
