"""Saved under every topology, loaded under every other: model and optimizer bit for bit."""

import pytest
import topologies
import worlds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("matrix")
    for size in (1, 2, 4):
        worlds.run(found / f"save-{size}", "matrix_worker.py", size, "save", found)
    return found


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_topology_loads_every_other_bit_for_bit(folder, size):
    world = worlds.run(folder / f"load-{size}", "matrix_worker.py", size, "load", folder, seconds=240)
    wanted = {
        f"loaded {kind} {saved} {how}"
        for kind, by_world in (("net", topologies.NET), ("deep", topologies.DEEP))
        for how in by_world[size]
        for saved in (one for hows in by_world.values() for one in hows)
    }
    for log in world.logs:
        assert wanted <= set(log.read_text().splitlines())
