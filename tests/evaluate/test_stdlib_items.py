"""Questions about the standard library: what a right answer must not give away, and what it must not be."""

import re

import pytest

from moepp.data import Function, load_held_out_functions, load_python_library
from moepp.evaluate import evaluate_tasks, items_hash
from moepp.evaluate import stdlib_items as module
from moepp.evaluate.stdlib_items import CONTEXT, MOST_ITEMS, Item, line_items, name_items, summary_items
from moepp.evaluate.stdlib_tasks import stdlib_items
from moepp.model import MoEPPConfig

from ..model.factory import tiny_model

KINDS = ("summary", "line", "name")


@pytest.fixture
def items(library) -> dict[str, list[Item]]:
    return {kind: stdlib_items(kind, 0.05) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_has_four_different_choices_of_like_length(items, kind: str) -> None:
    tolerance = module.LENGTHS * (2 if kind == "name" else 1)
    assert len(items[kind]) > 10
    for item in items[kind]:
        assert len(set(item["choices"])) == 4
        assert item["choices"][item["label"]] == item["target"]
        right = len(item["target"])
        assert all(abs(len(choice) - right) <= tolerance * right for choice in item["choices"])
        assert len(item["context"]) <= CONTEXT + 10


@pytest.mark.parametrize("kind", ["line", "name"])
def test_neither_place_nor_length_tells_the_right_choice(items, kind: str) -> None:
    found = items[kind]
    labels = [item["label"] for item in found]
    assert all(0.15 < labels.count(label) / len(found) < 0.35 for label in range(4))
    for pick in (max, min):
        chosen = sum(pick(item["choices"], key=len) == item["target"] for item in found)
        assert 0.1 < chosen / len(found) < 0.4, pick


def test_nothing_that_is_asked_for_stands_in_the_training_split(items, library) -> None:
    documents = load_python_library(str(library), 0.05).documents
    prose = " ".join(" ".join(documents["prose"]["train"]).split())
    code = {line.strip() for text in documents["code"]["train"] for line in text.split("\n")}
    assert prose
    assert code
    assert not [item for item in items["summary"] if item["target"] in prose]
    for item in items["line"]:
        line = (item["context"] + item["target"]).split("\n")[-1]
        assert line.strip() not in code


def test_the_names_to_choose_from_have_all_just_been_used(items) -> None:
    for item in items["name"]:
        used = set(re.findall(r"\w+", item["context"]))
        assert {choice.strip() for choice in item["choices"]} <= used
        assert len({choice[: -len(choice.strip())] for choice in item["choices"]}) == 1, "one has a blank, one has not"


def test_contexts_and_answers_are_pieces_of_held_out_code(items, library) -> None:
    held_out = load_python_library(str(library), 0.05).documents["code"]["validation"]
    for kind in ("line", "name"):
        assert all(any(item["context"] + item["target"] in text for text in held_out) for item in items[kind])


def test_a_functions_name_is_hidden_and_its_code_cut_from_the_left() -> None:
    functions = [
        Function("m", name := f"compute_{word}", f"def {name}(x):\n    return {name}(x)\n", f"Gives a box's {word}.")
        for word in ("height", "weight", "length", "breadth")
    ]
    long = functions[0]._replace(code="def compute_height():\n" + "    x = 1\n" * 100)
    items = summary_items([long, *functions[1:]], training=[])
    assert [item["target"] for item in items] == [function.docstring for function in functions]
    assert not any("compute" in item["context"] for item in items)
    assert "def function(x):\n    return function(x)\n\n# " in [item["context"] for item in items]
    assert items[0]["context"].endswith("x = 1\n\n# ")
    assert len(items[0]["context"]) == CONTEXT + 4


def test_a_summary_or_a_line_that_was_trained_on_is_not_asked_for() -> None:
    functions = [Function("m", f"f{n}", "def f(): pass", f"Summary number {n} of them.") for n in range(6)]
    found = summary_items(functions, training=["Something.\n\nSummary number\n2 of them.\n"])
    assert [item["target"] for item in found] == [f"Summary number {n} of them." for n in (0, 1, 3, 4, 5)]
    code = "\n" * CONTEXT + "\n".join(f"result_{n} = compute(first_{n}, second_{n})" for n in range(6))
    every = line_items([code], training=[])
    assert len(every) == 6
    fewer = line_items([code], training=["    result_3 = compute(first_3, second_3)\n"])
    assert len(fewer) == 5
    assert not [item for item in fewer if "3" in item["target"]]


def test_names_are_identifiers_not_words_of_strings_and_comments() -> None:
    body = "alpha = 1  # words like these\nbravo = 'or those'\ncharlie = alpha\ndelta2 = bravo\n"
    text = "pass\n" * 80 + body + "print(alpha, bravo, charlie, delta2, missing)\n"
    asked = {item["target"].strip() for item in name_items([text])}
    chosen = {choice.strip() for item in name_items([text]) for choice in item["choices"]}
    assert asked
    assert chosen <= {"alpha", "bravo", "charlie", "delta2"}


def test_the_same_library_gives_the_same_items(items, library) -> None:
    first = [items_hash(kind, 0.05) for kind in KINDS]
    stdlib_items.cache_clear()
    assert [items_hash(kind, 0.05) for kind in KINDS] == first
    assert len(set(first)) == 3


def test_held_out_functions_are_documented_ones_of_held_out_modules_without_their_docstrings(library) -> None:
    functions = load_held_out_functions(str(library), 0.05)
    assert {function.module.split(".")[0] for function in functions} <= {
        "json",
        "graphlib",
        "netrc",
        "shelve",
        "filecmp",
    }
    by_name = {function.name: function for function in functions}
    raw_decode = by_name["raw_decode"]
    assert raw_decode.module == "json.decoder"
    assert raw_decode.code.startswith("def raw_decode(self, s, idx=0):\n    try:")
    assert raw_decode.docstring.startswith("Decode a JSON document from ``s``")
    assert raw_decode.docstring not in raw_decode.code
    assert load_held_out_functions(str(library), 0.0) == []


def test_this_pythons_whole_library_gives_hundreds_of_items() -> None:
    counts = {kind: len(stdlib_items(kind, 0.05)) for kind in KINDS}
    assert counts["line"] == counts["name"] == MOST_ITEMS
    assert 150 <= counts["summary"] <= MOST_ITEMS


def test_the_harness_scores_them_beside_two_baselines(model, tokenizer, library) -> None:
    roomy = tiny_model(MoEPPConfig.from_dict(model.config.to_dict() | {"max_position_embeddings": 512}))
    evaluation = evaluate_tasks(roomy, tokenizer, ["stdlib"], limit=4)
    assert [score.label for score in evaluation.scores] == ["summary", "line", "name", "cloze"]
    assert [score.chance for score in evaluation.scores] == [0.25, 0.25, 0.25, 0.0]
    for score in evaluation.scores:
        assert set(score.baselines) == {"unigram", "shuffled contexts"}
        assert score.items == 4
    assert [score.metric for score in evaluation.scores] == ["acc_norm"] * 3 + ["acc"]
