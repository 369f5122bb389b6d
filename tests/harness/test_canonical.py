import json
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.canonical import digest, plain, to_json


def test_numbers_and_arrays_of_numpy_and_torch_are_written_as_python_s():
    values = {
        "numpy": np.float32(0.5),
        "flag": np.bool_(True),
        "array": np.arange(3),
        "scalar": torch.tensor(2),
        "tensor": torch.tensor([0.5, 1.0]),
        "path": Path("a/b"),
        "pair": (1, None),
    }
    assert json.loads(to_json(values)) == {
        "numpy": 0.5,
        "flag": True,
        "array": [0, 1, 2],
        "scalar": 2,
        "tensor": [0.5, 1.0],
        "path": "a/b",
        "pair": [1, None],
    }


@pytest.mark.parametrize(
    ("value", "text"), [(float("nan"), "nan"), (-float("inf"), "-inf"), (np.float64("inf"), "inf")]
)
def test_what_json_has_no_number_for_becomes_a_word(value, text):
    assert plain([value]) == [text]


def test_what_has_no_stable_text_is_refused():
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        plain({"a": object()})


def test_a_digest_depends_on_values_and_not_on_the_order_of_keys_or_sets():
    assert digest({"a": 1, "b": {"c", "d"}}) == digest({"b": {"d", "c"}, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest({"a": "1"}) != digest({"a": 1})
