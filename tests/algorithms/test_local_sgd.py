"""Local SGD against all-reduce, against itself, and against its papers' loops written by hand."""

import pytest
import torch
from composed import execution, setup

from algorithms.flat import flatten_
from harness.data import Partitioned

BATCH = 8
MLP = ["problem=digits_mlp", "problem.dtype=float64", "tracking=none", f"algorithm.batch_size={BATCH}"]
STEP = "algorithm.learning_rate=0.1"
SIMULATED = ["hardware=sim_ethernet", "hardware.num_workers=4"]
EXACT = {"rtol": 1e-12, "atol": 1e-13}  # sums in another order; measured differences are below 1e-14


def run(*overrides, epochs=0.25, observations=2):
    budget = f"budget.epochs={epochs}", f"budget.observations={observations}"
    done = execution(*MLP, STEP, *budget, *overrides)
    assert done.failure is None
    return done


def model(done, milestone=-1):
    """The average of the workers' models at a milestone, shape (parameters,)."""
    last = sorted({seen.milestone for seen in done.observations})[milestone]
    seen = [each.parameters for each in done.observations if each.milestone == last]
    assert len(seen) == len(done.workers)
    return torch.stack(seen).mean(dim=0)


def sent_bytes(done):
    return sum(worker.sent_bytes for worker in done.workers)


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov"])
@pytest.mark.parametrize("hardware", [["hardware=cpu", "hardware.num_workers=2"], SIMULATED])
def test_averages_after_every_step_are_all_reduce(hardware, optimizer):
    chosen = [*hardware, f"algorithm/optimizer={optimizer}"]
    local, whole = run("algorithm=local_sgd", "algorithm.period=1", *chosen), run("algorithm=all_reduce", *chosen)
    torch.testing.assert_close(model(local), whole.observations[-1].parameters, **EXACT)


def test_post_local_is_all_reduce_until_its_epoch_and_then_is_not():
    chosen = ["algorithm.all_reduce_epochs=0.125", "algorithm.period=100"]
    post_local = run("algorithm=local_sgd", *chosen, *SIMULATED, observations=4)
    whole = run("algorithm=all_reduce", *SIMULATED, observations=4)
    for milestone, equal in ((0, True), (1, True), (2, False), (3, False)):
        parameters = [each.parameters for each in post_local.observations if each.milestone == milestone]
        assert all(torch.equal(parameters[0], each) for each in parameters) == equal
    torch.testing.assert_close(model(post_local, 1), whole.observations[1].parameters, **EXACT)


def test_one_group_of_all_workers_is_no_group():
    plain = run("algorithm=local_sgd", *SIMULATED)
    grouped = run("algorithm=local_sgd", "algorithm.group_size=4", *SIMULATED)
    torch.testing.assert_close(model(grouped), model(plain), **EXACT)


def test_groups_agree_within_until_all_do():
    chosen = ["algorithm.group_size=2", "algorithm.group_rounds=2", "algorithm.period=2", *SIMULATED]
    samples = 4 * BATCH * 4  # four steps of four workers
    done = run("algorithm=local_sgd", *chosen, epochs=samples / setup(*MLP).problem.num_samples, observations=2)
    by_rank = sorted(done.observations, key=lambda seen: seen.member)
    halfway, end = ([seen.parameters for seen in by_rank if seen.milestone == m] for m in (0, 1))
    assert [torch.equal(halfway[0], other) for other in halfway] == [True, True, False, False]
    assert torch.equal(halfway[2], halfway[3])
    assert all(torch.equal(end[0], other) for other in end)


def test_bytes_fall_as_the_period_grows():
    all_reduce = sent_bytes(run("algorithm=all_reduce", *SIMULATED, epochs=0.9))
    steps = 41  # of 1,294 samples, 32 at a time
    for period in (1, 4, 16):
        sent = sent_bytes(run("algorithm=local_sgd", f"algorithm.period={period}", *SIMULATED, epochs=0.9))
        assert sent * steps == pytest.approx(all_reduce * (steps // period))


def test_growing_periods():
    algorithm = setup("algorithm=local_sgd", "algorithm.growth=3", "algorithm.period=2", *MLP).algorithm
    assert [algorithm.steps(rounds, epoch=0) for rounds in range(4)] == [2, 5, 8, 11]


def test_diloco_is_its_paper_written_by_hand():
    """Algorithm 1 of Douillard et al., one replica after the other."""
    workers, period, steps = 2, 3, 12
    chosen = ["algorithm=diloco", f"algorithm.period={period}", "hardware=sim_ethernet"]
    problem = setup(*MLP).problem
    epochs = workers * steps * BATCH / problem.num_samples
    done = run(*chosen, f"hardware.num_workers={workers}", "algorithm.learning_rate=0.004", epochs=epochs)

    samples = workers * steps * BATCH
    policy = Partitioned("index")
    order = policy.sequence(policy.share(problem.num_samples, samples, 0, (0,) * workers), samples, seed=0)
    replicas = [problem.build_model(torch.device("cpu"), 0) for _ in range(workers)]
    common = torch.nn.Parameter(flatten_(replicas[0])[0].clone())
    flats = [flatten_(replica)[0] for replica in replicas]
    inner = [torch.optim.AdamW(replica.parameters(), lr=0.004, weight_decay=0.01) for replica in replicas]
    outer = torch.optim.SGD([common], lr=0.7, momentum=0.9, nesterov=True)
    for step in range(steps):
        for rank, (replica, optimizer) in enumerate(zip(replicas, inner, strict=True)):
            first = (step * workers + rank) * BATCH
            optimizer.zero_grad()
            problem.loss(replica, order[first : first + BATCH]).backward()
            optimizer.step()
        if (step + 1) % period == 0:
            common.grad = torch.stack([common.detach() - flat for flat in flats]).mean(dim=0)
            outer.step()
            for flat in flats:
                flat.copy_(common.detach())
    # Adam divides by roots of sums: differences of another order of sums grow; 1e-12 was measured
    torch.testing.assert_close(model(done), common.detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("field", ["period", "group_size", "group_rounds", "outer_learning_rate"])
def test_refuses_zero(field):
    with pytest.raises(ValueError, match=rf"algorithm\.{field} must be >=? ?\d"):
        setup("algorithm=local_sgd", f"algorithm.{field}=0", *MLP)
