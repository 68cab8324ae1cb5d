"""What the routers of trained models choose on held-out text: what the figures of the routing are made of."""

from collections.abc import Iterable

from rich.progress import track

from moepp.analyze import RoutingTable, Text, collect

from .lab import Lab
from .variants import Variant

TOKENS = 24_576
"""Of each source, three of which are more than the 60,000 of the paper's figures."""
_BATCH = 4096  # tokens


def held_out(lab: Lab) -> list[Text]:
    """The sources' documents that nobody trained on."""
    return [
        Text(f"{source}-{index}", source, text)
        for source, documents in lab.text.items()
        for index, text in enumerate(documents)
    ]


def prompts(lab: Lab) -> list[Text]:
    """What the tasks that models are scored on ask."""
    return [
        Text(f"{task}-{index}", f"task: {task}", text)
        for task, asked in lab.questions.prompts().items()
        for index, text in enumerate(asked)
    ]


def route(lab: Lab, variant: Variant, texts: Iterable[Text]) -> dict[int, RoutingTable]:
    """Every choice that each seed's model makes on the texts, in windows of its context."""
    texts, tables = list(texts), {}
    limit = TOKENS * len({text.source for text in texts})
    seeds = list(lab.records(variant))
    for seed in track(seeds, f"routing, {variant.name}", console=lab.pool.console, transient=True):
        model = lab.model(variant, seed)
        at_once = max(1, _BATCH // model.config.max_position_embeddings)
        tables[seed] = collect(model, lab.tokenizer(variant, seed), texts, batch_size=at_once, max_tokens=limit)
    return tables
