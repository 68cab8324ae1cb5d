"""Benchmarks of whole models: the same work for each, in a process of its own, said as it was."""

import dataclasses
import json
import math
import sys
from collections import Counter
from typing import Any

import pytest
import torch

import moepp.bench.model as parent
from moepp.bench import Job, Row, model_config, run_models
from moepp.bench.model import MODELS, Outcome, run_job
from moepp.bench.model_job import TABLE, WARMUP_STEPS, ExactShares, build, generate, mixtral_config, run, train
from moepp.bench.targets import CPU_TARGETS
from moepp.model import MoEPPForCausalLM

JOB = Job(
    task="training",
    variant="moepp:auto",
    size="tiny",
    dtype="float32",
    batch=2,
    sequence=16,
    new_tokens=3,
    steps=2,
    routing="untrained",
    threads=1,
)


def job(**changes: Any) -> Job:
    return dataclasses.replace(JOB, **changes)


@pytest.mark.parametrize("variant", MODELS)
@pytest.mark.parametrize("task", ["training", "generation"])
def test_each_variant_does_each_task(task: str, variant: str) -> None:
    outcome = run(job(task=task, variant=variant))
    assert len(outcome.seconds) == 2
    assert all(0 < seconds < 60 for seconds in outcome.seconds)
    assert 2**27 < outcome.peak_memory_bytes < 2**36
    assert (outcome.ffn_per_token == 2) == (not variant.startswith("moepp"))
    assert 0 < outcome.ffn_per_token <= 2


@pytest.mark.parametrize("task", ["training", "generation"])
def test_bfloat16_runs(task: str) -> None:
    assert len(run(job(task=task, dtype="bfloat16")).seconds) == 2


def test_a_vanilla_model_and_mixtral_have_equally_many_parameters() -> None:
    models = [build(job(variant=variant)) for variant in MODELS]
    ours, vanilla, mixtral, with_ours = (model.num_parameters() for model in models)
    assert vanilla == mixtral == with_ours < ours
    names = [model.config._experts_implementation for model in models]
    assert names == ["auto", "auto", "grouped_mm", "moepp_auto"]


def test_mixtral_has_the_sizes_and_the_balance_loss_of_the_vanilla_model() -> None:
    ours = model_config("0.6b", vanilla=True)
    theirs = mixtral_config(ours)
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(theirs, name) == getattr(ours, name)
    assert (theirs.num_local_experts, theirs.num_experts_per_tok) == (8, 2)
    assert theirs.output_router_logits


def test_nothing_is_dropped_in_training() -> None:
    model = build(job())
    assert isinstance(model, MoEPPForCausalLM)
    ids = torch.randint(1, 512, (4, 64))
    with torch.no_grad():
        stats = model.train()(ids, labels=ids).routing_stats
    assert all(torch.equal(layer.assigned, layer.kept) for layer in stats)


def test_training_moves_every_parameter_and_times_the_steps_after_its_warm_up() -> None:
    model = build(job(steps=3))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    seconds, ids = train(job(steps=3), model)
    assert len(seconds) == 3
    assert WARMUP_STEPS >= 1
    assert ids.shape == (2, 16)
    assert not [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]


def test_generation_makes_all_new_tokens() -> None:
    chosen = job(task="generation", new_tokens=5)
    _, text = generate(chosen, build(chosen))
    assert text.shape == (2, 16 + 5)


def test_synthetic_routing_gives_a_model_taus_shares() -> None:
    # 4 FFN experts at tau .75 against 4 others: 3/7 of 2 choices.
    for task in ("training", "generation"):
        outcome = run(job(task=task, routing="synthetic", batch=16, sequence=64))
        assert outcome.ffn_per_token == pytest.approx(6 / 7, abs=0.04)


def test_synthetic_routing_uses_its_whole_table_a_step_at_a_time() -> None:
    config = model_config("tiny")
    edit, seen = ExactShares(config, 0), []
    model = build(job())
    with torch.no_grad():
        routing = model(torch.randint(1, 512, (1, 64)), output_routing=True).routing[0]
    for _ in range(TABLE // 64):
        edited = edit(routing)
        assert torch.equal(edited.weight, edited.probs.gather(-1, edited.expert))
        seen += edited.expert.flatten().tolist()
    load = Counter(seen)
    for index in range(8):
        assert load[index] == pytest.approx(2 * TABLE * (0.75 if index < 4 else 1) / 7, abs=1)


def test_a_job_runs_in_a_process_of_its_own() -> None:
    outcome = run_job(job(task="generation", variant="transformers:moepp_auto"))
    assert isinstance(outcome, Outcome)
    assert len(outcome.seconds) == 2


def test_the_last_line_of_a_process_that_fails_is_the_reason() -> None:
    assert "--sizes=none does not exist" in str(run_job(job(size="none")))


def test_a_process_that_fails_without_a_word_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    assert run_job(JOB) == "its process ended with 1"


def test_a_killed_process_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        parent.subprocess, "run", lambda *args, **kwargs: parent.subprocess.CompletedProcess(args, -9, "", "")
    )
    assert run_job(JOB) == "its process was ended by SIGKILL, as when memory runs out"


def outcome(*seconds: float, memory: int = 1000, ffn: float = 2.0) -> Outcome:
    return Outcome(seconds=list(seconds), peak_memory_bytes=memory, parameters=1, ffn_per_token=ffn)


def test_rows_say_medians_over_the_rounds_and_ratios_between_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    times = {"moepp:auto": iter([(2.0, 2.0), (4.0, 2.0)]), "vanilla:auto": iter([(3.0, 3.0), (3.0, 9.0)])}

    def fake(one: Job) -> Outcome:
        calls.append(one.variant)
        return outcome(*next(times[one.variant]), memory=1000 + len(calls), ffn=1.5)

    monkeypatch.setattr(parent, "run_job", fake)
    said: list[str] = []
    ours, twin = run_models([job(), job(variant="vanilla:auto")], rounds=2, say=said.append)
    assert sorted(calls[:2]) == sorted(calls[2:]) == ["moepp:auto", "vanilla:auto"]
    assert len(said) == 4
    assert (ours.median_s, twin.median_s) == (2.0, 3.0)
    assert ours.speedup_over == {"vanilla:auto": 1.5}
    assert ours.tokens == 32
    assert ours.tokens_per_s == 16
    assert (ours.tau, twin.tau) == (0.75, None)
    assert max(ours.peak_memory_bytes or 0, twin.peak_memory_bytes or 0) == 1004
    assert (ours.pass_, ours.batch, ours.ffn_per_token, ours.routing) == ("training", 2, 1.5, "untrained")
    assert all(Row.from_json(json.loads(json.dumps(row.to_json()))) == row for row in (ours, twin))


def test_a_variant_that_fails_is_not_run_again_and_spoils_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fake(one: Job) -> Outcome | str:
        calls.append(one.variant)
        return "no memory" if one.variant == "vanilla:auto" else outcome(1.0, 1.0)

    monkeypatch.setattr(parent, "run_job", fake)
    ours, twin, theirs = run_models([job(variant=variant) for variant in MODELS[:3]], rounds=3)
    assert calls.count("vanilla:auto") == 1
    assert (twin.reason, twin.median_s, twin.speedup_over) == ("no memory", None, {})
    assert ours.reason is None
    assert ours.speedup_over == {"transformers:grouped_mm": 1.0}
    assert math.isclose(theirs.iqr_s or 0, 0, abs_tol=1e-9)
    assert theirs.routing is None


def test_targets_of_whole_models_find_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"moepp:auto": 1.0, "vanilla:auto": 1.1, "transformers:grouped_mm": 1.2}
    monkeypatch.setattr(parent, "run_job", lambda one: outcome(seconds[one.variant], seconds[one.variant]))
    rows = run_models([job(variant=variant, size="0.6b") for variant in MODELS[:3]], rounds=1)
    found = {target.text: target.values(rows) for target in CPU_TARGETS if target.benchmark == "model"}
    values = [[round(value, 3) for value, _ in measured] for measured in found.values()]
    assert values == [[1.1], [1.091], [], []]  # training: over the twin, over Mixtral; no row of generation
