"""Every number of every preset of a simulated machine matters: change it, and the virtual times change."""

import composed
import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from simulated_ranks import program

from harness.build import build

PRESETS = [name for name in composed.options("hardware") if name.startswith("sim_")]
SPECIAL = {  # values that are not numbers to be doubled
    "compute.jitter": "lognormal(0.2)",
    "compute.streams": lambda before: not before,
    "protocol.algorithms": {"all_reduce": "halving_doubling"},
    "protocol.segment_bytes": 1_000,  # small enough that latency shows
    "protocol.segments": lambda before: 2 * before + 1,
    "protocol.in_flight": 1,
    "protocol.efficiency": 0.25,
    "protocol.tree_below_bytes": 0.0,
    "protocol.rings_above_bytes": 0.0,
    "protocol.ll_below_bytes": 0.0,
    "protocol.ll128_below_bytes": 0.0,
    "network.shape": lambda before: [2, 8] if len(before) == 2 else None,
    "stragglers": {1: 2.0},
    "slowdowns": {1: {1e-5: 2.0}},
    "deaths": {1: 1e-4},
}
ELSEWHERE = {"num_workers", "memory", "nonzero_s", "_target_"}  # or below
ELSEWHERE |= {"collapse", "memory_bytes"}  # of tensors without values: test_collapse, test_predictions
WITHOUT_EFFECT = {  # where a preset says so, or has only one of the two things the number tells apart
    ("sim_ring", "network.shape"): "one dimension",
}


def leaves(node, path=""):
    """Dotted keys of all settings, those of a list or of a mapping by name too."""
    for key, value in node.items():
        name = f"{path}{key}"
        if key in ELSEWHERE or key in ("background", "changes"):
            continue
        if not OmegaConf.is_config(value) or (name in SPECIAL and not (OmegaConf.is_dict(value) and value)):
            yield name
        elif OmegaConf.is_list(value):
            yield from (f"{name}[{i}]" for i in range(len(value)))
        else:
            yield from leaves(value, f"{name}.")


def changed(node, name):
    """The setting with another value; None if there is none."""
    before = OmegaConf.select(node, name)
    if name in SPECIAL:
        special = SPECIAL[name]
        return special(before) if callable(special) else special
    if OmegaConf.is_list(before):  # an edge
        return [*before[:2], *(2 * number for number in before[2:])]
    if "efficiency" in name or "bytes_per_s" in name:
        return 0.01 * before
    return 2 * before or 1e-3  # what a preset leaves out counts as well


def body(worker):
    """Computes in every precision, bound by flops and by memory, back and forth; collectives; messages across."""
    torch.ones(9, device="meta", requires_grad=True).mul(2).sum().backward()  # first: the host is seen
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        try:
            torch.mm(*torch.ones(2, 4096, 4096, dtype=dtype, device="meta"))
            torch.ones(200_000, dtype=dtype, device="meta").mul_(2)
        except ValueError:
            continue  # a precision that the device has no peak for
    images, kernel = torch.ones(64, 512, 32, 32, device="meta"), torch.ones(512, 512, 3, 3, device="meta")
    torch.conv2d(images, kernel)  # of tf32, where there is that
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*torch.ones(3, 1, 8, 2048, 64, device="meta"))
    for elements in (10, 2_000, 20_000, 1_200_000):
        dist.all_reduce(torch.ones(elements))
    dist.broadcast(torch.ones(3_000), 0)
    far = (worker.rank + worker.num_workers // 2) % worker.num_workers
    works = [dist.isend(torch.ones(50_000), far), dist.irecv(torch.ones(50_000), far)]
    for work in works:
        work.wait()


def times(node):
    """When each rank finished, in virtual seconds; of a run that failed, why. Half the machine, then all of it."""
    for num_workers in (node.num_workers // 2, node.num_workers):
        node.num_workers = num_workers
        done = build(node, "hardware").execute(program(body), lambda samples: None)
        yield str(done.failure) if done.failure else [report.finish_s for report in done.workers]


def moved(node, usual):
    """Whether half the machine or all of it takes another time than usual."""
    return any(each != before for each, before in zip(times(node), usual, strict=False))


# the others differ from these in where links are, and test_simulated_machine.py moves their numbers too
ALIKE = ("sim_ethernet_1g", "sim_fat_tree", "sim_torus", "sim_ring")


@pytest.mark.parametrize(
    "preset", [pytest.param(each, marks=pytest.mark.slow if each in ALIKE else ()) for each in PRESETS]
)
def test_every_knob_moves_the_answer(preset):
    def fresh():
        node = composed.node(f"hardware/{preset}")
        OmegaConf.update(node, "num_workers", node.num_workers or 4)
        return node

    usual, still = [*times(fresh())], []
    for name in leaves(fresh()):
        node = fresh()
        value = changed(node, name)
        if value is None or (preset, name) in WITHOUT_EFFECT:
            continue
        OmegaConf.update(node, name, value, merge=False)
        if not moved(node, usual):
            still.append(name)
    assert not still


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("knob", ["background", "changes"])
def test_what_happens_to_a_link_moves_the_answer(preset, knob):
    node = composed.node(f"hardware/{preset}")
    hardware = build(node, "hardware")
    wires = hardware.network.wires(hardware.workers_offered)
    capacity = dict(zip(wires.names, wires.bandwidth_bytes_per_s.tolist(), strict=True))
    usual = [*times(node)]
    used = next(iter(build(node, "hardware").execute(program(body), lambda samples: None).facts["links"]))
    value = 0.99 * capacity[used] if knob == "background" else {0.0: 0.01}
    node.network[knob] = {used: value}
    assert moved(node, usual)


def test_every_knob_of_shared_memory_moves_the_answer():
    def run_s(*overrides):
        problem = ["problem=svm", "problem.synthetic_samples=300", "budget.epochs=1", "tracking=none"]
        done = composed.execution("algorithm=hogwild", "hardware=sim_numa2", *problem, *overrides)
        return done.run_s

    node, lockings = composed.node("hardware/sim_numa2"), {"atomic_s": "atomic", "wake_s": "global_mutex"}
    lockings |= dict.fromkeys(("sleep_s", "doze_s", "futex_s", "lock_s"), "global_mutex")
    lockings |= {"outstanding_atomics": "atomic", "spin_s": "global_spin", "yield_s": "global_spin"}
    numbers = {f"memory.{name}": value for name, value in node.memory.items() if type(value) in (int, float)}
    numbers["compute.nonzero_s"] = node.compute.nonzero_s

    def moves(name, value):
        how = [f"algorithm.locking={lockings.get(name.removeprefix('memory.'), 'none')}"]
        how += ["data.order=storage"] * (name == "memory.sequential_rows")
        how += ["hardware.memory.cache_bytes=4096"] * ("cache" in name)  # which holds no model
        slow = name == "memory.local_bytes_per_s"  # of which rows of another socket are slower by the difference
        how += ["hardware.memory.remote_bytes_per_s=1e7"] * slow
        how += ["hardware.memory.spin_s=1e-7"] * (name == "memory.yield_s")
        other = {"memory.remote_bytes_per_s": 0.01, "memory.spin_s": 0.01, "memory.remote_memory_s": 2}
        factor = other.get(name, 0.5 if value < 1 else 2)
        return run_s(*how, f"hardware.{name}={factor * value}") != run_s(*how)

    still = [name for name, value in numbers.items() if not moves(name, value)]
    assert still == ["memory.cores_per_socket"]  # four workers need no more cores
    assert run_s("hardware.memory.migrates=false") != run_s()
    local = "hardware.memory.memory_policy=first_touch"
    assert run_s("hardware.memory.pin_policy=fill", local) < run_s(local)  # all on one socket, nothing crosses
    assert len({run_s(f"hardware.memory.memory_policy={policy}") for policy in ("interleave", "bind:1")}) == 2
