"""What a saved folder carries so that a Python that never imported moepp can load it with ``trust_remote_code=True``.

config.json names two files beside it, and each hands on classes of the installed package. transformers would copy our
modules instead, which import each other and torch operators by relative paths, and whose copies would age.
"""

from pathlib import Path

AUTO_MAP = {
    "AutoConfig": "configuration_moepp.MoEPPConfig",
    "AutoModel": "modeling_moepp.MoEPPModel",
    "AutoModelForCausalLM": "modeling_moepp.MoEPPForCausalLM",
    "AutoModelForSequenceClassification": "modeling_moepp.MoEPPForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_moepp.MoEPPForTokenClassification",
}
"""transformers' ``auto_map``: Auto class -> file and class."""


def sources() -> dict[str, str]:
    """The files' names and texts. Where moepp is missing, transformers reads its import and says what to install."""
    classes: dict[str, list[str]] = {}
    for reference in AUTO_MAP.values():
        module, name = reference.split(".")
        classes.setdefault(f"{module}.py", []).append(name)
    story = '"""MoE++ for trust_remote_code=True: `pip install moepp`."""'
    return {file: f"{story}\n\nfrom moepp.model import {', '.join(names)}\n" for file, names in classes.items()}


def write(folder: Path) -> None:
    """Writes the files, over older ones."""
    for name, text in sources().items():
        (folder / name).write_text(text, encoding="utf-8")
