import gzip

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.metrics import accuracy_score, log_loss

from harness.errors import UserError
from harness.problems.logistic_regression import LogisticRegression
from harness.problems.synthetic import sparse_rows

CPU = torch.device("cpu")
TRAIN = "1 1:3 2:4\n0 2:1\n1 1:1\n0 3:2\n" * 5
TEST = "0 2:1\n1 1:2\n1 9:1\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINCLOCK_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.gz").write_bytes(gzip.compress(TRAIN.encode()))
    (tmp_path / "test").write_text(TEST)
    return tmp_path


def regression(**settings):
    values = {
        "dtype": "float64",
        "learning_rate": 0.5,
        "minibatch_size": 4,
        "minibatch_learning_rate": 0.5,
        "target_loss": 0.1,
        "path": None,
        "test_path": None,
        "test_fraction": 0.1,
        "download": False,
        "normalize": True,
        "l2": 0.0,
        "synthetic_samples": 400,
        "synthetic_features": 200,
        "synthetic_nonzeros_per_sample": 10.0,
        "synthetic_popularity": "zipf",
        "synthetic_label_noise": 0.05,
        "seed": 0,
    }
    return LogisticRegression(**(values | settings))


def test_generator_gives_what_was_asked_for():
    rows, labels = sparse_rows(3_000, 2_000, nonzeros_per_sample=40, label_noise=0.0, seed=0)
    lengths = rows.indptr.diff()
    # The mean over 3,000 rows whose lengths vary by about 5, plus the rounding of the number of draws.
    assert float(lengths.double().mean()) == pytest.approx(40, abs=1)
    row = torch.repeat_interleave(torch.arange(3_000), lengths)
    norms = torch.zeros(3_000, dtype=torch.float64).index_add_(0, row, rows.values**2)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-12, atol=0)
    assert len(torch.unique(row * 2_000 + rows.indices)) == len(rows.indices)
    assert rows.indices.min() >= 0 and rows.indices.max() < 2_000
    assert set(labels.tolist()) == {-1, 1} and abs(float(labels.mean())) < 0.5


def test_popularity_falls_like_zipf_and_hot_features_are_apart():
    rows, _ = sparse_rows(20_000, 10_000, nonzeros_per_sample=20, label_noise=0.0, seed=1)
    counts = np.bincount(rows.indices.numpy(), minlength=10_000)
    hot = np.argsort(-counts)
    ranks = np.arange(100, 1_000)
    slope = np.polyfit(np.log(ranks), np.log(counts[hot[ranks]]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)  # sampling noise of counts above 40
    distance = np.abs(np.subtract.outer(hot[:20], hot[:20]))[np.triu_indices(20, 1)]
    assert np.median(distance) > 1_000


def test_popularity_may_be_uniform():
    rows, _ = sparse_rows(20_000, 1_000, nonzeros_per_sample=20, label_noise=0.0, seed=1, popularity="uniform")
    counts = np.bincount(rows.indices.numpy(), minlength=1_000)
    # each is about binomial(20,000, 0.02), of standard deviation 20: 1,000 of them are within 5; draws are whole
    assert abs(counts - counts.mean()).max() < 100 and counts.mean() == pytest.approx(400, rel=0.05)
    with pytest.raises(UserError, match=r"problem\.synthetic_popularity must be one of zipf, uniform"):
        regression(synthetic_popularity="pareto")


def test_label_noise_flips_its_share_of_labels():
    clean, noisy = (sparse_rows(10_000, 500, 10, label_noise=noise, seed=0)[1] for noise in (0.0, 0.2))
    # Binomial(10,000, 0.2) has standard deviation 40.
    assert int((clean != noisy).sum()) == pytest.approx(2_000, abs=200)


def test_planted_model_generalises():
    p = regression(synthetic_samples=20_000, synthetic_features=1_000, synthetic_label_noise=0.0)
    model = p.build_model(CPU, seed=0)
    weights = model.weight.detach().view(-1)
    for _ in range(5):
        p.kernel(weights, torch.randperm(p.num_samples, generator=torch.Generator().manual_seed(0)).int(), 1.0)
    assert p.evaluate(model)["eval/accuracy"] > 0.85


def test_files_are_read_once_normalised_and_split(folder):
    p = regression(path="train", test_fraction=0.25)
    assert (p.num_samples, p.rows.num_features) == (15, 3)
    assert p.labels.tolist()[:4] == [1, -1, 1, -1]
    assert p.rows.values.tolist()[:4] == [0.6, 0.8, 1, 1]
    (folder / "train.gz").unlink()
    assert p.evaluate(p.build_model(CPU, seed=0))["eval/accuracy"] == pytest.approx(2 / 5)  # margin 0 counts as +1


def test_rows_may_stay_as_they_are(folder):
    assert regression(path="train", normalize=False).rows.values.tolist()[:2] == [3, 4]


def test_test_file_is_the_test_set(folder):
    p = regression(path="train", test_path="test")
    assert (p.num_samples, p.rows.num_features) == (20, 9)
    model = p.build_model(CPU, seed=0)
    with torch.no_grad():
        model.weight[:3, 0] = torch.tensor([2.0, -1, -3])
    metrics = p.evaluate(model)
    margins = np.array([-1, 2, 0])
    probability = 1 / (1 + np.exp(-margins))
    assert metrics["eval/loss"] == pytest.approx(log_loss([0, 1, 1], probability), rel=1e-12)
    assert metrics["eval/accuracy"] == accuracy_score([0, 1, 1], margins >= 0)


def test_the_kernel_follows_the_regularised_objective_in_the_mean():
    p = regression(l2=0.1, test_fraction=0.0)
    model, samples = p.build_model(CPU, seed=0), torch.arange(p.num_samples, dtype=torch.int32)
    seen = torch.bincount(p.rows.indices, minlength=p.rows.num_features) > 0  # only these are in the kernel's updates
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 200, dtype=torch.float64).unsqueeze(1) * seen.unsqueeze(1))
    loss = p.loss(model, samples)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(p.evaluate(model)["train/loss"], rel=1e-12)
    weights, total = model.weight.detach().view(-1), torch.zeros(200, dtype=torch.float64)
    for sample in samples:
        after = weights.clone()
        p.kernel(after, sample.view(1), 1.0)
        total += weights - after
    torch.testing.assert_close(total / p.num_samples, model.weight.grad.view(-1), rtol=1e-9, atol=1e-12)


def test_the_regulariser_is_not_in_the_test_loss():
    model = regression().build_model(CPU, seed=0)
    torch.nn.init.ones_(model.weight)
    plain, regularised = (regression(l2=l2).evaluate(model) for l2 in (0.0, 0.1))
    assert regularised["eval/loss"] == plain["eval/loss"]
    assert regularised["train/loss"] - plain["train/loss"] == pytest.approx(0.05 * 200, rel=1e-12)
    with pytest.raises(UserError, match=r"problem\.l2 must be >= 0"):
        regression(l2=-1.0)


def test_without_test_data_there_are_no_test_metrics():
    p = regression(test_fraction=0.0)
    assert set(p.evaluate(p.build_model(CPU, seed=0))) == {"train/loss"}
    assert p.num_samples == 400


def test_missing_test_file_names_its_own_setting(folder):
    with pytest.raises(UserError, match=r"^problem\.test_path='absent' is at none of "):
        _ = regression(path="train", test_path="absent").rows


def test_missing_file_is_not_downloaded_unasked(folder):
    with pytest.raises(UserError, match=r"^problem\.path='a9a' .* set problem\.download=true to fetch https://"):
        _ = regression(path="a9a").rows


def test_three_classes_are_refused(folder):
    (folder / "three").write_text("1 1:1\n2 1:1\n3 1:1\n")
    with pytest.raises(UserError, match="three must hold exactly 2 classes, got 3"):
        _ = regression(path="three").rows


def test_holding_out_everything_is_refused(folder):
    (folder / "two").write_text("1 1:1\n0 1:1\n")
    with pytest.raises(UserError, match="leaves nothing of 2 rows: lower it"):
        _ = regression(path="two", test_fraction=0.9).rows


def test_settings_survive_yaml():
    p = regression()
    assert OmegaConf.structured(p) == OmegaConf.structured(LogisticRegression(**OmegaConf.structured(p)))
