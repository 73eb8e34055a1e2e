"""What ranks send each other: the formula against real collectives, its counts, and what it projects by hand."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, run_script, with_adapters

from sarlang_sft.backbones import BACKBONES
from sarlang_sft.communication import SCHEDULES, Cluster, Exchange, Sizes, count_sizes, exchanges, project
from sarlang_sft.tuning import TuningArguments

SIZES = Sizes(parameters=1_000_000_000, trainable=10_000_000, passed=800_000_000, layers=700_000_000, recomputed=0)
ETHERNET = Cluster("a node's 12.5 GB/s", gpus_per_node=8, inside=450e9, between=12.5e9)


@pytest.mark.slow
def test_two_ranks_send_what_the_formula_says_and_the_network_carries(tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    words = ["--shardings", "zero3_large", "--tunings", "lora", "--rounds", 1, "--steps", 1, "--images", 12]
    run_script(ROOT / "benchmarks/scaling.py", *words, "--out", out)
    result = json.loads(out.read_text())
    [run] = result["runs"]
    assert run["ranks"] == 2 and run["sizes"]["trainable"] == 53_760
    assert run["sent_bytes"] == pytest.approx(run["formula_bytes"], rel=0.02)
    elements = {(kind["kind"], kind["dtype"]): kind["elements"] for kind in run["collectives"]}
    assert elements["reduce_scatter", "float32"] == 2 * 53_760, "the adapters' gradients, in each of two passes"
    assert elements["all_gather", "float32"] > 2 * run["sizes"]["parameters"], "the frozen weights, in each pass"
    if result["own_network_namespace"]:
        assert run["wire_bytes"] == pytest.approx(run["gloo_bytes"], rel=0.1)


def test_recorded_counts_agree_with_the_formula_and_the_network() -> None:
    runs = json.loads((ROOT / "benchmarks/results/cpu_scaling.json").read_text(encoding="utf-8"))["runs"]
    checked = [run for run in runs if run["formula_bytes"]]
    assert {(run["sharding"].removesuffix("_large"), run["tuning"]) for run in checked} == {
        (sharding, tuning) for sharding in SCHEDULES for tuning in ("lora", "full")
    }
    for run in checked:
        ahead = 0.06 if run["sharding"] == "fsdp2" and run["tuning"] == "lora" else 0  # a layer of the frozen tower
        assert run["sent_bytes"] == pytest.approx(run["formula_bytes"], rel=0.01 + ahead), run["sharding"]
        assert run["wire_bytes"] == pytest.approx(run["gloo_bytes"], rel=0.1), run["sharding"]


@pytest.mark.parametrize("family", BACKBONES)
def test_every_family_is_counted(family: str, tinies: dict[str, Path]) -> None:
    backbone = BACKBONES[family]
    model = backbone.model_class.from_pretrained(tinies[family])
    everything = sum(parameter.numel() for parameter in model.parameters())
    full = count_sizes(model, backbone, checkpointed=True)
    assert full.parameters == full.trainable == full.passed == everything
    assert 0 < full.recomputed < full.layers < everything
    tuned = with_adapters(model, backbone, TuningArguments())
    lora = count_sizes(tuned, backbone, checkpointed=False)
    assert lora.parameters == everything + lora.trainable and lora.recomputed == 0
    assert lora.trainable == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert lora.layers < lora.passed < lora.parameters, "gradients do not pass the frozen tower"


def test_a_step_of_every_sharding_by_hand() -> None:
    def sent(sharding: str, passes: int) -> float:
        return sum(one.sent(4) for one in exchanges(sharding, SIZES, passes, weight_width=2, gradient_width=4))

    ring = 3 / 4 * 10e6  # of the trained numbers
    assert sent("ddp", 1) == sent("ddp", 5) == pytest.approx(2 * ring * 4)
    assert sent("zero1", 5) == pytest.approx(2 * ring * 4 + ring * 2)
    assert sent("zero2", 5) == pytest.approx(5 * 2 * ring * 4 + ring * 2), "gradients are reduced in every pass"
    assert sent("zero3", 5) == pytest.approx(5 * (3 / 4 * 1.8e9 * 2 + ring * 4))
    assert sent("fsdp2", 5) == pytest.approx(5 * 3 / 4 * 1.7e9 * 2 + ring * 4), "gradients once"


def test_a_projection_by_hand() -> None:
    step = [Exchange("all_reduce", 1_000_000_000, 2)]
    nodes = project(step, flop=1e14, speed=2e14, cluster=ETHERNET, gpus=64)
    assert nodes.compute == pytest.approx(0.5)
    assert nodes.communication == pytest.approx(2 * 63 / 64 * 2 / 12.5)  # 0.315 s
    assert nodes.one_after_the_other == pytest.approx(0.5 / 0.815) and nodes.overlapped == 1
    assert project(step, 1e14, 2e14, ETHERNET, 8).communication == pytest.approx(2 * 7 / 8 * 2 / 450)
    assert project(step, 1e14, 2e14, ETHERNET, 1).one_after_the_other == 1


@pytest.mark.parametrize("sharding", SCHEDULES)
def test_more_gpus_and_slower_networks_never_help(sharding: str) -> None:
    step = exchanges(sharding, SIZES, 1, 2, 2)

    def parts(gpus: int, between: float) -> tuple[float, float]:
        found = project(step, 1e10, 2e14, Cluster("", 8, 450e9, between), gpus)
        return found.one_after_the_other, found.overlapped

    by_gpus = [parts(gpus, 12.5e9) for gpus in (1, 2, 8, 9, 64, 512)]
    by_network = [parts(64, between) for between in (1e12, 400e9, 12.5e9, 1e9)]
    for found in (by_gpus, by_network):
        for kind in zip(*found, strict=True):
            assert list(kind) == sorted(kind, reverse=True) and kind[-1] < kind[0]
