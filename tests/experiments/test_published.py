"""Every published behaviour in experiments/, reduced to seconds: who wins, and where not."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest
from composed import config

from experiments import sweeping
from experiments.sweeping import where

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/picture.svg"))


@pytest.fixture(autouse=True)
def options_are_read_once(monkeypatch):
    monkeypatch.setattr(sweeping, "composed", lambda chosen, as_hydra: config(*chosen))


def module(name):
    return import_module(f"experiments.{name}.__main__")


def run(name, *overrides, **labels):
    """The row of one case, with further overrides."""
    (case,) = [case for case in module(name).CASES if where([case.labels], **labels)]
    return case.row(*overrides)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_of_these_cases(name):
    labels = [case.labels for case in module(name).CASES]
    assert [
        {key: row[key] for key in own} for own, row in zip(labels, module(name).EXPERIMENT.rows(), strict=True)
    ] == (labels)


@pytest.mark.parametrize("name", NAMES)
def test_a_readme_quotes_what_was_measured(name):
    text = (ROOT / "experiments" / name / "README.md").read_text()
    assert len(text.splitlines()) <= 40 and f"python -m experiments.{name}\n" in text and "](picture.svg)" in text
    (quoted,) = re.findall(r"```json\n(.*?)```", text, re.S)
    experiment = module(name).EXPERIMENT
    assert json.loads(quoted) == json.loads(json.dumps(experiment.figures(experiment.rows())))


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_of_the_results(name, tmp_path):
    experiment = module(name).EXPERIMENT
    experiment.save(tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == experiment.picture.read_text()


def test_the_gallery_shows_every_picture():
    text = (ROOT / "experiments/README.md").read_text()
    assert sorted(re.findall(r"\((\w+)/picture\.svg\)", text)) == NAMES


SOON = ("target.loss=1.8", "budget.epochs=3", "budget.observations=30")


def staleness_row(situation, method, *overrides):
    labels = {"step": 0.1, "seed": 0, "epochs": 6}
    return run("bounded_staleness", *overrides, situation=situation, method=method, **labels)


def test_ssp_beats_bsp_under_jitter():
    rows = [staleness_row("jitter", f"SSP {s}", *SOON) for s in (0, 3)]
    assert rows[0]["target/time_s"] > 1.5 * rows[1]["target/time_s"]
    assert rows[1]["stat/epochs_to_target"] < 1.05 * rows[0]["stat/epochs_to_target"]


def test_only_who_waits_for_nobody_escapes_a_permanent_straggler():
    bsp_s, backup_s, gossip_s = (
        staleness_row("straggler", method, *SOON)["target/time_s"] for method in ("SSP 0", "backup 1", "AD-PSGD")
    )
    assert bsp_s > 2 * max(backup_s, gossip_s)


def test_a_head_start_on_a_permanent_straggler_is_had_once():
    def gained_s(epochs):
        length = f"budget.epochs={epochs}", "budget.observations=1"
        bsp, ssp = (staleness_row("straggler", f"SSP {s}", *length) for s in (0, 3))
        return epochs * (bsp["perf/time_per_epoch_s"] - ssp["perf/time_per_epoch_s"])

    assert gained_s(6) < 1.2 * gained_s(2)


def test_more_workers_on_one_batch_gain_and_then_lose():
    short = ("budget.epochs=0.5", "budget.observations=1")
    few, peak, many = (
        run("communication_bound", *short, latency_s=2e-4, workers=workers)["perf/samples_per_s"]
        for workers in (2, 8, 32)
    )
    assert few < peak > many


def test_servers_beat_a_ring_at_high_latency_alone():
    def samples_per_s(latency_s, method):
        return run("sharded_servers", latency_s=latency_s, method=method)["perf/samples_per_s"]

    assert samples_per_s(1e-2, "8 servers") > 4 * samples_per_s(1e-2, "ring")
    assert samples_per_s(1e-5, "1 server") < samples_per_s(1e-5, "8 servers") < samples_per_s(1e-5, "ring")


def gossip(method, latency_s, bandwidth):
    return run("gossip_crossover", method=method, latency_s=latency_s, bandwidth_bytes_per_s=bandwidth)


def test_gossip_has_the_throughput_at_high_latency_and_not_the_statistics():
    ours, theirs = (gossip(name, 1e-3, 1.25e9)["perf/samples_per_s"] for name in ("D-PSGD", "all-reduce"))
    assert ours > 3 * theirs
    epochs = [
        run("gossip_crossover", "target.loss=2", "budget.epochs=5", method=name, seed=0)["stat/epochs_to_target"]
        for name in ("D-PSGD", "all-reduce")
    ]
    assert epochs[0] > epochs[1]


def test_gossip_hides_messages_as_long_as_its_computing_lasts():
    def gain(method, bandwidth):
        ours, theirs = (gossip(name, 1e-6, bandwidth)["perf/samples_per_s"] for name in (method, "all-reduce"))
        return ours / theirs

    assert gain("D-PSGD", 2.5e7) > 1.1 > 1 > gain("D-PSGD, no overlap", 2.5e7)
    assert gain("D-PSGD", 1.25e6) < 1


def test_the_best_period_grows_as_bandwidth_falls():
    def epoch_s(bandwidth, period):
        return run("local_period", bandwidth_bytes_per_s=bandwidth, period=period)["perf/time_per_epoch_s"]

    loose, labels = ("target.loss=1", "budget.epochs=4"), {"learning_rate": 0.8, "seed": 0}
    epochs = {
        period: run("local_period", *loose, period=period, **labels)["stat/epochs_to_target"] for period in (1, 8)
    }
    for bandwidth, best in ((1.25e9, 1), (1.25e6, 8)):
        assert min(epochs, key=lambda period: epochs[period] * epoch_s(bandwidth, period)) == best


def test_local_steps_keep_more_statistical_efficiency_than_large_batches():
    loose = ("target.loss=1",)
    labels = {"period": 8, "learning_rate": 0.8, "seed": 0}
    local, large = (
        run("large_batches", *loose, method=method, **labels)["stat/epochs_to_target"]
        for method in ("local SGD", "all-reduce")
    )
    small = run("large_batches", *loose, method="local SGD", **labels | {"period": 1})["stat/epochs_to_target"]
    assert small < local < large / 1.5


def test_fedbuff_takes_more_rounds_and_less_time():
    loose = ("target.loss=1.5", "budget.epochs=8")
    rounds, buffered = (
        run("buffered_federated", *loose, devices="classes", method=method, seed=0)
        for method in ("FedAvg", "FedBuff, K = 10")
    )
    assert buffered["target/time_s"] < rounds["target/time_s"] / 1.5
    assert (
        buffered["stat/epochs_to_target"] > rounds["stat/epochs_to_target"]
    )  # a round is ten clients' changes in both


def test_copies_send_less_than_shards_and_shards_less_than_split_layers():
    step = ("problem.samples=16", "budget.epochs=1", "problem.width=64", "problem.hidden=176", "problem.context=32")
    copies, shards, split = (
        run("splitting_and_bandwidth", *step, method=method, bandwidth_bytes_per_s=1.25e7)["perf/samples_per_s"]
        for method in ("DDP", "FSDP", "tensor")
    )
    assert copies > 1.3 * shards > 1.3 * split


def test_micro_batches_win_until_they_are_too_small():
    one_batch = ("budget.epochs=0.7",)
    whole, some, tiny = (
        run("pipeline_depth", *one_batch, workers=2, micro_batches=m)["perf/samples_per_s"] for m in (1, 4, 64)
    )
    assert some > 1.3 * max(whole, tiny)


def test_orders_with_less_bubble_win():
    one_batch = ("budget.epochs=0.7",)
    pace = [
        run("pipeline_depth", *one_batch, order=order)["perf/samples_per_s"]
        for order in ("model parallel", "GPipe", "interleaved", "ZB-H1")
    ]
    assert pace == sorted(pace) and pace[1] > 2.5 * pace[0]


def test_what_is_sharded_is_divided_by_the_workers_and_checkpointing_forgets_activations():
    whole, optimizer, sharded, forgetful = (
        run("sharding_memory", "problem.layers=2", "problem.samples=4", method=method, workers=2)
        for method in ("replicated", "ZeRO-1", "FSDP", "FSDP, checkpointing")
    )
    kept = [row["mem/parameter_bytes_max"] for row in (whole, optimizer, sharded, forgetful)]
    assert kept == pytest.approx([kept[0], kept[0], kept[0] / 2, kept[0] / 2], rel=1e-5)  # a row has six digits
    assert optimizer["mem/optimizer_bytes_max"] == pytest.approx(whole["mem/optimizer_bytes_max"] / 2, rel=1e-3)
    assert whole["mem/activation_bytes_max"] == sharded["mem/activation_bytes_max"]
    assert forgetful["mem/activation_bytes_max"] < sharded["mem/activation_bytes_max"] / 4


def test_computing_hides_communication_until_that_takes_longer():
    def row(method, bandwidth):
        return run("overlap_limit", "problem.samples=16", method=method, bandwidth=bandwidth)

    fast, slow = row("FSDP", 4e9), row("FSDP", 1.25e8)
    assert fast["perf/compute_frac"] > 0.9 > 0.5 > slow["perf/compute_frac"]
    assert fast["perf/overlap_frac"] > slow["perf/overlap_frac"]
    plain = row("FSDP without overlap", 4e9)
    assert plain["perf/overlap_frac"] == 0 and plain["perf/compute_frac"] < fast["perf/compute_frac"]


def test_a_shared_model_collapses_across_sockets_and_replicas_do_not():
    def speed(sharing, workers):
        short = ("problem.synthetic_samples=4000", "budget.epochs=4", "budget.observations=4")
        return run("sockets", *short, sharing=sharing, workers=workers)["perf/samples_per_s"]

    alone = speed("shared", 1)
    assert speed("shared", 4) < 0.5 * alone
    assert speed("replica_per_node", 4) > alone
    assert speed("shared", 16) < speed("replica_per_node", 16) < speed("replica_per_worker", 16)


def test_the_flattest_mesh_hides_what_it_sends():
    def row(tensor):
        small = ("problem.layers=2", "problem.vocabulary=1024", "hardware.num_workers=16", "problem.samples=16")
        return run("best_mesh", *small, tensor=tensor, pipeline=1, checkpointing=True)

    flat, split = row(1), row(8)
    assert flat["predicted/mfu"] > split["predicted/mfu"]
    assert flat["predicted/exposed_comm_frac"] < split["predicted/exposed_comm_frac"]
