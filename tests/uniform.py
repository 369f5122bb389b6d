"""A chain of layers that all take equally long, forward one second and backward two, on ranks without a network."""

from dataclasses import dataclass, field

import torch
from simulated_ranks import machine
from torch import nn

from algorithms.common.optimizers import PlainSGD
from algorithms.common.schedules import Constant
from algorithms.pipeline import Pipeline
from hardware.simulated.compute import Roofline
from hardware.simulated.network.topologies import Switch
from harness.data import Partitioned
from harness.problems.layered import Layered
from harness.program import Program

WIDTH = 3
NOWHERE = Switch({}, {}, latency_s=0.0, bandwidth_bytes_per_s=1e30)
STEADY = Constant(0.0, 1.0)
SGD = PlainSGD(0.0)


class Products(Roofline):
    """A product takes a second, all else nothing."""

    def operator_s(self, operator, inputs, options, output):
        return 1.0 if operator.overloadpacket.__name__ in ("mm", "addmm") else 0.0


class Scaled(nn.Module):
    """A product; its inputs depend on a parameter, so that the first layer of all has two backward products too."""

    def __init__(self, generator):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH, dtype=torch.float64))
        weight = torch.eye(WIDTH, dtype=torch.float64)
        self.weight = nn.Parameter(weight + 0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
        self.held = None  # by the model that the layer is of

    def forward(self, inputs):
        held = Kept(self.held, self.number) if self.held else None
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (held, tensor), lambda saved: saved[1]):
            return (inputs * self.scale) @ self.weight


class Held:
    """How many forward passes of layers a worker keeps, now and at most, until they have been backward."""

    def __init__(self, layers):
        self.layers, self.now, self.most = layers, 0, 0

    def __deepcopy__(self, memo):
        return None  # a copy of a layer keeps nothing


class Kept:
    """What one of them keeps."""

    def __init__(self, held, layer):
        self.held = held
        held.layers.add(layer)
        held.now += 1
        held.most = max(held.now, held.most)

    def __del__(self):
        self.held.now -= 1


@dataclass(frozen=True)
class Uniform(Layered):
    """Targets are sums of inputs.

    Args:
        held: by each model that was built.
    """

    layers: int
    num_samples: int = 0
    held: list = field(default_factory=list)

    def build_model(self, device, seed):
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(*[Scaled(generator) for _ in range(self.layers)])
        if device.type != "cpu":  # fake parameters are there, and might not let themselves be moved
            model.to(device)
        if device.type != "meta":  # which nobody trains
            self.held.append(Held(set()))
            for number, layer in enumerate(model):
                layer.number, layer.held = number, self.held[-1]
        return model

    def gather(self, samples):
        inputs = torch.sin(samples.double()[:, None] + torch.arange(WIDTH))
        return inputs, inputs.sum(1, keepdim=True)

    def objective(self, outputs, targets):
        return (outputs - targets).square().mean()

    def evaluate(self, model):
        return {"train/loss": 0.0}


def pipeline(order, micro_batches, batch_size, balance="layers"):
    """The algorithm."""
    return Pipeline(0.01, batch_size, micro_batches, balance, order, SGD, STEADY)


def run(algorithm, workers, layers, steps, network=NOWHERE, samples=None, compute=None):
    """What came of `steps` batches."""
    budget = samples or steps * algorithm.batch_size
    problem = Uniform("float64", 0.1, 1, 0.1, 0.1, layers, max(budget, 1))
    program = Program(algorithm, problem, Partitioned("storage"), 0, budget, (budget,))
    compute = compute or Products("none", False, {"float64": 1.0}, 1.0, 0.0, None)
    done = machine(workers, compute, network).execute(program, lambda samples: None)
    assert done.failure is None
    return problem, done
