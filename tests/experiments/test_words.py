import numpy as np

from experiments.words import CLASSES, by_class, classes, code, contrast, counts

from ..analyze.factory import written_table

TEXTS = ["\n    ", "def", " max", "_", "tok", "ens", "(", "x", "12", "\\xe2\\x80", "ified", " is"]
EXPECTED = [
    "white space",
    "keyword",
    "whole word",
    "punctuation",
    "word fragment",
    "word fragment",
    "punctuation",
    "single letter",
    "number",
    "punctuation",
    "whole word",
    "keyword",
]
FFN, ZERO = 0, 7


def _table(experts: list[int], document: list[int] | None = None):
    ids = list(range(len(TEXTS)))
    table = written_table(
        [[[expert, 5]] for expert in experts], token=ids, document=document or [0] * len(ids), position=ids
    )
    table.vocabulary.clear()
    table.vocabulary.update(enumerate(TEXTS))
    return table


def test_a_token_is_classed_by_its_text_and_its_neighbours() -> None:
    found = classes(_table([FFN] * len(TEXTS)))
    assert [CLASSES[index] for index in found] == EXPECTED


def test_documents_do_not_touch() -> None:
    apart = _table([FFN] * len(TEXTS), document=[0] * 5 + [1] * 7)
    assert counts(apart)["whole word"] == 4
    assert "word fragment" not in counts(apart)


def test_experts_are_averaged_by_class_and_classes_compared() -> None:
    experts = [FFN] * len(TEXTS)
    experts[4] = ZERO  # one of the two fragments
    table = _table(experts)
    assert by_class(table, "ffn")["word fragment"] == 0.5
    assert by_class(table, "zero")["word fragment"] == 0.5
    assert by_class(table, "ffn", "a") == by_class(table, "ffn")
    assert contrast({3: table}, "ffn", ["word fragment"], ["whole word", "keyword"]) == {3: -0.5}
    assert np.isclose(contrast({3: table}, "constant", ["number"], ["punctuation"])[3], 0.0)


def test_a_token_is_shown_with_its_spaces_and_survives_markdown() -> None:
    assert code(" x") == "`␣x`"
    assert code("\n") == "`\\n`"
    assert code("a`b") == "`` a`b ``"
