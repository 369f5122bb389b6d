"""Where chains are cut, against all ways to cut them; what layers cost."""

from itertools import combinations, pairwise

import pytest
from composed import setup
from torch import nn
from uniform import Uniform

from algorithms.pipelining.balance import cut, parameters
from algorithms.pipelining.held_stages import of_stages
from algorithms.pipelining.stages import indices, split, units
from harness.errors import Unfit
from harness.problems.outline import outlines

CHAINS = [[1.0] * 7, [3.0, 1.0, 1.0, 1.0, 3.0], [5.0, 1.0, 0.0, 0.0, 2.0, 2.0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]]


def brute_force(costs, num_parts):
    """The least largest sum."""
    inner = combinations(range(1, len(costs)), num_parts - 1)
    return min(max(sum(costs[i:j]) for i, j in pairwise((0, *ends, len(costs)))) for ends in inner)


@pytest.mark.parametrize("costs", CHAINS)
@pytest.mark.parametrize("num_parts", [1, 2, 3, 4, 5])
def test_no_other_cut_has_a_faster_slowest_part(costs, num_parts):
    parts = cut(costs, num_parts)
    assert [place for part in parts for place in part] == list(range(len(costs)))
    assert len(parts) == num_parts and all(len(part) for part in parts)
    assert max(sum(costs[place] for place in part) for part in parts) == pytest.approx(brute_force(costs, num_parts))


def test_equal_layers_are_shared_out_equally():
    assert [len(part) for part in cut([1.0] * 126, 16)].count(8) == 14  # and two of seven
    assert {len(part) for part in cut([1.0] * 10, 4)} == {2, 3}


def layers(*sizes):
    return nn.Sequential(*[layer for size in sizes for layer in (nn.Linear(4, 4), *[nn.ReLU()] * size)])


def test_what_has_no_parameters_stays_with_what_it_follows():
    model = nn.Sequential(nn.Flatten(), *layers(2, 0, 1))
    assert [len(unit) for unit in units(model)] == [4, 1, 2]
    assert [len(unit) for unit in units(nn.Sequential(nn.ReLU(), *model))] == [5, 1, 2]


def test_what_flattens_is_before_the_layer_that_takes_it():
    flatten, relu, first, second = nn.Flatten(), nn.ReLU(), nn.Linear(2, 3), nn.Linear(3, 1)
    found = units(nn.Sequential(first, relu, flatten, relu, second, flatten))
    assert [list(unit) for unit in found] == [[first, relu], [flatten, relu, second, flatten]]


def test_stages_hold_every_parameter_once_and_in_order():
    model = layers(1, 1, 1, 0)
    stages = split(model, 3, [1.0, 1.0, 1.0, 5.0])
    held = of_stages(indices(model), model, stages)
    assert held.tolist() == list(range(sum(each.numel() for each in model.parameters())))


class Tied(Uniform):
    """Layers of which the last has the weights of the first."""

    def build_model(self, device, seed):
        model = super().build_model(device, seed)
        model[-1].weight = model[0].weight
        return model


@pytest.mark.parametrize("algorithm", ["fsdp", "fsdp_plain", "parallel_3d", "pipeline", "pipedream"])
def test_layers_that_share_a_parameter_are_refused(algorithm):
    chosen = setup(f"algorithm={algorithm}", "problem=digits_mlp", "hardware=sim_ethernet", "hardware.num_workers=1")
    own, tied = (problem("float64", 0.1, 1, 0.1, 0.1, 3, 1) for problem in (Uniform, Tied))
    chosen.algorithm.check(own)
    with pytest.raises(Unfit, match="some share a parameter"):
        chosen.algorithm.check(tied)


def test_flops_are_those_of_products():
    problem = setup("problem=digits_mlp", "problem.hidden_sizes=[8]", "algorithm=sgd", "hardware=sim_ethernet").problem
    found = [(*each.shape, each.flops) for each in outlines(problem, 3)]
    assert found == [(3, 8, 2 * 3 * 64 * 8), (3, 8, 0), (3, 10, 2 * 3 * 8 * 10)]
    assert outlines(problem, 3) is outlines(problem, 3)
    assert [parameters(part) for part in (nn.Linear(4, 8), nn.ReLU())] == [40, 0]


def cuts(balance, hidden_sizes, *extra):
    """How many parameters each worker observes."""
    overrides = ["algorithm=pipeline", "hardware=sim_ethernet", "hardware.num_workers=2", "problem=digits_mlp"]
    overrides += [f"problem.hidden_sizes={hidden_sizes}", f"algorithm.balance={balance}", "tracking=none", *extra]
    composed = setup(*overrides, "budget.epochs=0.02", "budget.observations=1")
    done = composed.machine.execute(composed.program(), lambda samples: None)
    assert done.failure is None
    return [len(seen.parameters) for seen in sorted(done.observations, key=lambda seen: seen.member)]


def test_each_balance_moves_the_cut():
    sizes = [8, 8, 8, 256]  # of five layers the last two are dear: the first one has 64 inputs
    halves = [64 * 8 + 8 + 8 * 8 + 8, 64 * 8 + 8 + 2 * (8 * 8 + 8)]  # two layers, or three
    assert cuts("layers", sizes)[0] in halves
    by_parameters, by_flops = cuts("parameters", sizes), cuts("flops", sizes)
    assert by_parameters == by_flops and by_flops[1] == 256 * 10 + 10
    slow = "hardware.compute.operator_overhead_s=1.0"  # all operators take as long, and products are not seen
    assert cuts("measured", sizes, slow)[0] in halves
    quick = ["hardware.compute.operator_overhead_s=0.0", "hardware.compute.memory_bytes_per_s=1e30"]
    assert cuts("measured", sizes, *quick) == by_flops
