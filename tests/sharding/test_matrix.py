"""Saved under every topology, loaded under every other: model and optimizer bit for bit."""

import pytest
import topologies
import worlds

SIZES = 1, 2, 4


@pytest.mark.timeout(900)
def test_every_topology_loads_every_other_bit_for_bit(tmp_path):
    for size in SIZES:
        worlds.run(tmp_path / f"save-{size}", "matrix_worker.py", size, "save", tmp_path)
    for size in SIZES:
        world = worlds.run(tmp_path / f"load-{size}", "matrix_worker.py", size, "load", tmp_path)
        for log in world.logs:
            assert loaded_on(size) <= set(log.read_text().splitlines())


def loaded_on(size):
    """What the ranks of a world of this size say, each of them."""
    return {
        f"loaded {kind} {saved} {how}"
        for kind, by_world in (("net", topologies.NET), ("deep", topologies.DEEP))
        for how in by_world[size]
        for saved in (one for hows in by_world.values() for one in hows)
    }
