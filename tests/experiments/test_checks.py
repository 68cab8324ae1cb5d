"""The parts of the checks that can be told apart from a trained model."""

import base64
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from experiments import loads, perturbation, scores, sources, windows
from experiments.evaluated import SCORES_FILE, evaluated
from experiments.held_out import measure, spread
from experiments.lab import Lab
from experiments.variants import MOEPP
from moepp.config import MoEConfig
from moepp.errors import DataError
from moepp.evaluate import Evaluation
from moepp.layers import Routing
from moepp.model import MoEPPConfig, MoEPPForCausalLM

from .toy import Guesses, fill

CONFIG = MoEConfig(hidden_size=8, intermediate_size=8, num_ffn_experts=8, combine="renormalize")
TOKENS = 400


def routing(config: MoEConfig = CONFIG) -> Routing:
    """A router's, of random logits, which are not those that the edits draw."""
    logits = torch.randn(TOKENS, config.layout().num_experts, generator=torch.Generator().manual_seed(1))
    probs = logits.softmax(-1)
    weight, expert = probs.topk(2)
    weight = weight / weight.sum(-1, keepdim=True)
    return Routing(logits, probs, expert, weight, torch.ones_like(expert).bool())


@pytest.fixture(scope="module")
def model() -> MoEPPForCausalLM:
    torch.manual_seed(0)
    config = MoEPPConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=64, num_ffn_experts=4, combine="renormalize", initializer_range=0.3,
    )  # fmt: skip
    return MoEPPForCausalLM(config).eval()


def tokens_of(count: int) -> Tensor:
    return torch.randint(50, (count,))


@pytest.mark.parametrize(
    "edit",
    [perturbation.noise(0.0, CONFIG), perturbation.swap(0.0, CONFIG, other=True)],
    ids=["no noise", "no swaps"],
)
def test_nothing_perturbed_is_the_routing_as_it_was(edit: Callable[[Routing], Routing]) -> None:
    before = routing()
    after = edit(before)
    assert torch.equal(after.expert, before.expert)
    torch.testing.assert_close(after.weight, before.weight)


def test_noise_changes_more_choices_the_larger_it_is_up_to_choosing_at_random() -> None:
    before = routing()
    same = [
        float((perturbation.noise(scale, CONFIG)(before).expert == before.expert).double().mean())
        for scale in (0.1, 0.5, 2.0, None)
    ]
    assert same == sorted(same, reverse=True)
    assert same[0] > 0.8
    assert same[-1] == pytest.approx(1 / 12, abs=0.04)


def test_noise_is_drawn_anew_in_each_layer_and_alike_in_each_run() -> None:
    before = routing()
    first, second = (perturbation.noise(1.0, CONFIG) for _ in range(2))
    once, again = first(before).expert, first(before).expert
    assert torch.equal(second(before).expert, once)
    assert not torch.equal(once, again)


@pytest.mark.parametrize("other", [True, False], ids=["other kind", "same kind"])
@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_a_swap_puts_an_expert_of_the_wanted_kind_in_the_place_of_so_many(rate: float, other: bool) -> None:
    before, ffn = routing(), CONFIG.layout().ffn
    after = perturbation.swap(rate, CONFIG, other=other)(before)
    swapped = after.expert != before.expert
    assert float(swapped.double().mean()) == pytest.approx(rate, abs=0.07)
    changed_kind = (after.expert < ffn) != (before.expert < ffn)
    assert torch.equal(changed_kind, swapped if other else torch.zeros_like(swapped))
    assert bool((after.expert[:, 0] != after.expert[:, 1]).all())


def test_vanilla_choices_can_be_swapped_among_themselves() -> None:
    config = CONFIG.vanilla()
    before = routing(config)
    after = perturbation.swap(1.0, config, other=False)(before)
    assert bool((after.expert != before.expert).all())
    assert int(after.expert.max()) < 8


def test_weights_are_the_clean_probabilities_of_what_is_chosen_instead() -> None:
    before = routing()
    expert = torch.tensor([[0, 11]]).expand(TOKENS, 2)
    weight = perturbation.chosen_instead(before, expert, CONFIG).weight
    torch.testing.assert_close(weight[:, 0] / weight[:, 1], before.probs[:, 0] / before.probs[:, 11])
    torch.testing.assert_close(weight.sum(-1), torch.ones(TOKENS))
    plain = dataclasses.replace(CONFIG, combine="probabilities")
    torch.testing.assert_close(
        perturbation.chosen_instead(before, expert, plain).weight, before.probs.gather(-1, expert)
    )


def test_measuring_weighs_all_blocks_alike_and_counts_every_token(model: MoEPPForCausalLM) -> None:
    blocks = tokens_of(17 * 8).view(17, 8)  # more than a batch
    losses, stats = measure(model, {"text": blocks})
    with torch.inference_mode():
        expected = [float(model(block.unsqueeze(0), labels=block.unsqueeze(0)).lm_loss) for block in blocks]
    assert losses["text"] == pytest.approx(sum(expected) / 17, rel=1e-5)
    assert [int(layer.tokens) for layer in stats] == [17 * 8] * 3
    losses, _ = measure(model, {"text": blocks}, routing_edit=perturbation.noise(0.0, model.config.moe))
    assert losses["text"] == pytest.approx(sum(expected) / 17, rel=1e-5)


def test_blocks_are_spread_evenly_and_never_repeated() -> None:
    blocks = [torch.tensor([index]) for index in range(10)]
    assert spread(blocks, 4).flatten().tolist() == [0, 2, 5, 7]
    assert spread(blocks, 20).flatten().tolist() == list(range(10))


def test_shifted_positions_leave_the_routing_and_other_context_does_not(model: MoEPPForCausalLM) -> None:
    found = windows.study(model, tokens_of(64), tokens_of(64), [16, 32, 64])
    assert found["16"]["same_experts"] == [1.0] * 3
    assert found[windows.SHIFTED]["same_experts"] == [1.0] * 3
    assert found[windows.SHIFTED]["loss"] == pytest.approx(found["16"]["loss"], rel=1e-4)
    assert min(found["64"]["same_experts"]) < 1
    assert found[windows.FOREIGN]["same_experts"] != found["64"]["same_experts"]
    assert found["64"]["same_count"] >= sum(found["64"]["same_experts"]) / 3


def test_within_the_shortest_window_positions_cannot_differ(model: MoEPPForCausalLM) -> None:
    positions = windows.study(model, tokens_of(64), tokens_of(64), [16, 32, 64])["positions"]
    assert windows.edges(64, 16) == [0, 2, 4, 8, 16, 32, 64]
    for place in positions[:4]:
        assert place["ffn"] == place["short_ffn"]
        assert place["loss"] == pytest.approx(place["short_loss"], rel=1e-4)
    assert positions[-1]["loss"] != pytest.approx(positions[-1]["short_loss"], rel=1e-4)


def test_what_a_window_shows_is_the_model_s_own_loss_and_choice(model: MoEPPForCausalLM) -> None:
    ids = tokens_of(12)
    seen = windows.Seen.of(model, ids.unsqueeze(0))
    with torch.inference_mode():
        out = model(ids.unsqueeze(0), labels=ids.unsqueeze(0), output_routing=True)
    assert float(seen.loss[0, 1:].mean()) == pytest.approx(float(out.lm_loss), rel=1e-5)
    assert float(seen.loss[0, 0]) == 0
    per_token = [stats.ffn_per_token(model.config.moe.layout()) for stats in out.routing_stats]
    assert seen.ffn.double().mean((0, 1)).tolist() == pytest.approx(per_token)


def test_texts_unlike_any_are_the_same_each_time_and_long_enough() -> None:
    made = sources.unseen(["Hello"], tokens=500)
    assert made == sources.unseen(["Hello"], tokens=500)
    assert made["letters moved"] == ["Uryyb"]
    del made["letters moved"]
    assert len(made) == 3
    assert all(len("".join(texts)) > 500 * 4 for texts in made.values())
    assert base64.b64decode(made["base 64"][0])
    assert not made["other scripts"][0].isascii()


def test_distance_is_total_variation_and_its_control_lies_within_a_source() -> None:
    even, one = torch.full((1, 4), 0.25), torch.tensor([[1.0, 0, 0, 0]])
    found = loads.distances({"even": [even, even], "mixed": [even, one]})
    assert found == {"even": {"even": 0, "mixed": 0.375}, "mixed": {"even": 0.375, "mixed": 0.75}}
    assert loads.apart(found, ["even", "mixed"]) == 0
    assert sources.load([torch.tensor([1, 3]), torch.tensor([0, 0])]).tolist() == [[0.25, 0.75], [0, 0]]


@dataclass(frozen=True)
class Counted(Guesses):
    """Notes each evaluation."""

    name: str
    calls: list[str]

    def key(self) -> str:
        return self.name

    def evaluate(self, model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerBase) -> Evaluation:
        self.calls.append(self.name)
        return super().evaluate(model, tokenizer)


def test_a_model_is_scored_once_and_again_when_the_questions_change(lab: Lab) -> None:
    run = lab.run(MOEPP, 0)
    fill(lab, [run])
    file = lab.pool.path(run) / SCORES_FILE
    file.unlink(missing_ok=True)
    calls: list[str] = []
    old, new = (dataclasses.replace(lab, questions=Counted(name, calls)) for name in ("old", "new"))
    first = evaluated(old, MOEPP, 0)
    assert evaluated(old, MOEPP, 0) == first
    assert calls == ["old"]
    evaluated(new, MOEPP, 0)
    assert calls == ["old", "new"]
    assert json.loads(file.read_text(encoding="utf-8"))["items"] == "new"
    assert [path.name for path in file.parent.glob("*.incomplete")] == []
    file.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"is damaged.*remove it"):
        evaluated(new, MOEPP, 0)
    file.unlink()


def test_a_task_counts_where_vanilla_beats_guessing_and_the_baselines_in_most_seeds() -> None:
    def seed(**accuracies: float) -> dict[str, dict[str, float]]:
        return {task: {"score": value, "standard_error": 0.02} for task, value in accuracies.items()}

    vanilla = {0: seed(line=0.4, name=0.4), 1: seed(line=0.4, name=0.4), 2: seed(line=0.2, name=0.6)}
    tasks = {"line": {"chance": 0.25, "baselines": {}}, "name": {"chance": 0.25, "baselines": {"unigram": 0.38}}}
    assert scores.tasks_above_chance({"tasks": tasks, "models": {"vanilla": vanilla}}) == ["line"]
