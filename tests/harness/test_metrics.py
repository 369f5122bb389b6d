import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hardware.base import Execution, WorkerReport
from harness.errors import UserError
from harness.measures import Conclusion, distributions
from harness.metrics import compare, first_divergence, history, retarget, summarise, time_to_best, to_target
from harness.place import Observation

AXES = ("progress/epoch", "progress/sample", "progress/update", "time/run_s", "time/wall_s")
seconds = st.floats(1e-6, 1e6)


def observation(time_s, samples, updates, host_s=0.0):
    return Observation(time_s, host_s, samples, updates, torch.zeros(1))


def rows_of(points, num_samples=100):
    """History of (time_s, samples, loss) points, one update per sample."""
    observations = [observation(time_s, samples, samples) for time_s, samples, _ in points]
    return history(observations, [{"train/loss": loss} for _, _, loss in points], num_samples, 0.0)


def summary_of(points, workers=1, target=1.0, run_id="r"):
    execution = Execution(workers=[WorkerReport(rank, points[-1][0], 0, 0, 0, 0) for rank in range(workers)])
    found = summarise(execution, rows_of(points), 100, workers, target)
    return {"run/id": run_id, "run/name": f"name-{run_id}", "run/kind": "real", **found}


def test_every_row_has_all_axes_and_the_first_is_the_initial_model():
    observations = [observation(0.0, 0, 0, 5.0), observation(2.0, 100, 10, 8.0), observation(3.0, 200, 20, 9.5)]
    rows = history(observations, [{"train/loss": x, "eval/accuracy": 0.5} for x in (3.0, 2.0, 1.0)], 50, 5.0)
    assert [[row[axis] for axis in AXES] for row in rows] == [
        [0, 0, 0, 0, 0],
        [2, 100, 10, 2, 3],
        [4, 200, 20, 3, 4.5],
    ]
    assert [row["train/loss"] for row in rows] == [3, 2, 1]
    assert [row.get("perf/samples_per_s") for row in rows] == [None, 50, 100]
    assert [row.get("perf/updates_per_s") for row in rows] == [None, 5, 10]


def test_rows_whose_clocks_were_read_out_of_order_have_no_rate():
    rows = rows_of([(0, 0, 3), (2, 100, 2), (1.5, 200, 1)])
    assert "perf/samples_per_s" not in rows[2]


def test_a_loss_that_is_not_finite_leaves_its_row_and_is_reported():
    observations = [observation(0, 0, 0), observation(1, 100, 1), observation(2, 200, 2)]
    values = [{"train/loss": 1.0}, {"train/loss": math.nan, "eval/accuracy": 0.1}, {"train/loss": math.inf}]
    rows = history(observations, values, 100, 0.0)
    assert ["train/loss" in row for row in rows] == [True, False, False]
    assert rows[1]["eval/accuracy"] == 0.1
    json.dumps(rows, allow_nan=False)
    assert first_divergence(observations, values) is observations[1]
    assert first_divergence(observations[:1], values[:1]) is None


def test_the_summary_accounts_for_workers_times_run_time():
    workers = [
        WorkerReport(0, 4.0, compute_s=2.0, comm_s=1.0, idle_s=0.5, sent_bytes=300, peak_bytes=7),
        WorkerReport(1, 3.0, compute_s=3.0, comm_s=0.0, idle_s=0.0, sent_bytes=100, peak_bytes=9),
    ]
    execution = Execution(workers=workers, metrics={"async/staleness_mean": 1.5, "sim/slowdown": math.nan})
    found = summarise(execution, rows_of([(0, 0, 2), (3.9, 200, 1)]), 100, 2, 0.5)
    assert found["perf/samples_per_s"] == 50
    assert found["perf/updates_per_s"] == 50
    assert found["perf/time_per_epoch_s"] == 2
    assert found["time/run_s"] == 4
    assert [found[f"perf/{part}_frac"] for part in ("compute", "comm", "idle", "other")] == [
        5 / 8,
        1 / 8,
        (0.5 + 1) / 8,  # the second worker ends a second before the run
        0.5 / 8,
    ]
    assert (found["comm/bytes_total"], found["comm/bytes_per_update"]) == (400, 2)
    assert found["mem/worker_peak_bytes_max"] == 9
    assert found["train/loss"] == 1
    assert found["async/staleness_mean"] == 1.5
    assert "sim/slowdown" not in found
    assert found["run/num_workers"] == 2


def test_what_does_not_apply_is_absent():
    found = summarise(
        Execution(workers=[WorkerReport(0, 1, 1, 0, 0, 0)]), rows_of([(0, 0, 2), (1, 10, 1)]), 100, 1, None
    )
    assert not [key for key in found if key.startswith(("comm/", "mem/", "target/", "stat/"))]


def test_a_run_that_failed_is_summarised_from_what_was_observed():
    found = summarise(Execution(failure=RuntimeError("x")), rows_of([(0, 0, 2), (2, 100, 1)]), 100, 2, 0.5)
    assert found["perf/samples_per_s"] == 50
    assert "perf/compute_frac" not in found


def test_a_run_that_failed_at_once_has_no_rates():
    found = summarise(Execution(), rows_of([(0, 0, 2)]), 100, 2, 0.5)
    assert not [key for key in found if key.startswith("perf/")]
    assert found["train/loss"] == 2


parts = st.tuples(*[st.floats(0, 1e6)] * 3)


@given(st.lists(parts, min_size=1, max_size=8), seconds)
def test_fractions_are_fractions_and_sum_to_one(times, run_s):
    workers = [WorkerReport(rank, run_s, *time_s, 0) for rank, time_s in enumerate(times)]
    found = summarise(Execution(workers=workers), rows_of([(0, 0, 2), (run_s, 10, 1)]), 100, len(times), None)
    fractions = [value for key, value in found.items() if key.endswith("_frac")]
    assert len(fractions) == 4
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert sum(fractions) == pytest.approx(1, rel=1e-12)  # rounding of four quotients


def test_the_target_is_interpolated_with_one_fraction_on_all_axes():
    found = to_target(rows_of([(0, 0, 4.0), (1, 100, 3.0), (5, 300, 1.0), (6, 400, 0.5)]), 1.5)
    assert found == {
        "target/value": 1.5,
        "target/reached": True,
        "target/time_s": 4.0,
        "stat/epochs_to_target": 2.5,
        "target/samples_per_s": 62.5,
    }


def test_the_first_crossing_counts_even_if_the_loss_rises_again():
    found = to_target(rows_of([(0, 0, 4.0), (1, 100, 1.0), (2, 200, 3.0), (3, 300, 0.5)]), 2.5)
    assert found["target/time_s"] == 0.5


def test_a_target_not_reached_is_said_and_has_no_numbers():
    assert to_target(rows_of([(0, 0, 4.0), (1, 100, 3.0)]), 1.0) == {"target/value": 1.0, "target/reached": False}


def test_a_target_met_by_the_initial_model_has_time_zero_and_no_rate():
    assert to_target(rows_of([(0, 0, 1.0), (1, 100, 0.5)]), 1.0) == {
        "target/value": 1.0,
        "target/reached": True,
        "target/time_s": 0.0,
        "stat/epochs_to_target": 0.0,
    }


def test_a_target_met_in_no_time_has_no_rate():
    found = to_target(rows_of([(0, 0, 2.0), (0.0, 100, 0.5)]), 1.0)
    assert found["target/reached"]
    assert "target/samples_per_s" not in found


def test_a_row_without_a_loss_is_passed_over():
    rows = rows_of([(0, 0, 4.0), (1, 100, math.nan), (2, 200, 2.0)])
    assert to_target(rows, 3.0)["target/time_s"] == 1.0


def test_both_at_the_target_are_compared_up_to_the_target():
    baseline = summary_of([(0, 0, 2), (10, 100, 0)], run_id="one")
    run = summary_of([(0, 0, 2), (4, 160, 0), (100, 200, 0)], workers=2)
    found = compare(run, baseline)
    assert found["speedup/throughput_over"] == "target"
    assert found["speedup/throughput"] == pytest.approx(40 / 10)
    assert found["stat/efficiency_ratio"] == pytest.approx(100 / 160)
    assert found["speedup/time_to_target"] == pytest.approx(10 / 4)
    assert found["speedup/parallel_efficiency"] == pytest.approx(2)
    names = [found[f"speedup/baseline_{key}"] for key in ("id", "name", "kind")]
    assert names == ["one", "name-one", "real"]
    assert "speedup/self" not in found


def test_where_one_missed_the_target_whole_runs_are_compared():
    baseline = summary_of([(0, 0, 2), (10, 100, 0)])
    run = summary_of([(0, 0, 2), (4, 160, 1.5)], workers=2)
    found = compare(run, baseline, self_baseline=summary_of([(0, 0, 2), (10, 200, 0)]))
    assert found["speedup/throughput_over"] == "run"
    assert found["speedup/throughput"] == pytest.approx(4)
    assert (found["speedup/self"], found["speedup/self_over"]) == (pytest.approx(2), "run")
    assert not {"speedup/time_to_target", "stat/efficiency_ratio"} & found.keys()


def test_a_baseline_that_starts_at_the_target_gives_no_infinite_speedup():
    found = compare(summary_of([(0, 0, 2), (4, 160, 0)]), summary_of([(0, 0, 1), (10, 100, 0)]))
    assert found["speedup/throughput_over"] == "run"
    assert "speedup/time_to_target" not in found


def test_a_run_without_rates_is_compared_with_nothing():
    found = compare(summary_of([(0, 0, 2)]), summary_of([(0, 0, 2), (10, 100, 0)]))
    assert set(found) == {"speedup/baseline_id", "speedup/baseline_name", "speedup/baseline_kind"}


def test_a_baseline_with_another_target_is_refused_until_it_is_retargeted():
    points = [(0, 0, 2), (10, 100, 0)]
    run, baseline = summary_of(points, target=1.0), summary_of(points, target=0.5)
    with pytest.raises(UserError, match=r"target.loss must equal the baseline's \(0.5\).*got 1.0"):
        compare(run, baseline)
    assert retarget(baseline, rows_of(points), 1.0) == run
    assert "target/value" not in retarget(baseline, rows_of(points), None)


@st.composite
def descents(draw):
    steps = draw(st.lists(st.tuples(seconds, st.integers(1, 10**6), st.floats(1e-3, 10)), min_size=1, max_size=6))
    points, (time_s, samples, loss) = [(0.0, 0, 100.0)], (0.0, 0, 100.0)
    for more_s, more_samples, less in steps:
        time_s, samples, loss = time_s + more_s, samples + more_samples, loss - less
        points.append((time_s, samples, loss))
    return points


@given(descents(), descents(), st.floats(30, 99.9), st.integers(1, 64))
def test_time_to_target_is_throughput_times_statistical_efficiency(run, baseline, target, workers):
    found = compare(summary_of(run, workers, target), summary_of(baseline, 1, target))
    both = run[-1][2] <= target and baseline[-1][2] <= target
    assert ("speedup/time_to_target" in found) == both
    if both:
        product = found["speedup/throughput"] * found["stat/efficiency_ratio"]
        assert found["speedup/time_to_target"] == pytest.approx(product, rel=1e-9)  # rounding only


@given(descents(), st.floats(30, 99.9))
def test_the_crossing_lies_between_the_rows_around_it(points, target):
    found = to_target(rows_of(points), target)
    if found["target/reached"]:
        first = next(i for i, point in enumerate(points) if point[2] <= target)
        assert points[first - 1][0] <= found["target/time_s"] <= points[first][0] * (1 + 1e-12)


def test_every_key_is_documented():
    documented = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    points = [(0, 0, 2), (10, 100, 0)]
    workers = [WorkerReport(0, 10, 1, 1, 1, sent_bytes=8, peak_bytes=1)]
    summary = summarise(Execution(workers=workers), rows_of(points), 100, 1, 1.0)
    named = {"run/id": "a", "run/name": "b", "run/kind": "real", **summary}
    keys = {*rows_of(points)[1], *named, *compare(named, named, named)}
    assert not [key for key in keys if f"`{key}`" not in documented]


def test_time_to_the_best_that_both_have_found():
    own = [
        {"train/loss": 3.0, "time/run_s": 0.0},
        {"train/loss": 2.0, "time/run_s": 1.0},
        {"train/loss": 0.5, "time/run_s": 2.0},
    ]
    other = [{"train/loss": 3.0, "time/run_s": 0.0}, {"train/loss": 1.0, "time/run_s": 8.0}, {"time/run_s": 9.0}]
    assert time_to_best(own, other) == {"speedup/time_to_best": 4.0, "speedup/best_loss": 1.0}
    assert time_to_best(own[:1], other) == {}  # the initial model, for which nobody waits
    assert time_to_best(own, other[2:]) == {}


def test_conclusions_are_kept_as_they_are():
    found = distributions([{"search/trials": Conclusion(3), "async/staleness": [2]}, {"async/staleness": [4]}])
    assert (found["search/trials"], found["async/staleness_mean"]) == (3, 3.0)
