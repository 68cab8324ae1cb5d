"""Tasks through the harness: scores and counts against a loop over single requests, and what is skipped."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerFast

from moepp.errors import BackendUnavailable, ConfigError, DataError
from moepp.evaluate import Evaluation, evaluate_tasks
from moepp.evaluate.offline import hub_only_if_reachable, reachable
from moepp.model import MoEPPForCausalLM

from .conftest import ANIMALS

pytest.importorskip("lm_eval")  # where `make gpu` only collects

from moepp.evaluate.language_model import RoutedLM, ShuffledLM, UnigramLM


def run(model: Any, tokenizer: Any, tasks: Path, *names: str, **options: Any) -> Evaluation:
    return evaluate_tasks(model, tokenizer, names, include_path=[tasks], batch_size=4, **options)


@torch.no_grad()
def one_by_one(model: MoEPPForCausalLM, tokenizer: PreTrainedTokenizerFast) -> tuple[list[list[float]], float, int]:
    """Each choice's log-likelihood, FFN experts per token and tokens, every request in a batch of its own."""
    likelihoods, ffn, tokens = [], 0, 0
    layout, layers = model.config.moe.layout(), model.config.num_hidden_layers
    for animal, choices in ANIMALS.items():
        context = tokenizer.encode(animal)
        likelihoods.append([])
        for choice in choices:
            answer = tokenizer.encode(f"{animal} {choice}")[len(context) :]
            inputs = torch.tensor([[*context, *answer][:-1]])
            output = model(inputs, output_routing=True)
            scores = output.logits[0, -len(answer) :].log_softmax(-1)
            likelihoods[-1].append(float(scores[range(len(answer)), answer].sum()))
            ffn += sum(int((routing.kept & (routing.expert < layout.ffn)).sum()) for routing in output.routing)
            tokens += inputs.numel()
    return likelihoods, ffn / tokens / layers, tokens


def test_scores_and_ffn_experts_per_token_are_those_of_single_requests(model, tokenizer, tasks) -> None:
    (score,) = run(model, tokenizer, tasks, "local_choice").scores
    likelihoods, ffn, tokens = one_by_one(model, tokenizer)
    # Lengths in characters, without the blank before: how the harness normalises.
    lengths = [[len(f" {choice}") for choice in choices] for choices in ANIMALS.values()]
    right = [max(row) == row[0] for row in likelihoods]
    normed = [
        max(range(4), key=lambda i, row=row, size=size: row[i] / size[i]) == 0
        for row, size in zip(likelihoods, lengths, strict=True)
    ]
    assert score.metrics["acc,none"] == sum(right) / 5
    assert (score.metric, score.score) == ("acc_norm", sum(normed) / 5)
    assert score.standard_error == pytest.approx(math.sqrt(score.score * (1 - score.score) / 4))
    assert score.tokens == tokens
    assert score.ffn_per_token == pytest.approx(ffn)
    assert 0 < ffn < 2
    assert (score.chance, score.shots, score.items, score.requests_cut) == (0.25, 0, 5, 0)


@torch.no_grad()
def test_a_generation_counts_its_prompts_without_their_padding(model, tokenizer, tasks) -> None:
    (score,) = run(model, tokenizer, tasks, "local_answer").scores
    prompts = [torch.tensor([tokenizer.encode(animal)]) for animal in ANIMALS]
    assert len({prompt.shape for prompt in prompts}) > 1, "no padding, nothing tested"
    layout = model.config.moe.layout()
    routings = [routing for prompt in prompts for routing in model(prompt, output_routing=True).routing]
    ffn = sum(int((routing.kept & (routing.expert < layout.ffn)).sum()) for routing in routings)
    assert score.tokens == sum(prompt.numel() for prompt in prompts)
    assert score.ffn_per_token == pytest.approx(ffn / score.tokens / model.config.num_hidden_layers)
    assert (score.metric, score.chance) == ("exact_match", 0.0)


def test_a_group_with_a_metric_of_its_own_is_one_score(model, tokenizer, tasks) -> None:
    (score,) = run(model, tokenizer, tasks, "local_mean").scores
    assert (score.task, score.label, score.metric, score.items) == ("local_mean", "both", "acc", 10)
    assert score.score == run(model, tokenizer, tasks, "local_choice").scores[0].metrics["acc,none"]
    assert score.chance == pytest.approx(0.125), "half of the items give no choice"


def test_what_cannot_be_had_is_named_and_skipped(model, tokenizer, tasks) -> None:
    evaluation = run(model, tokenizer, tasks, "local_all")
    (score,), (skipped,) = evaluation.scores, evaluation.skipped
    assert (score.label, skipped.label) == ("local_choice", "local_nowhere")
    assert "no-such-owner/no-such-data" in skipped.reason
    assert evaluation.average() == score.score, "what is skipped counts nowhere"


@pytest.mark.parametrize("error", [ValueError("Couldn't find cache for x"), RuntimeError("scripts are not supported")])
def test_data_that_its_library_cannot_find_or_read_is_skipped(
    model, tokenizer, tasks, monkeypatch, error: Exception
) -> None:
    def load_dataset_builder(**_: Any) -> None:
        raise error

    monkeypatch.setattr("datasets.load.load_dataset_builder", load_dataset_builder)
    (skipped,) = run(model, tokenizer, tasks, "local_choice").skipped
    assert skipped.reason == str(error)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"output_type": "multiple_choise"}, "ValueError: Got invalid output_type 'multiple_choise'"),
        ({"test_split": "tset"}, "KeyError: 'tset'"),
        ({"doc_to_txt": "question"}, "TypeError: .*'doc_to_txt'"),
        ({"doc_to_text": "{{question.a.b}}"}, "UndefinedError: "),
        ({"metric_list": [{"name": "acc"}]}, "ValueError: 'metric' key not provided"),
    ],
)
def test_a_task_file_that_is_wrong_is_an_error_before_others_are_evaluated(
    model, tokenizer, tasks, tmp_path, monkeypatch, change: dict[str, Any], reason: str
) -> None:
    good = yaml.safe_load((tasks / "local_choice.yaml").read_text(encoding="utf-8"))
    for name, config in {"good": good, "wrong": good | change}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config | {"task": name}), encoding="utf-8")
    monkeypatch.setattr(RoutedLM, "__init__", None)
    with pytest.raises(DataError, match=rf"wrong\.yaml is no task: {reason}.*; mend it$"):
        run(model, tokenizer, tmp_path, "good", "wrong")


def test_without_a_connection_what_is_cached_is_used(tmp_path) -> None:
    """A data set's cache as a download leaves it, made from a file."""
    import datasets

    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "test.jsonl").write_text('{"question": "a"}\n{"question": "b"}\n', encoding="utf-8")
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    datasets.load_dataset(str(tmp_path / "made"))
    (made,) = (folder for folder in cache.iterdir() if folder.is_dir())
    made.rename(cache / "owner___name")
    (file,) = cache.glob("owner___name/**/made-test.arrow")
    file.rename(file.with_name("name-test.arrow"))
    with hub_only_if_reachable():
        assert datasets.load_dataset("owner/name", split="test")["question"][:] == ["a", "b"]


def test_an_answer_that_does_not_fit_the_model_skips_its_task(model, tokenizer, tasks, monkeypatch) -> None:
    monkeypatch.setattr(RoutedLM, "max_length", 3)
    (skipped,) = run(model, tokenizer, tasks, "local_choice").skipped
    assert "exceeds the model's context of 3" in skipped.reason


def test_contexts_that_are_cut_are_counted(model, tokenizer, tasks, monkeypatch) -> None:
    whole = [len(tokenizer.encode(f"{animal} {choice}")) for animal, choices in ANIMALS.items() for choice in choices]
    context = [len(tokenizer.encode(animal)) for animal in ANIMALS for _ in range(4)]
    limit = max(total - before for total, before in zip(whole, context, strict=True)) + 1
    monkeypatch.setattr(RoutedLM, "max_length", limit)
    (score,) = run(model, tokenizer, tasks, "local_choice").scores
    assert score.requests_cut == sum(total > limit + 1 for total in whole)
    assert 0 < score.requests_cut < len(whole)


def test_limit_is_items_per_task(model, tokenizer, tasks) -> None:
    assert run(model, tokenizer, tasks, "local_choice", limit=2).scores[0].items == 2


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("local_choise", "did you mean 'local_choice'"), ("papper", "did you mean 'paper'"), ("hellaswgg", "'hellaswag'")],
)
def test_an_unknown_task_is_answered_with_the_nearest(model, tokenizer, tasks, name: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=rf"no task '{name}'; .*{remedy}"):
        run(model, tokenizer, tasks, name)


def test_an_include_path_that_does_not_exist_is_refused(model, tokenizer, tmp_path) -> None:
    with pytest.raises(DataError, match=r"--include-path=.*is no folder"):
        run(model, tokenizer, tmp_path / "nowhere", "local_choice")


def test_a_missing_harness_names_the_extra(model, tokenizer, tasks, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'moepp\[eval\]'"):
        run(model, tokenizer, tasks, "local_choice")


# Baselines


class Request:
    """As much of the harness's request as the baselines read."""

    def __init__(self, doc: int, context: str, answer: str) -> None:
        from lm_eval.api.instance import Instance

        self.one = Instance("loglikelihood", {}, (context, answer), 0, ("task", doc, 1))


def test_the_unigram_baseline_counts_tokens_whatever_the_context(model, tokenizer) -> None:
    text = "owl owl owl fish"
    lm = UnigramLM(model, tokenizer, [text])
    ids = tokenizer.encode(text)
    answer = tokenizer.encode("x owl")[1:]
    expected = sum(math.log((ids.count(token) + 1) / (len(ids) + len(tokenizer))) for token in answer)
    for context in ("x", "cows x"):
        ((likelihood, greedy),) = lm.loglikelihood([Request(0, context, " owl").one])
        assert likelihood == pytest.approx(expected)
        assert greedy == (answer == [max(set(ids), key=ids.count)])


def test_the_shuffled_baseline_shows_every_item_the_context_of_another(model, tokenizer, monkeypatch) -> None:
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(RoutedLM, "loglikelihood", lambda self, requests, *_: seen.extend(r.args for r in requests))
    lm = ShuffledLM(model, tokenizer, batch_size=4)
    lm.loglikelihood([Request(doc, f"context {doc}", f"answer {doc} {n}").one for doc in range(5) for n in range(2)])
    assert [answer for _, answer in seen] == [f"answer {doc} {n}" for doc in range(5) for n in range(2)]
    shown = {answer[:8]: context for context, answer in seen}
    assert all(context[-1] != answer[-1] for answer, context in shown.items())
    assert len(set(shown.values())) == 5
    assert all(shown[answer[:8]] == context for context, answer in seen), "an item's answers share one context"


# Offline


def test_without_a_connection_the_libraries_use_their_caches_alone() -> None:
    import datasets.config
    import huggingface_hub.constants

    def switches() -> list[bool]:
        return [huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE]

    before = switches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        with hub_only_if_reachable():
            assert switches() == [True, True]
    assert switches() == before


@pytest.mark.parametrize(("name", "asked"), [("stdlib_line", 0), ("local_choice", 1)])
def test_the_hub_is_asked_for_only_where_a_task_may_need_it(
    model, tokenizer, tasks, library, monkeypatch, name: str, asked: int
) -> None:
    urls: list[str] = []
    monkeypatch.setattr("moepp.evaluate.offline.reachable", lambda url: urls.append(url))
    monkeypatch.setattr(RoutedLM, "max_length", 400)
    assert run(model, tokenizer, tasks, name, limit=1).scores
    assert len(urls) == asked


def test_a_place_that_talks_something_else_than_http_is_not_reachable() -> None:
    import socket
    import threading

    def greet(server: socket.socket) -> None:
        connection, _ = server.accept()
        connection.recv(4096)
        connection.sendall(b"220 mail.example ready\r\n")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=greet, args=(server,))
        thread.start()
        assert not reachable(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_a_place_that_answers_is_reachable() -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Refuses(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert reachable(f"http://127.0.0.1:{server.server_port}")
    assert not reachable("http://127.0.0.1:9")
