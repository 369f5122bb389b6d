import pickle
from dataclasses import fields, replace
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from algorithms.flat import flat_parameters
from harness.build import build
from harness.data import Partitioned
from harness.errors import UserError
from tests.small_steps import flat_gradient, sgd_step_, view_parameters_

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = sorted(path.stem for path in (CONF / "problem").glob("*.yaml"))
SPARSE = {"synthetic_samples": 400, "synthetic_features": 200, "synthetic_nonzeros_per_sample": 10.0}
RATINGS = {"synthetic_users": 50, "synthetic_items": 40, "synthetic_ratings": 1000, "rank": 5, "l2": 1e-3}
TOKENS = {"layers": 2, "width": 16, "hidden": 24, "heads": 4, "key_value_heads": 2, "context": 8, "vocabulary": 30}
LLAMA = {**TOKENS, "samples": 120, "fake": False}
TEXT = {name: size for name, size in TOKENS.items() if name != "vocabulary"} | {"synthetic_characters": 6000}
SMALL = {
    "logistic_regression": SPARSE,
    "svm": SPARSE,
    "least_squares": {"samples": 300, "features": 12},
    "matrix_completion": RATINGS,
    "transformer": TEXT,
    "cnn": {"channels": 2, "hidden": 6},
    "resnet20": {"channels": 2, "blocks": 1, "groups": 1},
    "transformer_8b": LLAMA,
    "transformer_70b": LLAMA,
    "transformer_405b": LLAMA,
}
NATIVE = ["logistic_regression", "svm", "least_squares", "matrix_completion"]
ARITHMETIC = ["transformer_8b", "transformer_70b", "transformer_405b"]  # whose data are computed when asked for
RANDOM_START = ["digits_mlp", "matrix_completion", "transformer", "cnn", "resnet20", *ARITHMETIC]
CPU = torch.device("cpu")


def problem(name, **settings):
    node = OmegaConf.merge(OmegaConf.load(CONF / "problem" / f"{name}.yaml"), settings)
    return build(node, "problem")


def small(name, **settings):
    return problem(name, dtype="float64", **(SMALL.get(name, {}) | settings))


def somewhere(name, **settings):
    """A small problem, and a model that is not at its start."""
    p = small(name, **settings)
    model = p.build_model(CPU, seed=1)
    flat = flat_parameters(model)
    flat += 0.3 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(2), dtype=flat.dtype)
    view_parameters_(model, flat.clone())
    return p, model, flat


def order(p, epochs):
    data, budget = Partitioned("index"), epochs * p.num_samples
    return data.sequence(data.share(p.num_samples, budget, 0, (0,)), budget, seed=0)


@pytest.mark.parametrize("name", OPTIONS)
def test_yaml_names_every_field_and_says_what_it_is(name):
    text = (CONF / "problem" / f"{name}.yaml").read_text()
    node = OmegaConf.create(text)
    assert set(node) == {"_target_"} | {f.name for f in fields(problem(name))}
    first, target, *rest = text.splitlines()
    assert first.startswith("# ") and target.startswith("_target_: ")
    assert all("  # " in line for line in rest)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_is_the_finite_difference(name):
    p, model, flat = somewhere(name)
    samples = torch.tensor([5, 17, 5, 100], dtype=torch.int32)
    p.loss(model, samples).backward()
    gradient = flat_gradient(model)
    direction = torch.randn(flat.shape, generator=torch.Generator().manual_seed(3), dtype=flat.dtype)
    step = 1e-6
    ends = []
    for sign in (1, -1):
        view_parameters_(model, flat + sign * step * direction)
        ends.append(float(p.loss(model, samples).detach()))
    # A central difference errs by step^2 f''' and by rounding, 1e-16 / step; kinks of measure zero are not met.
    assert float(gradient @ direction) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-9)
    assert gradient.norm() > 1e-3


@pytest.mark.parametrize(
    ("name", "settings"), [*((name, {}) for name in NATIVE), ("svm", {"squared": True}), ("least_squares", {"l2": 0.3})]
)
def test_native_step_is_the_torch_step(name, settings):
    p, model, flat = somewhere(name, **settings)
    native = flat.clone()
    samples = order(p, 1)[:60]
    p.kernel(native, samples, 0.05)
    for sample in samples.split(1):
        p.loss(model, sample).backward()
        sgd_step_(model, 0.05)
    torch.testing.assert_close(native, flat_parameters(model), rtol=1e-12, atol=1e-14)
    assert not torch.allclose(native, flat)


@pytest.mark.parametrize("name", OPTIONS)
def test_training_loss_is_the_loss_of_all_samples(name):
    p, model, _ = somewhere(name)
    p = replace(p, evaluated_samples=p.num_samples) if hasattr(p, "evaluated_samples") else p
    everything = p.loss(model, torch.arange(p.num_samples))
    assert p.evaluate(model)["train/loss"] == pytest.approx(float(everything.detach()), rel=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_model_depends_on_the_seed_alone(name):
    p = small(name)
    state = torch.random.get_rng_state()
    first = flat_parameters(p.build_model(CPU, seed=5))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(3)
    assert torch.equal(first, flat_parameters(p.build_model(CPU, seed=5)))
    if name in RANDOM_START:
        assert not torch.equal(first, flat_parameters(p.build_model(CPU, seed=6)))
    else:
        assert not first.any()


@pytest.mark.parametrize("name", OPTIONS)
def test_data_depend_on_the_problem_seed(name):
    def losses(seed):
        p = small(name, seed=seed)
        torch.rand(3)
        model = p.build_model(CPU, seed=0)
        p.loss(model, torch.arange(20)).backward()
        return flat_gradient(model)

    assert torch.equal(losses(0), losses(0))
    assert not torch.equal(losses(0), losses(1))


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_of_model_and_data(name, dtype):
    p = problem(name, **SMALL[name], dtype=dtype)
    model = p.build_model(CPU, seed=0)
    assert flat_parameters(model).dtype == p.loss(model, torch.tensor([0])).dtype == getattr(torch, dtype)
    assert p.kernel.native().values.dtype == getattr(np, dtype)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ARITHMETIC])
def test_data_travel_through_shared_memory(name):
    p = small(name)
    p.evaluate(p.build_model(CPU, seed=0))
    assert p.kernel is None or p.kernel.rows is not None
    try:
        travelling = ForkingPickler.dumps(p)
    finally:
        resource_sharer.stop(timeout=10)
    assert len(pickle.dumps(p)) > 20_000 > 2 * len(travelling)


@pytest.mark.parametrize("name", NATIVE)
def test_a_pickled_problem_trains_alike(name):
    p = small(name)
    assert p.kernel is not None
    ends = []
    for each in (p, pickle.loads(pickle.dumps(p))):
        weights = flat_parameters(each.build_model(CPU, seed=0))
        each.kernel(weights, order(p, 1), 0.05)
        ends.append(weights)
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("name", "epochs"),
    [("logistic_regression", 5), ("svm", 5), ("least_squares", 6), ("matrix_completion", 5)],
)
def test_sequential_sgd_reaches_the_target_of_the_shipped_problem(name, epochs):
    p = problem(name)
    model = p.build_model(CPU, seed=0)
    weights = flat_parameters(model)
    view_parameters_(model, weights)
    for epoch in order(p, epochs).split(p.num_samples):
        p.kernel(weights, epoch, p.learning_rate)
        reached = p.evaluate(model)["train/loss"] <= p.target_loss
        if reached:
            break
    assert reached


DEEP = [pytest.param(*each, marks=pytest.mark.slow) for each in (("cnn", 7), ("resnet20", 3), ("transformer", 5))]


@pytest.mark.parametrize(("name", "epochs"), [("digits_mlp", 10), *DEEP])
def test_minibatch_sgd_reaches_the_target_of_the_shipped_problem(name, epochs):
    p = problem(name)
    model = p.build_model(CPU, seed=0)
    for epoch in order(p, epochs).split(p.num_samples):
        for batch in epoch.split(p.minibatch_size):
            p.loss(model, batch).backward()
            sgd_step_(model, p.minibatch_learning_rate)
        metrics = p.evaluate(model)
        if metrics["train/loss"] <= p.target_loss:
            break
    assert metrics["train/loss"] <= p.target_loss
    assert metrics["eval/loss"] < 1.5 * p.target_loss + 0.1  # what is learnt is of use elsewhere
    assert metrics.get("eval/accuracy", 1) > 0.9


def test_digits_are_split_without_overlap():
    p = problem("digits_mlp", test_fraction=0.25)
    train, test = ({image.numpy().tobytes() for image in images} for images, _ in (p.train, p.test))
    assert p.num_samples == len(p.train[0]) == 1797 - round(1797 / 4)
    assert len(p.test[0]) == round(1797 / 4)
    assert len(train | test) == len(train) + len(test) == 1797
    assert float(p.train[0].max()) == 1.0


def test_digits_hidden_sizes():
    model = problem("digits_mlp", hidden_sizes=[7, 5]).build_model(CPU, seed=0)
    assert [p.shape[0] for p in model.parameters() if p.ndim == 2] == [7, 5, 10]
    softmax = problem("digits_mlp", hidden_sizes=[]).build_model(CPU, seed=0)
    assert [tuple(p.shape) for p in softmax.parameters()] == [(10, 64), (10,)]


def test_the_regularised_optimum_of_least_squares_is_one():
    p = small("least_squares", l2=0.5)
    model = p.build_model(CPU, seed=0)
    view_parameters_(model, p.optimum.clone())
    p.loss(model, torch.arange(p.num_samples)).backward()
    assert flat_gradient(model).abs().max() < 1e-13
    assert (p.optimum - small("least_squares").optimum).norm() > 0.1


@pytest.mark.parametrize(("condition", "noise"), [(1.0, 0.0), (50.0, 0.0), (50.0, 0.2)])
def test_least_squares_has_the_hessian_and_the_optimum_it_claims(condition, noise):
    p = small("least_squares", condition=condition, noise=noise)
    eigenvalues = torch.linalg.eigvalsh(p.matrix.T @ p.matrix / p.num_samples)
    assert float(eigenvalues[-1]) == pytest.approx(1, rel=1e-12)
    assert float(eigenvalues[-1] / eigenvalues[0]) == pytest.approx(condition, rel=1e-10)
    model = p.build_model(CPU, seed=0)
    view_parameters_(model, p.optimum.clone())
    loss = p.loss(model, torch.arange(p.num_samples))
    loss.backward()
    assert flat_gradient(model).abs().max() < 1e-13
    assert p.evaluate(model)["train/loss"] == pytest.approx(p.optimal_loss, rel=1e-12, abs=1e-28)
    # The residual of n samples and d features has mean noise^2 (n - d) / n; 20% is four standard deviations of it.
    assert p.optimal_loss == pytest.approx(0.5 * noise**2 * (300 - 12) / 300, rel=0.35, abs=1e-28)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("svm", "dtype", "float16", "problem.dtype must be float32 or float64, got 'float16'"),
        ("svm", "learning_rate", 0.0, "problem.learning_rate must be > 0, got 0.0"),
        ("svm", "test_fraction", 1.0, "problem.test_fraction must be in [0, 1), got 1.0"),
        ("svm", "test_path", "a9a.t", "problem.test_path needs problem.path, got 'a9a.t'"),
        ("svm", "synthetic_samples", 1, "problem.synthetic_samples must be >= 2, got 1"),
        ("svm", "synthetic_features", 1, "problem.synthetic_features must be >= 2, got 1"),
        ("svm", "synthetic_label_noise", 0.6, "problem.synthetic_label_noise must be in [0, 0.5], got 0.6"),
        ("svm", "seed", -1, "problem.seed must be >= 0, got -1"),
        ("least_squares", "features", 1, "problem.features must be >= 2, got 1"),
        ("least_squares", "samples", 99, "problem.samples must be >= problem.features=100, got 99"),
        ("least_squares", "condition", 0.5, "problem.condition must be >= 1, got 0.5"),
        ("least_squares", "noise", -1.0, "problem.noise must be >= 0, got -1.0"),
        ("least_squares", "seed", -1, "problem.seed must be >= 0, got -1"),
        ("matrix_completion", "rank", 0, "problem.rank must be >= 1, got 0"),
        ("matrix_completion", "l2", -1.0, "problem.l2 must be >= 0, got -1.0"),
        ("matrix_completion", "test_fraction", 1.0, "problem.test_fraction must be in [0, 1), got 1.0"),
        ("matrix_completion", "synthetic_users", 1, "problem.synthetic_users must be >= 2, got 1"),
        ("matrix_completion", "synthetic_items", 0, "problem.synthetic_items must be >= 2, got 0"),
        ("matrix_completion", "synthetic_rank", 0, "problem.synthetic_rank must be >= 1, got 0"),
        ("matrix_completion", "synthetic_noise", -0.1, "problem.synthetic_noise must be >= 0, got -0.1"),
        (
            "matrix_completion",
            "synthetic_item_exponent",
            -1.0,
            "problem.synthetic_item_exponent must be >= 0, got -1.0",
        ),
        (
            "matrix_completion",
            "synthetic_ratings",
            20_000_000,
            "problem.synthetic_ratings must be in [2, synthetic_users x synthetic_items / 2 = 11192120], got 20000000",
        ),
        ("matrix_completion", "seed", -1, "problem.seed must be >= 0, got -1"),
        ("transformer", "width", 36, "problem.width must be a multiple of 2 x problem.heads=4, got 36"),
        ("transformer", "key_value_heads", 3, "problem.key_value_heads must divide problem.heads=4, got 3"),
        ("transformer", "layers", 0, "problem.layers must be >= 1, got 0"),
        ("transformer", "context", 0, "problem.context must be >= 1, got 0"),
        ("transformer", "rotary_base", 1.0, "problem.rotary_base must be > 1, got 1.0"),
        ("transformer", "norm_epsilon", 0.0, "problem.norm_epsilon must be > 0, got 0.0"),
        ("transformer", "test_fraction", 1.0, "problem.test_fraction must be in (0, 1), got 1.0"),
        ("transformer", "evaluated_samples", 0, "problem.evaluated_samples must be >= 1, got 0"),
        (
            "transformer",
            "synthetic_successors",
            101,
            "problem.synthetic_successors must be in [1, synthetic_words = 100], got 101",
        ),
        ("transformer", "dtype", "bfloat16", "problem.dtype must be float32 or float64, got 'bfloat16'"),
        ("transformer_8b", "dtype", "int8", "problem.dtype must be float32, float64 or bfloat16, got 'int8'"),
        ("transformer_8b", "vocabulary", 1, "problem.vocabulary must be >= 2, got 1"),
        ("cnn", "channels", 0, "problem.channels must be >= 1, got 0"),
        ("cnn", "hidden", 0, "problem.hidden must be >= 1, got 0"),
        ("cnn", "evaluated_samples", 0, "problem.evaluated_samples must be >= 1, got 0"),
        ("resnet20", "groups", 5, "problem.groups must divide problem.channels=16, got 5"),
        ("resnet20", "blocks", 0, "problem.blocks must be >= 1, got 0"),
        ("digits_mlp", "hidden_sizes", [3, 0], "problem.hidden_sizes must be >= 1 each, got [3, 0]"),
        ("digits_mlp", "test_fraction", 0.0, "problem.test_fraction must be in (0, 1), got 0.0"),
        ("digits_mlp", "seed", -1, "problem.seed must be >= 0, got -1"),
    ],
)
def test_values_out_of_range_are_refused(name, field, value, message):
    with pytest.raises(UserError) as error:
        replace(problem(name), **{field: value})
    assert str(error.value) == message


def test_too_many_nonzeros_are_refused():
    with pytest.raises(UserError, match=r"nonzeros_per_sample must be in \[1, synthetic_features / 2 = 50\], got 75.0"):
        problem("svm", synthetic_features=100)


def test_float_hidden_size_is_no_number_of_units():
    with pytest.raises(UserError, match="hidden_sizes"):
        problem("digits_mlp", hidden_sizes=[2.5])


def test_numpy_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()
    small("logistic_regression").evaluate(small("logistic_regression").build_model(CPU, seed=0))
    assert (np.random.get_state()[1] == before).all()
