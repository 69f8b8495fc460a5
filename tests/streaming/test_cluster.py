from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline.schema import InputError
from streaming.cluster import (
    Topology,
    free_addresses,
    index_from_hostname,
    topology_from_environment,
)


def test_tf_config_names_the_cluster_and_the_place_in_it():
    config = {
        "cluster": {"chief": ["c:1"], "worker": ["w0:1", "w1:1"], "ps": ["p0:1"]},
        "task": {"type": "worker", "index": 1},
    }
    topology, role, index = topology_from_environment({"TF_CONFIG": json.dumps(config)})
    assert (role, index) == ("worker", 1)
    assert topology == Topology("c:1", ("w0:1", "w1:1"), ("p0:1",))
    assert topology.address("worker", 1) == "w1:1"


def test_the_chief_is_the_coordinator():
    config = {
        "cluster": {"chief": ["c:1"], "worker": ["w:1"], "ps": ["p:1"]},
        "task": {"type": "chief", "index": 0},
    }
    assert topology_from_environment({"TF_CONFIG": json.dumps(config)})[1] == "coordinator"


@pytest.mark.parametrize("text", ["{", '{"cluster": {}}', "[]"])
def test_a_broken_tf_config_is_shown(text):
    with pytest.raises(InputError, match="TF_CONFIG: found"):
        topology_from_environment({"TF_CONFIG": text})


def test_no_tf_config_and_no_flags():
    with pytest.raises(InputError, match=r"^found none of .*; expected --local, .* --role"):
        topology_from_environment({})


def test_an_index_outside_the_cluster():
    topology = Topology("c:1", ("w:1",), ("p:1",))
    with pytest.raises(InputError, match="found 3; expected 0 to 0 for role worker"):
        topology.address("worker", 3)


def test_a_pods_ordinal():
    assert index_from_hostname("headrace-worker-12") == 12
    assert index_from_hostname("laptop") == 0


def test_free_addresses_differ():
    addresses = free_addresses(5)
    assert len(set(addresses)) == 5
    assert all(address.startswith("127.0.0.1:") for address in addresses)


def test_a_process_that_hangs_at_its_start_says_where_and_ends():
    program = """
import time
from streaming.cluster import started_within

def import_something():
    time.sleep(60)

with started_within(1):
    pass
time.sleep(1.5)
with started_within(0.2):
    import_something()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 1
    assert "in import_something" in ended.stderr
