import math
from itertools import pairwise

import pytest
import torch

from harness.errors import UserError
from harness.problems.synthetic import markov_text
from tests.harness.test_problems import CPU, TEXT, problem, small

POEM = "Rosen, Tulpen, Nelken — alle Blumen welken.\n" * 20


def of(path, **settings):
    return problem("transformer", path=str(path), dtype="float64", **{**TEXT, **settings})


@pytest.fixture
def poem(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text(POEM, encoding="utf-8")
    return path


def text_of(p, rows):
    characters = sorted(set(POEM))
    return ["".join(characters[number] for number in row) for row in rows.tolist()]


def test_samples_are_consecutive_windows_of_the_text(poem):
    p = of(poem)
    inputs, targets = (text_of(p, rows) for rows in p.gather(torch.arange(p.num_samples)))
    train = POEM[: len(POEM) - round(0.1 * len(POEM))]
    assert p.num_tokens == len(set(POEM))
    assert "".join(inputs) == train[: len(inputs) * p.context]
    assert "".join(targets) == train[1 : 1 + len(inputs) * p.context]
    assert 0 < len(train) - len(inputs) * p.context <= p.context


def test_what_is_held_out_is_never_trained_on(poem):
    p = of(poem, evaluated_samples=1000)
    seen = []
    p.__dict__["_rows"] = lambda windows, begin: seen.append((windows, begin)) or type(p)._rows(p, windows, begin)
    p.evaluate(p.build_model(CPU, seed=0))
    (_, train_begin), (windows, test_begin) = seen
    assert train_begin == 0 and test_begin == len(POEM) - round(0.1 * len(POEM))
    held_out = "".join(text_of(p, type(p)._rows(p, windows, test_begin)[0]))
    assert held_out == POEM[test_begin:][: len(held_out)] and len(held_out) > len(POEM) // 20


def test_compressed_text_is_the_same(poem, tmp_path):
    import gzip

    packed = tmp_path / "packed" / "poem.txt.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(POEM.encode()))
    rows = [of(path).gather(torch.arange(5)) for path in (poem, packed.with_suffix(""))]
    assert all(torch.equal(one, other) for one, other in zip(*rows, strict=True))


def test_text_that_cannot_be_used_is_refused(poem, tmp_path):
    with pytest.raises(UserError, match=r"problem.path='nowhere.txt' is at none of"):
        assert of("nowhere.txt").num_samples
    with pytest.raises(UserError, match=r"problem.context=400 is too long for a text of 880 characters, of which 88"):
        assert of(poem, context=400).num_samples
    (tmp_path / "noise").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"noise cannot be read as text"):
        assert of(tmp_path / "noise").num_samples
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(UserError, match=r"too long for a text of 0 characters"):
        assert of(tmp_path / "empty").num_samples


def test_bits_are_those_of_the_loss_of_the_held_out_text():
    metrics = small("transformer").evaluate(small("transformer").build_model(CPU, seed=0))
    assert metrics["eval/bits_per_character"] == pytest.approx(metrics["eval/loss"] / math.log(2), rel=1e-12)
    # nothing is known yet of 26 letters and space; scores of variance 1 add half of that (the mean of a lognormal)
    assert metrics["eval/loss"] == pytest.approx(math.log(27) + 0.5, abs=0.2)


def test_several_models_predict_the_mean_of_their_probabilities():
    p = small("transformer", evaluated_samples=5)
    models = [p.build_model(CPU, seed) for seed in (1, 2)]
    samples = torch.arange(5) * p.num_samples // 5
    inputs, targets = p.gather(samples)
    mean = sum(model(inputs).softmax(-1) for model in models) / 2
    wanted = -mean.gather(2, targets[..., None]).log().mean()
    assert p.evaluate_ensemble(models)["train/loss"] == pytest.approx(float(wanted.detach()), rel=1e-12)


def test_synthetic_words_have_few_successors():
    text = markov_text(20_000, num_words=50, successors=3, seed=1)
    assert len(text) == 20_000 and text == markov_text(20_000, 50, 3, seed=1)
    assert text != markov_text(20_000, 50, 3, seed=2)
    words = text.split(" ")[:-1]  # the last one may be cut
    assert 10 < len(set(words)) <= 50 and all(2 <= len(word) <= 8 for word in words)
    followers = {word: set() for word in words}
    for word, after in pairwise(words):
        followers[word].add(after)
    assert max(map(len, followers.values())) == 3


def test_the_shortest_synthetic_text_is_refused_and_not_made_up():
    with pytest.raises(UserError, match="too long for a text of 2 characters"):
        assert problem("transformer", synthetic_characters=2).num_samples
