"""The images by themselves: what is in them, and that a second build is the first again."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.compose_stack import BUILD_S, IMAGES, ROOT, Stack

pytestmark = [pytest.mark.docker, pytest.mark.images, pytest.mark.timeout(BUILD_S)]

SERVE = ("gateway", "token-vault", "identity", "runner")
# What would help somebody inside to make or fetch programs.
BUILD_TOOLS = ("cc", "gcc", "g++", "ld", "as", "make", "git", "uv", "curl", "wget")
LOOK = f"""
import importlib.util, json, os, shutil, sys
writable = [
    path
    for top in ("/app", "/usr", "/etc", "/bin", "/lib")
    for path, _, _ in os.walk(top)
    if os.access(path, os.W_OK)
]
print(json.dumps({{
    "user": os.getuid(),
    "tools": [each for each in {BUILD_TOOLS!r} if shutil.which(each)],
    "packers": [
        each for each in ("pip", "setuptools", "wheel", "uv") if importlib.util.find_spec(each)
    ],
    "python": sys.executable,
    "writable": writable,
}}))
"""

# A package as small as they come, and a folder in it that has nothing left once it is copied.
_COPY_AND_LOOK = """
mkdir -p /build/src/thing/gone/__pycache__
touch /build/src/thing/thing.py
sh /build/source.sh
find /out -type f | LC_ALL=C sort -r
echo --
find /out -type d -empty
"""


def _inspect(image: str) -> dict[str, Any]:
    found = subprocess.run(
        ["docker", "image", "inspect", image], capture_output=True, text=True, check=True
    )
    [one] = json.loads(found.stdout)
    return dict(one)


def _base() -> str:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    [base] = re.findall(r"^ARG BASE=(.*)$", dockerfile, re.MULTILINE)
    return str(base)


@pytest.mark.parametrize("target", IMAGES)
def test_an_image_holds_nothing_to_build_with(stack: Stack, target: str) -> None:
    """Nobody runs as root, no compiler or package tool is at hand, and no code can be changed."""
    image = f"interlock/{target}:{stack.tag}"
    command = ["docker", "run", "--rm", "--network=none", "--entrypoint=python", image, "-c", LOOK]
    seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert seen == {
        "user": 65532,
        "tools": [],
        "packers": [],
        "python": "/app/bin/python",
        "writable": [],
    }


@pytest.mark.parametrize("target", SERVE)
def test_an_image_knows_how_to_ask_for_its_health(stack: Stack, target: str) -> None:
    """What serves has a health command of its own, which needs no shell."""
    [how, *command] = _inspect(f"interlock/{target}:{stack.tag}")["Config"]["Healthcheck"]["Test"]
    assert (how, command[0]) == ("CMD", "python")


@pytest.mark.parametrize("target", IMAGES)
def test_an_image_is_small(stack: Stack, target: str) -> None:
    """An image is 150 MB above its base at most."""
    above = _inspect(f"interlock/{target}:{stack.tag}")["Size"] - _inspect(_base())["Size"]
    assert above <= 150_000_000


def test_dependencies_are_pinned_by_hash() -> None:
    """Every requirement of every lock has a hash, and the build takes none without."""
    for target in IMAGES:
        lock = (ROOT / "deploy" / "images" / f"{target}.lock").read_text(encoding="utf-8")
        pins = re.findall(
            r"^[a-z0-9._-]+(?:\[.*\])?==[^\\\n]*(?:\\\n[^\\\n]*)*", lock, re.MULTILINE
        )
        assert pins
        assert all("--hash=sha256:" in each for each in pins)
    script = (ROOT / "deploy" / "images" / "install.sh").read_text(encoding="utf-8")
    assert "--require-hashes" in script


def test_what_is_copied_into_an_image_has_no_folder_without_a_file() -> None:
    """Our own code's layer holds no folder that the engine may list or leave out as it likes.

    An engine that compares the layer with the one below leaves out a folder which is the same
    in both; one that packs what was written does not. Which it does is not up to the build.
    """
    script = ROOT / "deploy" / "images" / "source.sh"
    command = ["docker", "run", "--rm", "--network=none", "--entrypoint=sh"]
    command += ["--volume", f"{script}:/build/source.sh:ro", _base(), "-ec", _COPY_AND_LOOK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    files, empty = done.stdout.split("--")
    assert [Path(each).name for each in files.split()] == ["thing.py", "thing.cpython-312.pyc"]
    assert empty.split() == []


def test_a_second_build_is_the_first_again(stack: Stack, tmp_path: Path) -> None:
    """Installed and compiled anew, identity's image has the layers that it had before.

    The digest of the image itself differs by the time of the build, as docs/operations.md says.
    What other images are built upon is not made anew: it would come out the same, but the
    engine would compare trees from then on where it packs what was written now.
    """
    again = f"interlock/identity:{stack.tag}-again"
    stages = ("dependencies-identity", "source-identity", "identity")
    command = ["docker", "buildx", "build", "--quiet", "--load", "--tag", again]
    for stage in stages:
        command += ["--no-cache-filter", stage]
    dockerfile = str(ROOT / "deploy" / "Dockerfile")
    command += ["--target", "identity", "--build-arg", "SOURCE_DATE_EPOCH=0"]
    try:
        subprocess.run([*command, "--file", dockerfile, str(ROOT)], check=True)
        first, second = _inspect(f"interlock/identity:{stack.tag}"), _inspect(again)
    finally:
        subprocess.run(["docker", "image", "rm", "--force", again], check=False)
    assert second["RootFS"]["Layers"] == first["RootFS"]["Layers"]
