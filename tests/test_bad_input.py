"""A user's mistakes: each ends with a non-zero exit and one sentence that names the field, the value and the fix."""

import re

import pytest
from commands import command

QUICK = ["experiment=smallest", "baseline=none"]
REAL, SIMULATED = ["hardware=cpu"], ["hardware=sim_numa2"]

MISTAKES = {
    "unknown algorithm": (
        ["algorithm=hogwildd"],
        r"algorithm=hogwildd is unknown: use one of ad_psgd, all_reduce, .*hogwild, .*sgd",
    ),
    "unknown hardware": (["hardware=gpu9"], r"hardware=gpu9 is unknown: use one of cpu, gpus, numa2, sim_cpu"),
    "unknown problem": (["problem=imagenet"], r"problem=imagenet is unknown: use one of .*logistic_regression"),
    "unknown tracking": (["tracking=paper"], r"tracking=paper is unknown: use one of files, none, wandb"),
    "unknown group": (["algoritm=sgd"], r"algoritm is neither a group nor a setting|algoritm is not a setting"),
    "part that an algorithm has not": (
        ["algorithm=hogwild", "algorithm/compression=top_k"],
        r"algorithm=hogwild has no algorithm/compression: leave it out, or use algorithm=all_reduce\|choco_sgd\|.*",
    ),
    "compressed models": (
        ["algorithm=gossip", "algorithm/compression=top_k"],
        r"algorithm=gossip has no algorithm/compression: averages of .* do not converge, use algorithm=choco_sgd",
    ),
    "compressed pairs": (
        ["algorithm=ad_psgd", "algorithm/compression=top_k"],
        r"algorithm=ad_psgd has no algorithm/compression: published ways for pairs .*, use algorithm=choco_sgd",
    ),
    "misspelt setting": (
        ["hardware.num_wrokers=2"],
        r"hardware.num_wrokers is not a setting: did you mean num_workers\?",
    ),
    "setting of a part": (
        ["algorithm=local_sgd", "algorithm/optimizer@algorithm.outer=momentum", "algorithm.outer.momentum=3"],
        r"algorithm\.outer\.momentum must be",
    ),
    "misspelt top-level setting": (["sede=1"], r"sede is not a setting: did you mean seed\?"),
    "added setting": (
        ["+algorithm.momentum=0.9"],
        r"algorithm.momentum is not a setting: use one of learning_rate, batch",
    ),
    "not key=value": (["algorithm"], r"cannot read the override 'algorithm': write key=value"),
    "unbalanced bracket": (["seed=[1"], r"cannot read the override 'seed=\[1': write key=value"),
    "word for a number": (["algorithm.batch_size=many"], r"algorithm.batch_size must be a whole number, got 'many'"),
    "fraction for a count": (["algorithm.batch_size=1.5"], r"algorithm.batch_size must be a whole number, got '1.5'"),
    "word for a seed": (["seed=lucky"], r"seed must be a whole number, got 'lucky'"),
    "word for a target": (["target.loss=low"], r"target.loss must be a number, got 'low'"),
    "missing value": (["algorithm.learning_rate=???"], r"algorithm.learning_rate is missing: give it a value"),
    "batch of nothing": (["algorithm.batch_size=0"], r"algorithm.batch_size must be >= 1, got 0"),
    "negative step": (["algorithm.learning_rate=-1"], r"algorithm.learning_rate must be > 0, got -1.0"),
    "negative seed": (["seed=-1"], r"seed must be >= 0, got -1"),
    "endless budget": (["budget.epochs=inf"], r"budget.epochs must be finite, got inf"),
    "infinite latency": (
        ["hardware=sim_ethernet", "algorithm=sgd", "hardware.network.latency_s=inf"],
        r"hardware.network.latency_s must be finite",
    ),
    "no folder": (["runs_dir="], r"runs_dir must name a folder"),
    "no key": (["=5"], r"cannot understand the command line"),
    "several values without -m": (["algorithm=sgd,hogwild"], r"algorithm=sgd,hogwild has several values: add -m"),
    "folder for a file": (
        ["problem=logistic_regression", "problem.path=/"],
        r"problem.path='/' is a folder: name a file",
    ),
    "no budget": (["budget.epochs=0"], r"budget.epochs must be > 0, got 0.0"),
    "never looking": (["budget.observations=0"], r"budget.observations must be >= 1, got 0"),
    "no workers": (["hardware.num_workers=0"], r"hardware.num_workers must be >= 1, got 0"),
    "more workers than simulated cores": ([*SIMULATED, "hardware.num_workers=500"], r"hardware.num_workers.*500"),
    "Hogwild without shared memory": (
        ["algorithm=hogwild", "hardware=sim_ethernet"],
        r"algorithm=hogwild needs memory that all workers share, which hardware=sim_ethernet does not have: "
        r"use hardware=cpu\|numa2\|sim_cpu\|sim_numa2\|sim_numa4 or algorithm=ad_psgd\|all_reduce\|.*\|sgd",
    ),
    "unknown pinning": (
        [*REAL, "hardware.pin_policy=scatter"],
        r"hardware.pin_policy must be one of spread, fill, got 'scatter'",
    ),
    "unknown simulated pinning": (
        [*SIMULATED, "hardware.memory.pin_policy=scatter"],
        r"hardware.memory.pin_policy must be one of spread, fill, got 'scatter'",
    ),
    "unknown precision": (["problem=logistic_regression", "problem.dtype=float8"], r"problem.dtype must be .*float8"),
    "missing data": (
        ["problem=logistic_regression", "problem.path=nowhere.svm"],
        r"^error: problem.path='nowhere.svm' is at none of .*TWINCLOCK_DATA",
    ),
    "missing known data": (["problem=logistic_regression", "problem.path=a9a"], r"problem.download=true"),
    "part of another group": (
        ["algorithm=pipeline", "problem=digits_mlp", "algorithm.schedule=gpipe"],
        r"is chosen with a slash: algorithm/pipeline_schedule=gpipe",
    ),
    "option of another group": (
        ["algorithm=pipeline", "problem=digits_mlp", "algorithm/schedule=gpipe"],
        r"algorithm/schedule=gpipe is unknown: did you mean algorithm/pipeline_schedule=gpipe\?",
    ),
    "list for a mapping": (
        ["algorithm=parallel_3d", "problem=digits_mlp", "algorithm.mesh=[2,2,2]"],
        r"algorithm.mesh cannot be \[2,2,2\]: write 'algorithm.mesh=\{data: 2, tensor: 2, pipeline: 2\}'",
    ),
    "unknown baseline": (["baseline=20200101-nothing"], r"baseline=20200101-nothing: there is no such run"),
    "module that is not there": (
        ["algorithm._target_=nowhere.Magic"],
        r"algorithm._target_=nowhere.Magic: .*--config-dir",
    ),
    "class that is not there": (["algorithm._target_=algorithms.sgd.Magic"], r"algorithm._target_=\S+ names no class"),
    "class of another kind": (["algorithm._target_=harness.data.Partitioned"], r"algorithm"),
    "unwritable folder": (["runs_dir=/proc/nowhere"], r"/proc/nowhere.*runs_dir"),
    "folder of one's own that is not there": (
        ["--config-dir", "/nowhere"],
        r"--config-dir /nowhere: there is no such folder",
    ),
    "divergence": (
        ["problem=digits_mlp", "algorithm=sgd", "algorithm.batch_size=32", "algorithm.learning_rate=1e30", *REAL],
        r"nan or infinite .*lower algorithm.learning_rate",
    ),
    "divergence in virtual time": (
        ["problem=digits_mlp", "algorithm=sgd", "algorithm.batch_size=32", "algorithm.learning_rate=1e30", *SIMULATED],
        r"nan or infinite .*lower algorithm.learning_rate",
    ),
    "online without a key": (["tracking=wandb", "tracking.mode=online"], r"tracking.mode=online.*WANDB_API_KEY"),
    "unknown W&B mode": (
        ["tracking=wandb", "tracking.mode=sometimes"],
        r"tracking.mode .*must be one of offline, online, disabled, got 'sometimes'",
    ),
}


def test_a_run_that_is_refused_leaves_nothing(tmp_path):
    assert command(*QUICK, *SIMULATED, "algorithm.batch_size=0", runs_dir=tmp_path).returncode == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_gets_one_sentence(tmp_path, arguments, sentence):
    where = {} if any(a.startswith("runs_dir=") for a in arguments) else {"runs_dir": tmp_path}
    outcome = command(*QUICK, *arguments, **where, HOME=str(tmp_path))
    errors = [line for line in outcome.stderr.splitlines() if line.strip()]
    assert outcome.returncode not in (0, None), outcome.stdout
    assert "Traceback" not in outcome.stdout + outcome.stderr
    assert re.search(sentence, outcome.stderr, re.M), outcome.stderr
    assert len([line for line in errors if line.startswith("error: ")]) == 1, outcome.stderr
