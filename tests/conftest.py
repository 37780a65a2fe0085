"""How the tests share the machine: what takes long starts first, and the containers have one process to themselves."""
from pathlib import Path

import pytest

DOCKER = Path(__file__).parent / "docker"


def _is_docker(item):
    return DOCKER in item.path.parents


def pytest_itemcollected(item):
    if _is_docker(item):
        # They use the ports that docker-compose.yml gives out, of which there is one each.
        item.add_marker(pytest.mark.xdist_group("docker"))


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: 0 if _is_docker(item) else 1 if item.get_closest_marker("slow") else 2)
