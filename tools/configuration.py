"""Write docs/configuration.md from the settings, or check that it is current.

python tools/configuration.py write|check
"""

import sys
from pathlib import Path

from interlock_chassis.config import MigrationSettings, ProcessSettings, settings_reference
from interlock_gateway.edge.config import EdgeSettings
from interlock_gateway.worker.config import WorkerSettings
from interlock_identity.config import IdentitySettings
from interlock_runner.config import RunnerSettings
from interlock_token_vault.config import VaultSettings

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
PROCESSES: dict[str, type[ProcessSettings]] = {
    "edge": EdgeSettings,
    "worker": WorkerSettings,
    "token-vault": VaultSettings,
    "identity": IdentitySettings,
    "runner": RunnerSettings,
    "migrate": MigrationSettings,
}


INTRODUCTION = """# Configuration

Every process reads its settings from environment variables when it starts, and nothing else. An
`INTERLOCK_*` variable that the process does not know is refused by name, so a misspelt one cannot
pass for a default. A variable that ends in `_FILE` names a file that holds the value; secrets
arrive in no other way. A refused setting ends the process with exit code 78 and one line that
names the variable and never shows its value.

This page is written from the code by `make reference`.

"""


def main() -> int:
    """Write or check the page; 1 when it is stale, 2 for a wrong argument."""
    wanted = INTRODUCTION + settings_reference(PROCESSES)
    match sys.argv[1:]:
        case ["write"]:
            PAGE.write_text(wanted, encoding="utf-8")
        case ["check"]:
            if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted:
                sys.stderr.write("docs/configuration.md is stale: run 'make reference'.\n")
                return 1
        case _:
            sys.stderr.write(__doc__ or "")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
