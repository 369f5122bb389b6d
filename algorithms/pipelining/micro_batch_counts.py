"""How many micro-batches an order of passes can do, and with how many less is under way at a time."""

from itertools import count

from algorithms.pipelining.schedules import GPipe, OneFOneB, PipelineSchedule
from harness.errors import UserError


def check_micro_batches(order: PipelineSchedule, num_workers: int, micro_batches: int, batch_size: int) -> None:
    """Refuse a number that the order cannot do, or of which some would be empty.

    Raises:
        UserError: naming numbers that work, of samples in a batch too.

    >>> check_micro_batches(OneFOneB(), num_workers=4, micro_batches=2, batch_size=3)
    Traceback (most recent call last):
    ...
    harness.errors.UserError: algorithm.micro_batches must be at least 4, the workers of the pipeline, with \
algorithm/pipeline_schedule=one_f_one_b, and at most algorithm.batch_size=3, got 2: set algorithm.micro_batches=4 \
algorithm.batch_size=4
    """
    if order.fits(num_workers, micro_batches) and micro_batches <= batch_size:
        return
    more = next(number for number in count(micro_batches) if order.fits(num_workers, number))
    fewer = [number for number in range(1, min(micro_batches, batch_size) + 1) if order.fits(num_workers, number)]
    changes = [f"algorithm.micro_batches={more}"] * (more != micro_batches)
    changes += [f"algorithm.batch_size={more}"] * (more > batch_size)
    ways = [f"algorithm.micro_batches={number}" for number in fewer[-1:]] + [" ".join(changes)]
    rule = f"must be {order.rule(num_workers)}, and at most algorithm.batch_size={batch_size}"
    raise UserError(f"algorithm.micro_batches {rule}, got {micro_batches}: set {', or '.join(ways)}")


def fewer_held(order: PipelineSchedule, num_workers: int, micro_batches: int, batch_size: int) -> dict[str, float]:
    """Settings with which less of a batch is under way at a time, and how many times less.

    >>> fewer_held(GPipe(), num_workers=4, micro_batches=8, batch_size=8)
    {'algorithm/pipeline_schedule=one_f_one_b': 2.0}
    >>> fewer_held(OneFOneB(), num_workers=4, micro_batches=8, batch_size=32)
    {'algorithm.micro_batches=32': 4.0}
    """
    if isinstance(order, GPipe):
        fits = OneFOneB().fits(num_workers, micro_batches) and micro_batches > num_workers
        return {"algorithm/pipeline_schedule=one_f_one_b": micro_batches / num_workers} if fits else {}
    most = max((number for number in range(1, batch_size + 1) if order.fits(num_workers, number)), default=0)
    return {f"algorithm.micro_batches={most}": most / micro_batches} if most > micro_batches else {}
