"""Write the lock file of each image from requirements.lock, or check that they are current.

python tools/image_locks.py write|check

An image installs what its packages need and no more: their dependencies are followed
through the metadata of what is installed here, and each one's pin and hashes are taken
over from requirements.lock. Needs no network.
"""

import re
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "images"
IMAGES = {
    "gateway": ("services/gateway",),
    "token-vault": ("services/token-vault",),
    "identity": ("services/identity",),
    "runner": ("services/runner",),
    "sandbox": ("sandbox",),
    "tools": ("libs/cli",),
}
"""The packages that each image is for, by their folders."""

# What the images run; python:3.12 on Debian.
_TARGET = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.12.1",
    "python_version": "3.12",
    "sys_platform": "linux",
}
_PIN = re.compile(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==", re.IGNORECASE)
_HEAD = "# Of the {name} image; written by `make image-locks` from requirements.lock.\n"


def main() -> int:
    """Write or check the lock files; 1 when one is stale, 2 for a wrong argument."""
    mode = sys.argv[1:]
    if mode not in (["write"], ["check"]):
        sys.stderr.write(__doc__ or "")
        return 2
    pins, ours = _pins(), _our_packages()
    for name, folders in IMAGES.items():
        needed = _closure([ours[_name_at(folder)] for folder in folders], ours)
        text = _HEAD.format(name=name) + "".join(pins[each] for each in sorted(needed))
        path = FOLDER / f"{name}.lock"
        if mode == ["write"]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"{path.relative_to(ROOT)} is stale: run 'make image-locks'.\n")
            return 1
    return 0


def _pins() -> dict[str, str]:
    """Return each requirement's lines of requirements.lock, without its remarks."""
    pins: dict[str, str] = {}
    name = ""
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines(keepends=True):
        if line.lstrip().startswith("#"):
            continue
        if found := _PIN.match(line):
            name = canonicalize_name(found[1])
        pins[name] = pins.get(name, "") + line
    return pins


def _our_packages() -> dict[str, list[str]]:
    """Return the declared dependencies of the workspace's packages, by name."""
    projects = [_project(path.parent) for path in ROOT.glob("libs/*/pyproject.toml")]
    projects += [_project(path.parent) for path in ROOT.glob("services/*/pyproject.toml")]
    projects.append(_project(ROOT / "sandbox"))
    return {canonicalize_name(each["name"]): each["dependencies"] for each in projects}


def _project(folder: Path) -> dict[str, Any]:
    document = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    project: dict[str, Any] = document["project"]
    return project


def _name_at(folder: str) -> str:
    return canonicalize_name(_project(ROOT / folder)["name"])


def _closure(declared: list[list[str]], ours: dict[str, list[str]]) -> set[str]:
    """Return the names of everything needed that is not ours."""
    waiting = [Requirement(text) for texts in declared for text in texts]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        further = ours[name] if name in ours else requires(name) or []
        waiting += [each for each in map(Requirement, further) if _applies(each, extras)]
    return {name for name, _ in seen} - ours.keys()


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({**_TARGET, "extra": extra}) for extra in ("", *extras))


if __name__ == "__main__":
    sys.exit(main())
