import gzip
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.errors import UserError
from tests.harness.test_problems import CPU, problem, small

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (12, 6, 5), dtype=np.uint8)
CLASSES = np.arange(12, dtype=np.uint8) % 3
IDX = {"train": slice(0, 8), "t10k": slice(8, 12)}


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def fashion(tmp_path):
    for name, part in IDX.items():
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(PIXELS[part]))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(CLASSES[part])))
    return tmp_path


@pytest.fixture
def cifar(tmp_path):
    images = RANDOM.integers(0, 256, (6, 2, 3, 32, 32), dtype=np.uint8)
    for batch, name in enumerate([*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]):
        rows = [bytes([batch]) + image.tobytes() for image in images[batch]]
        (tmp_path / f"{name}.bin").write_bytes(b"".join(rows))
    return tmp_path, images


def of(folder, name="cnn", **settings):
    return problem(name, path=str(folder), dtype="float64", **settings)


def test_idx_files_are_what_they_say(fashion):
    p = of(fashion)
    assert p.num_samples == 8 and p.image_shape == (1, 6, 5) and p.num_classes == 3
    images, classes = p.gather(torch.tensor([6, 2]))
    assert classes.tolist() == [0, 2]
    standard = (PIXELS[:8] - PIXELS[:8].mean()) / PIXELS[:8].std()
    torch.testing.assert_close(images, torch.from_numpy(standard[[6, 2], None]), rtol=1e-12, atol=1e-12)
    metrics = p.evaluate(p.build_model(CPU, seed=0))
    assert set(metrics) == {"train/loss", "eval/loss", "eval/accuracy"}


def test_cifar_batches_are_what_they_say(cifar):
    folder, images = cifar
    p = of(folder, "resnet20")
    assert p.num_samples == 10 and p.image_shape == (3, 32, 32) and p.num_classes == 5
    assert p.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert (p.train.images.numpy() == images[:5].reshape(10, 3, 32, 32)).all()
    pixels, _ = p.gather(torch.arange(10))
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(pixels.square().mean((0, 2, 3)), torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)
    assert p.build_model(CPU, seed=0)(pixels).shape == (10, 5)


def test_data_are_found_in_the_folders_of_the_environment(fashion, monkeypatch):
    monkeypatch.setenv("TWINCLOCK_DATA", str(fashion.parent))
    assert of(fashion.name).num_samples == 8


def test_a_change_of_the_files_is_noticed(fashion):
    before = of(fashion).data_version()
    (fashion / "train-images-idx3-ubyte").write_bytes(idx(PIXELS[:8]) + b"0")
    assert before and before != of(fashion).data_version()


def cut(folder, name="train-images-idx3-ubyte"):
    (folder / name).write_bytes(idx(PIXELS[:8])[:-1])


def test_damaged_idx_files_are_refused(fashion):
    cut(fashion)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte is no IDX file of bytes in 3 dimensions.*cut short"):
        assert of(fashion).num_samples
    (fashion / "train-images-idx3-ubyte").write_bytes(idx(PIXELS[:7]))
    with pytest.raises(UserError, match=r"has 7 images and .* 8 classes: fetch them again"):
        assert of(fashion).num_samples
    (fashion / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(UserError, match="no IDX file"):
        assert of(fashion).num_samples
    (fashion / "train-images-idx3-ubyte").write_bytes(idx(PIXELS[:8]))
    (fashion / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte.gz cannot be read .*fetch it again"):
        assert of(fashion).num_samples


def test_damaged_cifar_batches_are_refused(cifar):
    folder, _ = cifar
    batch = folder / "data_batch_3.bin"
    for content in (b"", batch.read_bytes()[:-1], bytes([10]) + bytes(3072)):
        batch.write_bytes(content)
        with pytest.raises(UserError, match=r"data_batch_3.bin is no CIFAR-10 batch of rows of 3073 bytes"):
            assert of(folder).num_samples


def test_pickles_are_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"Python version of CIFAR-10, which is pickles .*take the binary version"):
        assert of(tmp_path).num_samples
    assert not (tmp_path / "sprung").exists()


def test_missing_images_name_every_place_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINCLOCK_DATA", str(tmp_path))
    with pytest.raises(UserError) as error:
        assert of("nowhere").num_samples
    assert str(error.value).startswith("problem.path='nowhere' is no folder, looked for at ")
    assert str(tmp_path / "nowhere") in str(error.value)
    with pytest.raises(
        UserError, match=r"has neither all of train-images-idx3-ubyte, .*problem.path must name a folder"
    ):
        assert of(tmp_path).num_samples


def test_bytes_stay_bytes_until_they_are_asked_for():
    p = small("cnn")
    assert p.train.images.dtype == torch.uint8
    assert p.gather(torch.arange(2))[0].dtype == torch.float64


def test_losses_of_large_sets_are_of_a_part_of_them():
    p = small("cnn", evaluated_samples=7)
    model = p.build_model(CPU, seed=0)
    chosen = torch.arange(7) * p.num_samples // 7
    measured = p.evaluate(model)["train/loss"]
    assert measured == pytest.approx(float(p.loss(model, chosen).detach()), rel=1e-12)
    assert measured != pytest.approx(replace(p, evaluated_samples=10**6).evaluate(model)["train/loss"], rel=1e-6)


def test_resnet20_has_its_layers_and_parameters():
    p = problem("resnet20", path=None)
    model = p.build_model(CPU, seed=0)
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    assert len(matrices) == 20
    # He et al., table 6: 0.27M, for images of three channels, which have 2 * 16 * 9 weights more
    assert round((sum(weight.numel() for weight in model.parameters()) + 2 * 16 * 9) / 1e6, 2) == 0.27


def test_a_batch_s_gradient_is_the_mean_of_its_parts_and_nothing_but_parameters_is_learnt():
    p = small("resnet20", channels=4, groups=2)
    model = p.build_model(CPU, seed=0)
    samples = torch.arange(12)
    whole = torch.autograd.grad(p.loss(model, samples), list(model.parameters()))
    halves = [torch.autograd.grad(p.loss(model, part), list(model.parameters())) for part in samples.split(6)]
    for all_of_it, one, other in zip(whole, *halves, strict=True):
        torch.testing.assert_close(all_of_it, (one + other) / 2, rtol=1e-10, atol=1e-13)
    assert not list(model.buffers())


def test_shortcuts_have_no_weights_and_pad_with_zeros():
    model = small("resnet20", channels=2).build_model(CPU, seed=0)
    grows = model[2]
    for module in (grows.second_norm,):
        torch.nn.init.zeros_(module.weight)
    x = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    out = grows(x)
    assert out.shape == (3, 4, 4, 4)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2]) and not out[:, [0, 3]].any()
