"""What a checked setup says beforehand, though it will run."""

import pytest
from composed import checked

from harness.errors import UserError
from harness.setup import run_info

RING = ["algorithm.merge=ring"]


@pytest.mark.parametrize(
    ("algorithm", "problem", "noted"),
    [
        ("svrg", "matrix_completion", True),
        ("sgld", "matrix_completion", True),
        ("hogwild", "digits_mlp", True),
        ("hogwild", "matrix_completion", False),
        ("svrg", "logistic_regression", False),
        ("all_reduce", "digits_mlp", False),  # which has a kernel for no problem
    ],
)
def test_a_problem_for_which_an_algorithm_has_no_kernel_is_noted(algorithm, problem, noted):
    _, notices = checked(f"algorithm={algorithm}", f"problem={problem}", "hardware=sim_numa2")
    sentence = f"algorithm={algorithm} has no native kernel for problem={problem}: torch's autograd does it, "
    assert (f"{sentence}hundreds of times slower" in notices) == noted


def test_batches_are_torchs_by_choice():
    _, notices = checked("algorithm=svrg", "problem=matrix_completion", "algorithm.batch_size=8", "hardware=sim_numa2")
    assert not notices


@pytest.mark.parametrize(("epochs", "noted"), [("1", True), ("1.5", False)])
def test_a_budget_without_a_step_is_noted(epochs, noted):
    _, notices = checked("algorithm=svrg", "hardware=sim_numa2", f"budget.epochs={epochs}", "algorithm.inner_epochs=3")
    sentence = "is spent on the first full gradient, and no step is made: a round takes"
    assert (f"budget.epochs=1 {sentence} 1 + algorithm.inner_epochs = 4 epochs" in notices) == noted


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["algorithm.merge=ring"], "merge=ring has no effect with algorithm.sharing=shared"),
        (
            ["algorithm.sharing=replica_per_worker", "algorithm.hot_coordinates=5"],
            "hot_coordinates=5 has no effect with algorithm.sharing=replica_per_worker",
        ),
        (["algorithm.quantum=0.5"], "quantum=0.5 has no effect with algorithm.precision=full"),
        (["algorithm=coordinate_descent", "algorithm.merge=average"], "merge=average has no effect"),
    ],
)
def test_settings_without_effect_are_noted_and_not_in_the_name(settings, reason):
    setup, notices = checked("algorithm=hogwild", "hardware=sim_numa2", *settings)
    assert any(each.startswith(f"algorithm.{reason}") for each in notices)
    assert settings[-1].removeprefix("algorithm.") not in run_info(setup, {}, None).name


SERVER, SEARCH = "algorithm=parameter_server", "algorithm=hyperparameter_search"
HALVING = ["hyperparameter_search", "strategy=successive_halving"]
SYNCHRONOUS, ASHA = "algorithm.consistency=synchronous", "algorithm.strategy=asha"


@pytest.mark.parametrize(
    ("chosen", "given", "cause"),
    [
        ([SERVER], "staleness=2", "algorithm.consistency=asynchronous"),
        ([SERVER], "backups=2", "algorithm.consistency=asynchronous"),
        ([SERVER, SYNCHRONOUS], "staleness_aware=True", SYNCHRONOUS),
        (["algorithm=local_sgd"], "group_rounds=2", "algorithm.group_size=1"),
        ([SEARCH, "algorithm.strategy=grid"], "trials=3", "algorithm.strategy=grid"),
        ([SEARCH, ASHA], "trials=8", ASHA),
        ([SEARCH], "max_epochs=4.5", "algorithm.strategy=random"),
        ([SEARCH], "optimizer.momentum=0.5", "algorithm.space.momentum=uniform(0.0, 0.95)"),
        ([SERVER, "algorithm.consistency=bounded_staleness"], "staleness=2", None),
        ([SERVER, "algorithm.consistency=backup_workers"], "backups=2", None),
        ([SERVER], "staleness_aware=True", None),
        (["algorithm=local_sgd", "algorithm.group_size=2"], "group_rounds=2", None),
        ([SEARCH], "trials=3", None),
        ([SEARCH, ASHA], "max_epochs=4.5", None),
    ],
)
def test_settings_of_other_policies_are_noted_and_not_in_the_name(chosen, given, cause):
    options = ["problem=digits_mlp", "hardware=sim_ethernet", "hardware.num_workers=4", f"algorithm.{given}"]
    setup, notices = checked(*chosen, *options)
    assert (given in run_info(setup, {}, None).name) == (cause is None)
    assert notices == [f"algorithm.{given} has no effect with {cause}"] * (cause is not None)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (["diloco", "period=16"], "period=16: all workers would meet after 16 steps each, and budget.epochs"),
        (["diloco", "period=12"], None),
        (["local_sgd", "period=1000", "all_reduce_epochs=0.1"], None),
        (["local_sgd", "period=4", "group_size=2"], "period=4 and algorithm.group_rounds=4: all workers would"),
        (["local_sgd", "period=4", "group_size=2", "growth=1", "group_rounds=2"], None),  # after 4 and 5 steps
        (["local_sgd", "period=4", "group_size=2", "growth=5", "group_rounds=2"], "period=4 and algorithm.group_"),
        (["elastic_averaging", "period=12"], "period=12: budget.epochs=1 ends after about 12 steps of a worker"),
        (["elastic_averaging", "period=11"], None),
        (["local_sgd", "group_size=8"], "group_size=8 makes one group of all 4 workers"),
        (["local_sgd", "group_size=3", "group_rounds=1"], "group_size=3 does not divide 4 workers: the last"),
        (["all_reduce", "accumulate=64"], "accumulate=64 is more than algorithm.batch_size=32: a pass for each sample"),
        (["ddp", "accumulate=32"], None),
        (["sgd", "accumulate=9", "batch_size=8"], "accumulate=9 is more than algorithm.batch_size=8"),
        (["sgd", "accumulate=64", "batch_size=0"], None),
        ([*HALVING, "trials=4"], "strategy=successive_halving with algorithm.reduction=4 and algorithm.trials=4"),
        ([*HALVING, "trials=5"], None),
        (["hyperparameter_search", "strategy=asha", "max_epochs=0.9"], "strategy=asha with algorithm.reduction=4"),
        (["hyperparameter_search", "strategy=asha", "max_epochs=1"], None),
    ],
)
def test_what_never_comes_to_pass_is_noted(chosen, said):
    algorithm, *settings = chosen
    options = ["problem=digits_mlp", "hardware=sim_ethernet", "hardware.num_workers=4", "budget.epochs=1"]
    _, notices = checked(f"algorithm={algorithm}", *options, *(f"algorithm.{each}" for each in settings))
    noted = [each for each in notices if not each.startswith("algorithm=sgd uses 1")]
    assert len(noted) == (said is not None) and all(each.startswith(f"algorithm.{said}") for each in noted)


def test_settings_with_an_effect_are_in_the_name():
    setup, notices = checked("algorithm=hogwild", "hardware=sim_numa2", "algorithm.sharing=hot_replica", *RING)
    assert not notices and "(sharing=hot_replica, merge=ring)" in run_info(setup, {}, None).name.replace(",", ", ")


def test_more_hot_coordinates_than_there_are_are_noted():
    few = ["problem.synthetic_features=300", "algorithm.sharing=hot_replica"]
    _, notices = checked("algorithm=hogwild", "hardware=sim_numa2", *few)
    sentence = "replicates all 300 coordinates of the model, as replica_per_worker does"
    assert notices == [f"algorithm.hot_coordinates=1024 {sentence}"]


GPIPE = "algorithm/pipeline_schedule=gpipe"
SPLITS = ("algorithm.sequence_parallel=true", "algorithm.shard_data=true")


@pytest.mark.parametrize(
    ("mesh", "overrides", "axes"),
    [
        ("{data: 2, tensor: 1, pipeline: 1}", (), ()),
        ("{data: 2, tensor: 1, pipeline: 1}", (GPIPE, "algorithm.shard_data=true"), ("pipeline",)),
        ("{data: 1, tensor: 1, pipeline: 2}", (GPIPE, *SPLITS, "algorithm.micro_batches=2"), ("tensor", "data")),
    ],
)
def test_what_an_axis_of_one_leaves_without_effect_is_noted(mesh, overrides, axes):
    chosen = ["algorithm=parallel_3d", f"algorithm.mesh={mesh}", "hardware.num_workers=2", *overrides]
    _, notices = checked(*chosen, "problem=digits_mlp", "hardware=sim_dgx")
    assert [notice.rpartition(" ")[2] for notice in notices if "has no effect" in notice] == [*axes]


@pytest.mark.parametrize(("workers", "noted"), [(7, True), (6, False), (3, False)])
def test_a_torus_that_is_a_ring_is_noted(workers, noted):
    options = ["algorithm/mixing=torus", "problem=least_squares", f"hardware.num_workers={workers}"]
    _, notices = checked("algorithm=gossip", "hardware=sim_ethernet", *options)
    assert (f"algorithm/mixing=torus of {workers} workers is one row of a grid: it is a ring" in notices) == noted


@pytest.mark.parametrize(("size", "noted"), [(2000, True), (1438, False)])
def test_a_batch_of_more_samples_than_there_are_is_noted(size, noted):
    options = ["hardware=sim_ethernet", "problem=digits_mlp", f"algorithm.batch_size={size}"]
    _, notices = checked("algorithm=gossip", *options)
    sentence = "algorithm.batch_size=2000: a batch has some of the 1,438 samples more than once"
    assert (sentence in notices) == noted


@pytest.mark.parametrize(
    ("chosen", "notice"),
    [
        (["fedbuff", "buffer_size=1000"], "buffer_size=1000 is more than all of about 60 changes: the server"),
        (["fedbuff", "buffer_size=60"], None),
        (["federated", "dropout=0.99"], "dropout=0.99 leaves 0.1 of 10 sampled clients in the mean: one always"),
        (["federated", "dropout=0.8"], None),
    ],
)
def test_what_federated_settings_leave_undone_is_noted(chosen, notice):
    algorithm, setting = chosen
    overrides = [f"algorithm={algorithm}", f"algorithm.{setting}", "budget.epochs=3", "hardware=sim_ethernet"]
    _, notices = checked(*overrides, "problem=digits_mlp", "hardware.num_workers=2")
    assert len(notices) == (notice is not None)
    assert all(each.startswith(f"algorithm.{notice}") for each in notices)


PREDICTED = ["problem=transformer_8b", "hardware=sim_dgx"]


@pytest.mark.parametrize(("algorithm", "noted"), [("zero1", True), ("zero1_plain", False)])
def test_what_is_simulated_rank_by_rank_says_so_and_names_what_is_not(algorithm, noted):
    _, notices = checked(f"algorithm={algorithm}", *PREDICTED, "hardware.num_workers=64")
    assert any(each.startswith("zero1 is simulated rank by rank, 64 of them") for each in notices) == noted


@pytest.mark.parametrize(("order", "noted"), [("zero_bubble", True), ("one_f_one_b", False)])
def test_what_a_split_backward_pass_holds_is_noted(order, noted):
    chosen = [*PREDICTED, "hardware.num_workers=4", "algorithm.batch_size=8", f"algorithm/pipeline_schedule={order}"]
    _, notices = checked("algorithm=pipeline", *chosen)
    assert any("holds activations and their gradients" in each for each in notices) == noted


@pytest.mark.parametrize(("hardware", "noted"), [("sim_ethernet", True), ("sim_dgx", False)])
def test_memory_of_which_nothing_is_said_is_noted(hardware, noted):
    _, notices = checked("algorithm=fsdp", PREDICTED[0], f"hardware={hardware}", "hardware.num_workers=8")
    assert any(each.startswith("hardware.compute.memory_bytes=null") for each in notices) == noted


@pytest.mark.parametrize(
    ("settings", "noted"),
    [
        (["algorithm/optimizer=adamw"], True),
        (["algorithm/optimizer=adamw", "algorithm.learning_rate=0.001"], False),
        ([], False),
    ],
)
def test_a_rate_of_sgd_is_noted_beside_adam(settings, noted):
    _, notices = checked("algorithm=zero1", "problem=transformer", "hardware=sim_ethernet", *settings)
    assert any(each.startswith("algorithm.learning_rate=0.3 is a step for SGD") for each in notices) == noted


def test_ranks_that_differ_are_refused_before_anything_is_made():
    with pytest.raises(UserError, match=r"hardware.stragglers makes ranks differ.*hardware.collapse=none"):
        checked("algorithm=fsdp", *PREDICTED, "hardware.stragglers={3: 4.0}")
