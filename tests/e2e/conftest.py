"""The whole product, started anew for a test."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from rich.console import Console

from interlock_cli.data_folder import DataFolder, choose_ports
from interlock_cli.journey import Journey
from interlock_cli.launch import Running, launched
from interlock_cli.steps import Steps


@pytest.fixture
async def running(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """Run everything on ports and files of its own; as `nango`, with installs by Nango."""
    data = DataFolder(tmp_path / "data")
    steps = Steps(Console(file=io.StringIO()))
    edge_port = choose_ports({"edge": 0})["edge"]
    try:
        by_nango = getattr(request, "param", "") == "nango"
        async with launched(data, edge_port=edge_port, steps=steps, by_nango=by_nango) as running:
            yield running
    finally:
        data.close()


@pytest.fixture
async def journey(running: Running) -> AsyncIterator[Journey]:
    """Give the hands of the product's users."""
    async with aiohttp.ClientSession() as http:
        yield Journey(running.urls, http)
