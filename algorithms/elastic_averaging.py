"""Elastic averaging SGD (Zhang, Choromanska and LeCun, NIPS 2015, Algorithm 1, asynchronous).

    worker i:  every `period` of its steps:  x <- x_i;  x_i <- x_i - alpha (x - c);  c <- c + alpha (x - c)
               x_i <- step along the gradient at x

Springs of strength alpha = beta / P (section 3) hold the workers' models x_i at the centre c, a server's, which is the
run's model. With a momentum optimiser it is EAMSGD (section 4). A worker that leaves draws at the centre once more,
so that what it has learnt since its last exchange is not lost.

The centre may hear of x_i in compressed differences, and then moves both ends by what it knows: x is u_i, and u_i moves
with the pull, which is sent whole. That is ours; Qsparse-local-SGD (Basu et al., NeurIPS 2019, Algorithm 2), without
springs, is alike: what is owed, x_i - u_i, is of the worker's own steps, as error feedback is, and no spring moves it.
What is owed in the end is lost.

One worker is not sequential SGD, unlike elsewhere: it is on a spring too, and what is evaluated is the centre, which
follows it at a distance.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from algorithms.base import Algorithm
from algorithms.common.bits import joined
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.compression.compressor import Compression
from algorithms.compression.differences import known, of_differences
from algorithms.flat import flat_parameters, flatten_
from algorithms.serving.correspondence import Correspondence
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class ElasticAveraging(Algorithm):
    """Workers explore, on springs around a centre.

    Args:
        period: steps of a worker between two exchanges with the centre, tau, >= 1.
        elasticity: beta; a spring moves both its ends by beta / P of their distance, in (0, 1].
        compression: of what the centre hears, a contraction; its error feedback is not used. The centre then keeps what
            it knows of every worker.
        optimizer: of every worker's own steps.
        schedule: factor of those steps as training goes on, all workers' together.
    """

    synchronous: ClassVar[bool] = False
    is_sgd: ClassVar[bool] = False

    period: int
    elasticity: float
    compression: Compression
    optimizer: Optimizer
    schedule: Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.period >= 1, "algorithm.period", "must be >= 1", self.period)
        require(0 < self.elasticity <= 1, "algorithm.elasticity", "must be in (0, 1]", self.elasticity)
        of_differences(self.compression, "elastic_averaging")

    def servers(self) -> int:
        """The centre."""
        return 1

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """A budget that ends within the first period."""
        steps = -(-round(epochs * problem.num_samples) // (self.batch_size * num_workers))
        if steps > self.period:
            return []
        ends = f"budget.epochs={epochs:g} ends after about {steps} steps of a worker"
        return [f"algorithm.period={self.period}: {ends}: the centre hears of them as they begin, and as they leave"]

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float:
        """To the centre go weights and two numbers, back comes a pull."""
        said_bytes = of_differences(self.compression, "elastic_averaging").num_bytes(weights)
        return said_bytes + 2 * weights.element_size() + weights.nbytes

    def train(self, worker: Worker, problem: Problem) -> None:
        """Descend, and draw at the centre now and then."""
        weights, gradient = flatten_(model := problem.build_model(worker.device, worker.seed))
        descent = Descent(self.optimizer, weights, gradient, self.learning_rate)
        centre, pull = worker.num_workers, torch.zeros_like(weights)
        told = known(of_differences(self.compression, "elastic_averaging"), weights)
        steps = samples = 0
        for batch in worker.batches(problem, self.batch_size):
            exchange = None
            if steps % self.period == 0:  # under way while the gradient is computed, which is at x
                exchange = dist.irecv(pull, centre)
                said = told.say(weights, worker.generator)
                dist.send(joined(_header(weights, samples, leaves=False), said), centre)
                samples = 0
            problem.loss(model, batch).backward()
            if exchange is not None:
                exchange.wait()
                weights -= pull
                told.pulled(pull)
            descent.step(self.learning_rate * self.schedule.at(worker))
            gradient.zero_()
            steps, samples = steps + 1, samples + len(batch)
        dist.send(joined(_header(weights, samples, leaves=True), told.say(weights, worker.generator)), centre)

    def serve(self, worker: Worker, problem: Problem) -> None:
        """Be the centre until all workers have left, and count their samples as they are heard of."""
        centre = flat_parameters(problem.build_model(worker.device, worker.seed))
        compressor = of_differences(self.compression, "elastic_averaging")
        heard = [known(compressor, centre) for _ in range(worker.num_workers)]
        header_bytes, said_bytes = 2 * centre.element_size(), compressor.num_bytes(centre)
        workers = Correspondence(worker, centre.new_empty(header_bytes + said_bytes, dtype=torch.uint8))
        for _ in heard:
            workers.expect()
        while workers.expected:
            source, message = workers.hear()
            heard[source].hear(message[header_bytes:])
            pull = (heard[source].vector - centre) * (self.elasticity / worker.num_workers)
            centre += pull
            heard[source].pulled(pull)
            samples, leaves = message[:header_bytes].view(centre.dtype).tolist()
            worker.observe(centre, int(samples))
            if not leaves:
                workers.send(source, pull)
                workers.expect()
        workers.close()


def _header(weights: torch.Tensor, samples: int, leaves: bool) -> torch.Tensor:
    """What the centre hears beside weights: samples since the last message, whether it is the last one."""
    return weights.new_tensor([samples, leaves])
