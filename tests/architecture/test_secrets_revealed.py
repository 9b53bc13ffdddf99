"""Where a secret is unwrapped, counted."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
REVEAL = re.compile(r"\.reveal\(\)")
# Services unwrap where a value enters or leaves the process, nowhere else.
OPEN_PLACES = re.compile(
    r"services/[^/]+/src/[^/]+/((store_)?rpc\.py|worker/rpc\.py|adapters/[^/]+\.py)"
)
# What lies outside those places, each with its number of calls.
ELSEWHERE = {
    # The length of the fingerprint key is checked before start.
    "services/token-vault/src/interlock_token_vault/config.py": 1,
    # The name of a connection at Nango, which is sealed as a token is.
    "services/token-vault/src/interlock_token_vault/credential_sources.py": 1,
    # Nango's connect session goes to the browser that asked for it.
    "services/gateway/src/interlock_gateway/edge/connect_routes.py": 2,
    # Its link, where the browser is sent by a page.
    "services/gateway/src/interlock_gateway/edge/connect_pages.py": 1,
    # Connection strings: validated, joined with a role's password, handed to the driver.
    "libs/chassis/src/interlock_chassis/config.py": 1,
    "libs/chassis/src/interlock_chassis/database.py": 8,
    "libs/chassis/src/interlock_chassis/migrating.py": 1,
    # Key material becomes key objects.
    "libs/tokens/src/interlock_tokens/keys.py": 2,
    "libs/tokens/src/interlock_tokens/keysets.py": 1,
}


def _places() -> Counter[str]:
    sources = [*ROOT.glob("services/*/src/**/*.py"), *ROOT.glob("libs/*/src/**/*.py")]
    found = {
        source.relative_to(ROOT).as_posix(): len(REVEAL.findall(source.read_text(encoding="utf-8")))
        for source in sources
        # The launcher makes the secrets of a development machine; it serves nobody.
        if "interlock_cli" not in source.parts
    }
    return Counter({place: count for place, count in found.items() if count})


def test_secrets_are_revealed_only_where_they_leave_the_process() -> None:
    """A service unwraps a Secret in rpc.py and adapters/; every other place is listed here."""
    elsewhere = {
        place: count for place, count in _places().items() if not OPEN_PLACES.fullmatch(place)
    }

    assert elsewhere == ELSEWHERE


def test_the_count_sees_the_places_it_should() -> None:
    """The search finds the calls that hand tokens of bot, user and browser to their caller."""
    assert _places()["services/token-vault/src/interlock_token_vault/rpc.py"] == 3
