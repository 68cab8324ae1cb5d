"""The page as a file: complete, inert, small, for every kind of model."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moepp.analyze import RoutingTable, experts_per_token, layer_correlation, token_types, write_page
from moepp.analyze.sample import choose_extracts
from moepp.errors import DataError

from .factory import random_table
from .pages import HOSTILE, VANILLA, hostile_table, several

VOID = {"meta", "link", "input", "br"}


class Checker(HTMLParser):
    """Whether every element is closed where it should be, and what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "script":
            self.scripts.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(several(), tmp_path_factory.mktemp("page"))


def written(tables: dict[str, RoutingTable], folder: Path) -> str:
    write_page(tables, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def unpacked(packed: str, dtype: str = "u1") -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), dtype)


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.loads == ["data:,"]
    assert len(set(checker.ids)) == len(checker.ids)
    assert [script["type"] for script in checker.scripts] == ["application/json", "module"]
    assert "@import" not in page
    assert "url(" not in page


def test_text_from_outside_is_never_markup(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert len(checker.scripts) == 2
    assert "<img" not in page
    assert "<!--" not in page
    assert "<b>code" not in page
    assert "MoE++ &lt;1&gt;" in page
    assert set(HOSTILE) <= set(data_of(page)["texts"][0]["vocabulary"])


def test_the_policy_allows_just_this_script_and_style(page: str) -> None:
    for element, rule in (("script", r'<script type="module">(.*?)</script>'), ("style", r"<style>(.*?)</style>")):
        found = re.search(rule, page, re.DOTALL)
        assert found
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        assert f"{element}-src &#39;sha256-{digest}&#39;" in page
    assert "default-src &#39;none&#39;" in page
    assert not re.search(r"<[a-z][^>]* (style|on\w+)=", page.split("<script")[0]), "the policy would not run it"


def test_the_sample_holds_the_tables_choices() -> None:
    table = hostile_table(120)
    data = data_of_tables({"m": table})
    (text,), (model,) = data["texts"], data["models"]
    rows = np.concatenate([np.arange(part.start, part.stop) for part in choose_extracts(table, 4000)])
    assert len(rows) == 120
    assert [text["vocabulary"][at] for at in text["token"]] == [table.vocabulary[t] for t in table.token[rows].tolist()]
    sample = model["sample"]
    assert np.array_equal(unpacked(sample["expert"]), table.expert[rows].ravel())
    assert np.array_equal(unpacked(sample["kept"]).astype(bool), table.kept[rows].ravel())
    np.testing.assert_allclose(unpacked(sample["weight"]) / 255, table.weight[rows].ravel(), atol=0.002)
    loss, real = unpacked(sample["loss"], "<u2"), ~np.isnan(table.loss[rows])
    np.testing.assert_allclose(loss[real] / 1000, table.loss[rows][real], atol=0.00051)
    assert (loss[~real] == 65535).all()


def data_of_tables(tables: dict[str, RoutingTable]) -> dict[str, Any]:
    from moepp.analyze.page_data import page_data
    from moepp.analyze.summary import summarize

    return page_data({name: summarize(table) for name, table in tables.items()})


def test_numbers_by_token_type_are_means_over_all_tokens() -> None:
    table = hostile_table()
    data = data_of_tables({"m": table})
    (text,), (model,) = data["texts"], data["models"]
    at = text["vocabulary"].index(" return")
    chosen = table.token == next(token for token, written in table.vocabulary.items() if written == " return")
    assert text["count"][at] == chosen.sum()
    assert model["types"]["ffn"][at] == pytest.approx(table.active("ffn")[chosen].mean(), abs=0.001)
    assert model["types"]["loss"][at] == pytest.approx(np.nanmean(table.loss[chosen]), abs=0.001)
    types = token_types(table)
    place = types.text.index(" return")
    assert model["types"]["low"][at] == pytest.approx(types.low[place], abs=0.001)
    assert model["types"]["high"][at] == pytest.approx(types.high[place], abs=0.001)


def test_models_of_one_text_share_it(page: str) -> None:
    data = data_of(page)
    assert [model["text"] for model in data["models"]] == [0, 0, 1]
    assert len(data["texts"]) == 2


def test_the_headline_says_what_is_saved_against_k_ffn_experts(tmp_path: Path) -> None:
    table = hostile_table()
    page = written({"m": table}, tmp_path)
    used = experts_per_token(table).mean[0]
    assert f"<b>{used:.2f}</b><small>tau = 0.5 aims at 0.67</small>" in page
    assert f"<b>{1 - used / 2:.0%}</b>" in page
    assert "<b>1,200</b>" in page


def test_a_vanilla_model_that_drops_is_not_said_to_use_all_its_choices(tmp_path: Path) -> None:
    table = hostile_table(layout=VANILLA)
    used = experts_per_token(table).mean[0]
    page = written({"m": table}, tmp_path)
    assert f"m has FFN experts alone and uses {used:.2f} of at most 2 FFN experts per token and layer" in page
    assert f"<b>{used:.2f}</b><small>of 2 that it may use</small>" in page
    assert "every token uses" not in page.split("<script")[0]
    assert "m has FFN experts alone: every token uses 2 of them in every layer." in written(
        {"m": hostile_table(layout=VANILLA, drops=False)}, tmp_path
    )


def test_shared_experts_are_named_and_not_saved(tmp_path: Path) -> None:
    table = hostile_table()
    table = replace(table, facts=replace(table.facts, shared_experts=1))
    used = experts_per_token(table).mean[0]
    page = written({"m": table}, tmp_path)
    assert "per token and layer, besides 1 that all tokens share, which saves" in page
    assert f"<b>{(2 - used) / 3:.0%}</b><small>against 2 + 1 shared FFN experts for every token</small>" in page
    assert "top-2 of them in each of 3 layers, besides 1 that all tokens share</dd>" in page


def test_numbers_tell_what_adjacent_layers_have_in_common(page: str) -> None:
    rows = dict(re.findall(r'<tr><th scope="row"[^>]*>(.*?)</th><td>(.*?)</td>', page))
    relations = layer_correlation(several()["MoE++ <1>"])
    assert rows["adjacent layers, FFN experts (Pearson)"] == f"{relations.adjacent_ffn.mean():.3f}"
    assert rows["adjacent layers, first choices (Cramér&#39;s V)"] == f"{relations.adjacent_first.mean():.3f}"


def test_the_page_says_who_wrote_it(page: str) -> None:
    assert '<meta name="generator" content="moepp">' in page


def test_extracts_begin_documents_of_every_source_and_keep_to_their_size() -> None:
    table = hostile_table(1200)
    parts = choose_extracts(table, 200)
    assert sum(part.stop - part.start for part in parts) == 200
    assert {table.documents[part.document].source for part in parts} == set(table.sources)
    for part in parts:
        assert (table.document[part.start : part.stop] == part.document).all()
        assert part.start == 0 or table.document[part.start - 1] < part.document


def test_many_deep_models_with_many_token_types_stay_below_two_megabytes(tmp_path: Path) -> None:
    tokens, types = 6000, 6000
    table = random_table(tokens, 24, 4)
    token = np.random.default_rng(0).integers(0, types, tokens).astype(np.int32)
    table = replace(table, token=token, vocabulary={at: f" token {at}" for at in np.unique(token).tolist()})
    write_page({f"model {at}": table for at in range(5)}, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


@pytest.mark.parametrize(
    "table",
    [
        hostile_table(1, 1),
        hostile_table(60, 1, layout=VANILLA, drops=False),
        replace(hostile_table(60), loss=np.full(60, np.nan, np.float32)),
        replace(hostile_table(60), expert=np.full((60, 3, 2), 8, np.uint8), kept=np.zeros((60, 3, 2), np.bool_)),
        random_table(60, 2, 1),
    ],
    ids=["one token", "vanilla", "nothing predicted", "nobody chosen", "top-1"],
)
def test_odd_tables_make_a_page_without_numbers_that_are_none(table: RoutingTable, tmp_path: Path) -> None:
    page = written({"odd": table}, tmp_path)
    data_of(page)
    assert not re.search(r"\b(nan|NaN|inf|Infinity)\b", page.split('<script type="module">')[0].replace("nano", ""))


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"report\.html cannot be written: No such file or directory; choose another"):
        write_page({"m": hostile_table(60)}, tmp_path / "missing" / "report.html")
