"""Ranks that behave alike are simulated once: times and traffic are those of all of them, or it is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from hardware.simulated.engine import Engine
from hardware.simulated.fake_tensors import FakeTensors
from hardware.simulated.network.collapsed import CollapsedLinks
from hardware.simulated.network.plans import Plan, step
from hardware.simulated.network.topologies import FatTree, Switch
from hardware.simulated.symmetry import Symmetry, keeping
from harness.alike import Axis
from harness.build import build
from harness.cli import composed

MIB = 2**20
SAME = 1e-9  # of a time: what is asked of a collapse; rounding makes 1e-14
DGX = build(composed(["hardware=sim_dgx", "hardware.network.devices_per_host=4"]).hardware, "hardware")


def simulated(body, num_ranks, axes, network=None, **settings):
    """When each rank ends, and what links carry; of all ranks, and of the first of those that are alike."""
    hardware = replace(DGX, num_workers=num_ranks, network=network or DGX.network, **settings)
    found = []
    for symmetry in (None, Symmetry(axes)):
        simulation, mode = hardware.simulation(0, symmetry=symmetry), FakeTensors()
        simulation.machine.fake = True

        def life(place, mode=mode):
            with mode:
                body(place)

        simulation.run(life, lambda: None)
        if simulation.failure is not None:
            raise simulation.failure
        found.append(simulation)
    return found


def assert_same(body, num_ranks, *axes, simulated_ranks, **settings):
    """Collapsed and not, the last rank ends at the same time, and links carry the same."""
    whole, part = simulated(body, num_ranks, [Axis(*axis) for axis in axes], **settings)
    assert len(part.places) == simulated_ranks and len(part.reports()) == num_ranks
    ends = [max(report.finish_s for report in each.reports()) for each in (whole, part)]
    assert ends[0] > 0 and ends[1] == pytest.approx(ends[0], rel=SAME)
    sent = [sum(report.sent_bytes for report in each.reports()) for each in (whole, part)]
    assert sent[0] == sent[1]
    traffic = whole.traffic()
    for name, carried in part.traffic().items():
        assert carried.wire_bytes == pytest.approx(traffic[name].wire_bytes, rel=SAME)
        assert carried.busy_s == pytest.approx(traffic[name].busy_s, rel=1e-6)  # sums of other intervals


def communicate(*calls):
    """Twice each of some collectives, with an operator in between."""

    def body(place):
        for kind, elements in calls * 2:
            x = torch.empty(elements)
            part = x[: elements // dist.get_world_size()].clone()
            match kind:
                case "all_reduce":
                    dist.all_reduce(x)
                case "all_gather":
                    dist.all_gather_single(x, part)
                case "reduce_scatter":
                    dist.reduce_scatter_single(part, x)
                case "all_to_all":
                    dist.all_to_all_single(torch.empty_like(x), x)
                case "barrier":
                    dist.barrier()

    return body


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier"])
@pytest.mark.parametrize("num_ranks", [4, 12])  # one host, three
def test_collectives_of_all_ranks_take_as_long(kind, num_ranks):
    elements = 12 * MIB // 4
    assert_same(communicate((kind, elements)), num_ranks, (num_ranks, True), simulated_ranks=1)


def test_a_tree_whose_ranks_end_apart_takes_as_long():
    assert_same(communicate(("all_reduce", 960)), 12, (12, True), simulated_ranks=1)


def test_where_nobody_is_always_the_last_it_is_refused():
    """Two ranks of four exchange something, then the other two: none of them tells the time of all."""
    engine, symmetry = Engine(), Symmetry([Axis(4, True)])
    links, told = CollapsedLinks(DGX.network, engine, symmetry), []
    for pair in ((0, 1), (2, 3)):
        plan = Plan(4, ((step([(*pair, float(MIB))]), 1),))
        links.carry(plan, np.arange(4), told.append)
        engine.env.run()
        assert bool(links.verdict()) == (pair == (2, 3))
    assert [ranks.tolist() for ranks in told] == [[0], [0]]
    assert "none is always the last" in links.verdict() and "hardware.collapse=none" in links.verdict()
    links.begin_together()
    assert links.verdict() == ""


@pytest.mark.parametrize("network", [Switch({}, {}, 1e-5, 1e9), FatTree({}, {}, 4, 1e-5, 1e9, 2.0)])
def test_other_networks_take_as_long(network):
    body = communicate(("all_gather", 12 * MIB // 4))
    assert_same(body, 12, (12, True), simulated_ranks=1, network=network)


def groups_of(shape, names):
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def test_sibling_groups_that_share_links_take_as_long():
    """Groups of two that cross hosts: those of one host share no card, but their hosts' fabric."""

    def body(place):
        mesh = groups_of((2, 2, 4), ("far", "near", "rail"))
        for name in ("far", "near", "rail", "far"):
            group = mesh[name].get_group()
            x = torch.empty(MIB)
            dist.all_gather_single(torch.empty(MIB * mesh[name].size()), x, group=group)

    assert_same(body, 16, (2, True), (2, True), (4, True), simulated_ranks=1)


def test_groups_at_the_same_time_share_what_they_share():
    """Collectives of groups of two kinds are under way together, on the same cards."""

    def body(place):
        mesh, works = groups_of((2, 2, 4), ("far", "near", "rail")), []
        for name, elements in (("far", MIB), ("near", 3 * MIB)):
            group, x = mesh[name].get_group(), torch.empty(elements)
            works.append(dist.all_gather_single(torch.empty(2 * elements), x, group=group, async_op=True))
        for work in works:
            work.wait()

    assert_same(body, 16, (2, True), (2, True), (4, True), simulated_ranks=1)


class Layer(nn.Module):
    """Two products and a norm."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.RMSNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


def model(layers, width=256):
    return nn.Sequential(*(Layer(width) for _ in range(layers)))


def train(net, place, steps=2):
    by_kind = {}
    for each in net.parameters():
        by_kind.setdefault(type(each), []).append(each)
    optimizer = torch.optim.AdamW([{"params": each} for each in by_kind.values()], foreach=True)
    for _ in range(steps):
        net(torch.empty(64, 256)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    place.timelines.synchronize()


def test_fsdp_over_hosts_takes_as_long():
    def body(place):
        net = model(2)
        for layer in net:
            fully_shard(layer)
        train(fully_shard(net), place)

    assert_same(body, 8, (8, True), simulated_ranks=1)


def test_hybrid_sharding_takes_as_long():
    def body(place):
        net, mesh = model(2), groups_of((2, 4), ("replicate", "shard"))
        for layer in net:
            fully_shard(layer, mesh=mesh)
        train(fully_shard(net, mesh=mesh), place)

    assert_same(body, 8, (2, True), (4, True), simulated_ranks=1)


def test_tensor_parallelism_takes_as_long():
    def body(place):
        net, mesh = model(2), groups_of((8,), ("tensor",))
        for layer in net:
            plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
            parallelize_module(layer, mesh, plan, src_data_rank=None)
        train(net, place)

    assert_same(body, 8, (8, True), simulated_ranks=1)


def test_stages_with_replicas_take_as_long():
    """Stages on hosts of their own hand on activations; replicas of a stage sum what they have on the same cards."""

    def body(place):
        mesh = groups_of((3, 2, 4), ("pipeline", "data", "tensor"))
        stage, works = mesh["pipeline"].get_local_rank(), []
        x, gradient = torch.empty(MIB), torch.empty(2 * MIB)
        for _ in range(3):
            if stage > 0:
                dist.recv(x, place.rank - 8)
            x = x * 2
            dist.all_reduce(x, group=mesh["tensor"].get_group())
            works.append(dist.all_reduce(gradient, group=mesh["data"].get_group(), async_op=True))
            if stage < 2:
                works.append(dist.isend(x, place.rank + 8))
        for work in works:
            work.wait()

    assert_same(body, 24, (3, False), (2, True), (4, True), simulated_ranks=3)


def test_messages_have_values_between_ranks_that_are_simulated():
    told = {}

    def body(place):
        with unset_fake_temporarily():
            x = torch.full((3,), float(place.rank))
            if place.rank < 4:
                dist.send(x, place.rank + 4)
            else:
                dist.recv(x, place.rank - 4)
                told[place.rank] = x.tolist()

    simulated(body, 8, [Axis(2, False), Axis(4, True)])
    assert told[4] == [0.0] * 3


REFUSED = {
    "has values": lambda place: dist.all_reduce(_real()),
    "exchanges messages with rank 1, which is not simulated": lambda place: dist.isend(torch.empty(4), 1 - place.rank),
    "has a root": lambda place: dist.broadcast(torch.empty(4), 0),
    "exchanges messages with anyone": lambda place: dist.irecv(torch.empty(4)),
    "not alike ranks of each kind|so do ranks of theirs": lambda place: dist.all_reduce(
        torch.empty(4), group=dist.new_group([0, 1, 2])
    ),
}


def _real():
    with unset_fake_temporarily():
        return torch.zeros(4)


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_shown_is_refused(words):
    hardware = replace(DGX, num_workers=4)
    simulation = hardware.simulation(0, symmetry=Symmetry([Axis(4, True)]))
    simulation.machine.fake, mode = True, FakeTensors()

    def life(place):
        with mode:
            REFUSED[words](place)

    simulation.run(life, lambda: None)
    with pytest.raises(Exception, match=rf"collapse: .*({words}).*hardware\.collapse=none"):
        raise simulation.failure


def test_siblings_are_what_a_group_is_moved_to():
    symmetry = Symmetry([Axis(2, False), Axis(2, True), Axis(3, True)])
    assert np.unique(symmetry.classes).tolist() == [0, 6] and symmetry.size == 6
    assert symmetry.siblings(np.array([0, 1, 2])).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert symmetry.siblings(np.array([0, 3])).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert symmetry.siblings(np.array([0, 6])).tolist() == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]


def test_translations_that_move_hosts_to_hosts():
    hosts = np.arange(16) // 8
    assert keeping(Symmetry([Axis(16, True)]), hosts).size == 2
    assert keeping(Symmetry([Axis(4, True), Axis(4, True)]), hosts).size == 8
    assert keeping(Symmetry([Axis(2, True), Axis(8, True)]), hosts).size == 16
