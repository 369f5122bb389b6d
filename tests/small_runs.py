"""Every algorithm on a problem small enough to be run on everything, and large enough to be solved."""

from contextlib import nullcontext
from functools import cache

import pytest
from composed import options, setup, unchecked

from harness.errors import UserError

NATIVE = ("sgd", "hogwild", "svrg", "sgld", "dual_coordinate_descent", "coordinate_descent")
SILENT = ("ensemble",)  # whose workers have nothing to say to each other
UNTRAINED = ("primitives",)  # what measures, and has no model
BATCHES = ["algorithm.batch_size=5", "algorithm.learning_rate=0.3"]
SINGLE = ["algorithm.batch_size=1", "algorithm.learning_rate=0.05"]
EXACT = ["algorithm.batch_size=1", "algorithm.learning_rate=1"]  # a share of an exact step
COMMON = ["problem.dtype=float64", "budget.observations=4", "tracking=none"]

# 100 steps of 5 samples, where each is a message
EASY = ["problem=least_squares", "problem.samples=100", "problem.features=5", "problem.condition=3.0", "problem.seed=3"]
FEW = [*EASY, "budget.epochs=5"]
LONGER = [*EASY, "budget.epochs=10"]  # 1,000 single samples
# 5,000 steps of one sample in a native kernel
CONVEX = ["problem=least_squares", "problem.samples=250", "problem.features=10", "problem.condition=10.0"]
MANY = [*CONVEX, "budget.epochs=20"]
REGULARISED = ["problem=logistic_regression", "problem.synthetic_samples=250", "problem.synthetic_features=20"]
REGULARISED += ["problem.synthetic_nonzeros_per_sample=5", "problem.l2=0.01", "problem.target_loss=0.5217"]
# 45 steps of two layers, which is not convex, but solved
LAYERS = ["problem=digits_mlp", "problem.hidden_sizes=[12]", "problem.target_loss=2.2", "budget.epochs=1"]
LAYERED = [*LAYERS, "algorithm.batch_size=32", "algorithm.learning_rate=0.5"]

# those whose ranks send messages: the others, of one worker or on a shared model, are native
SENDING = sorted(set(options("algorithm")) - set(NATIVE) - set(UNTRAINED) - set(SILENT))
# 36 steps on a layer that 1 to 4 workers share evenly
SHARED = ["problem=digits_mlp", "problem.hidden_sizes=[12]", "problem.target_loss=2.2", "budget.epochs=0.5"]
SHARED += ["algorithm.batch_size=20", "algorithm.learning_rate=0.5"]
# as many steps of four layers, one for each worker
CHAIN = ["problem=digits_mlp", "problem.hidden_sizes=[12,12,12]", "problem.target_loss=2.25", "budget.epochs=0.5"]
CHAIN += ["algorithm.batch_size=20", "algorithm.learning_rate=0.5"]

SETTINGS = dict.fromkeys(NATIVE, MANY + SINGLE)
SETTINGS["dual_coordinate_descent"] = [*REGULARISED, "budget.epochs=20", *EXACT]
SETTINGS["coordinate_descent"] = MANY + EXACT
SETTINGS["sgld"] = [*MANY, *SINGLE, "algorithm.temperature=0.003"]  # the variance of the noise: below the target
SETTINGS["federated"] = [*LONGER, *SINGLE, "algorithm.num_clients=10", "algorithm.participation=0.5"]
SETTINGS["fedbuff"] = [*LONGER, *SINGLE, "algorithm.num_clients=10", "algorithm.buffer_size=5"]
SETTINGS["diloco"] = [*LONGER, "algorithm.batch_size=1", "algorithm.learning_rate=0.03"]  # how far a step of Adam goes
SETTINGS["ensemble"] = [*LONGER, *BATCHES, "algorithm.members=2"]
SETTINGS |= dict.fromkeys(("fsdp", "fsdp_plain"), LAYERED)
SETTINGS["hyperparameter_search"] = [*LONGER, *BATCHES, "algorithm.trials=4", "algorithm.space.batch_size=null"]
SETTINGS |= dict.fromkeys(("tensor_parallel", "parallel_3d"), SHARED)
SETTINGS |= dict.fromkeys(("model_parallel", "pipeline", "pipedream"), CHAIN)


def settings(algorithm):
    """What is chosen for an algorithm, whatever the hardware."""
    return SETTINGS.get(algorithm, FEW + BATCHES)


@cache
def run(algorithm, hardware, workers, *extra, like=None):
    """The setup, the program and what came of it; skips what the setup refuses for want of shared memory.

    Args:
        extra: overrides.
        like: an algorithm whose problem and steps are taken.
    """
    chosen = [*settings(like or algorithm), *COMMON, f"hardware={hardware}", f"hardware.num_workers={workers}", *extra]
    chosen += ["hardware.backend=gloo"] if hardware == "gpus" else []  # which carries messages, and shares devices
    with world_for(f"algorithm={algorithm}", *chosen):
        return _done(algorithm, hardware, *chosen)


def world_for(*chosen):
    """A block in which there are ranks that a launcher has started, where the hardware needs them."""
    if "hardware=torchrun" not in chosen or (composed := unchecked(*chosen)).algorithm.needs_shared_memory:
        return nullcontext()
    from worlds import world

    return world(composed.num_workers + composed.num_servers)


def _done(algorithm, hardware, *chosen):
    try:
        composed = setup(f"algorithm={algorithm}", *chosen)
    except UserError as refusal:
        known = "needs memory that all workers share", f"native kernel, which hardware={hardware} does not run"
        assert any(words in str(refusal) for words in known)  # any other refusal is a defect
        pytest.skip(f"refused: {refusal}")
    program = composed.program()
    execution = composed.machine.execute(program, lambda samples: None)
    assert execution.failure is None, execution.failure
    return composed, program, execution
