"""Measure the images: size, time to be ready, memory at rest, memory and CPU under load.

python -m bench.footprint      needs Docker; about three minutes

Writes the table of docs/operations.md anew, between its two marks. Every process runs once.
Sizes are above the base image, which all share. A process is ready when `/readyz` says so,
counted from its container's start while all others run. Memory is what the control group
charges the container for without file caches that can be dropped, the health command's short
runs included: at rest the middle of some samples, under load the largest. The load is that
of the tests of rolling updates (tests/support/compose_load.py); if anything of it fails,
nothing is written.
"""

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

import aiohttp

from interlock_cli.browser import open_browser
from interlock_cli.journey import ADA, MIA, Journey
from tests.support.compose_load import under_traffic
from tests.support.compose_stack import ROOT, SERVICES, Stack

PAGE = ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- footprint: make footprint -->\n", "<!-- end of footprint -->\n"
HEAD = (
    "| process | image, MB above the base | ready after, s | memory at rest, MiB "
    "| memory under load, MiB | CPU under load, millicores |\n|---|---|---|---|---|---|\n"
)
LOAD_S = 30
SAMPLES_AT_REST = 5
_IMAGES = {"gateway-edge": "gateway", "gateway-worker": "gateway"}
_UNITS = {"KiB": 2**-10, "MiB": 1.0, "GiB": 2**10}


@dataclass(frozen=True)
class Sample:
    """What a container used at one moment.

    Attributes:
        memory_mib: Without caches of files that can be dropped.
        millicores: Of a processor's core, over the last second or so.
    """

    memory_mib: float
    millicores: float


@dataclass(frozen=True)
class Row:
    """One process of the page's table."""

    image_mb: int
    ready_s: float
    rest_mib: float
    load_mib: float
    load_millicores: float

    def line(self, name: str) -> str:
        """Return the row of the page's table."""
        cells = (
            name,
            str(self.image_mb),
            f"{self.ready_s:.1f}",
            *(f"{each:.0f}" for each in (self.rest_mib, self.load_mib, self.load_millicores)),
        )
        return f"| {' | '.join(cells)} |\n"


def read_table(text: str) -> dict[str, Row]:
    """Read the table that `make footprint` wrote into the page; no rows if it never did."""
    table = text.partition(BEGIN)[2].partition(END)[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {
        name: Row(int(image), float(ready), float(rest), float(load), float(cpu))
        for name, image, ready, rest, load, cpu in rows[1:]
    }


def main() -> int:
    """Measure, and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder))
        # The load meets one replica of each, as the table says.
        stack.edges = stack.edges[:1]
        try:
            stack.build()
            stack.up()
            rows = asyncio.run(_measure(stack))
        finally:
            stack.down()
    table = HEAD + "".join(row.line(name) for name, row in rows.items())
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    sys.stdout.write(table)
    return 0


async def _measure(stack: Stack) -> dict[str, Row]:
    ready = {name: _seconds_to_ready(stack, name) for name in SERVICES}
    await _walk(stack)
    containers = {name: stack.container(name) for name in SERVICES}
    rest = [_sample(containers) for _ in range(SAMPLES_AT_REST)]
    stack.up("traffic")
    load = []
    async with under_traffic(stack):
        ends = time.monotonic() + LOAD_S
        while time.monotonic() < ends:
            load.append(await asyncio.to_thread(_sample, containers))
    return {
        name: Row(
            image_mb=_above_base(f"interlock/{_IMAGES.get(name, name)}:{stack.tag}"),
            ready_s=ready[name],
            rest_mib=median(each[name].memory_mib for each in rest),
            load_mib=max(each[name].memory_mib for each in load),
            load_millicores=mean(each[name].millicores for each in load),
        )
        for name in SERVICES
    }


async def _walk(stack: Stack) -> None:
    """Install and link, so that there is something to ask."""
    async with (
        aiohttp.ClientSession() as http,
        open_browser(stack.urls.edge) as ada,
        open_browser(stack.urls.edge) as mia,
    ):
        journey = Journey(stack.urls, http, patience=stack.patience)
        await journey.install(ada, await journey.sign_in(ada, ADA))
        question = await journey.ask(MIA, "I forgot my password")
        await journey.link(mia, await journey.find_link_prompt(question), MIA)
        await journey.watch_answer(question)


def _seconds_to_ready(stack: Stack, service: str) -> float:
    """Stop a service, start it, and count from its container's start until it is ready."""
    stack.do("stop", service)
    with ThreadPoolExecutor() as pool:
        ready = pool.submit(stack.until_ready, service)
        stack.do("start", service)
    began = _inspect("container", stack.container(service))["State"]["StartedAt"]
    return ready.result() - _instant(began).timestamp()


def _instant(stamp: str) -> datetime:
    # Docker writes nanoseconds, which Python does not read.
    return datetime.fromisoformat(re.sub(r"\.(\d{6})\d*Z", r".\1+00:00", stamp))


def _sample(containers: Mapping[str, str]) -> dict[str, Sample]:
    form = "{{.ID}} {{.CPUPerc}} {{.MemUsage}}"
    found = subprocess.run(
        ["docker", "stats", "--no-stream", "--no-trunc", "--format", form, *containers.values()],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    samples = {
        container: Sample(_mib(memory), 10 * float(share.removesuffix("%")))
        for container, share, memory, *_ in map(str.split, found.splitlines())
    }
    return {name: samples[container] for name, container in containers.items()}


def _mib(text: str) -> float:
    number, unit = text[:-3], text[-3:]
    return float(number) * _UNITS[unit]


def _inspect(kind: str, name: str) -> Any:
    found = subprocess.run(
        ["docker", kind, "inspect", name], capture_output=True, text=True, check=True
    )
    return json.loads(found.stdout)[0]


def _above_base(image: str) -> int:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    base = dockerfile.partition("ARG BASE=")[2].partition("\n")[0]
    image_bytes, base_bytes = (_inspect("image", name)["Size"] for name in (image, base))
    above: int = (image_bytes - base_bytes) // 10**6
    return above


if __name__ == "__main__":
    sys.exit(main())
