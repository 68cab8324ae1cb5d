"""The README's snippets, run as they stand, and its commands, parsed by the real command line."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from transformers import MixtralConfig, MixtralForCausalLM

from experiments.catalogue import NAMES
from experiments.scales import scale
from moepp import cli
from moepp.data import train_tokenizer
from moepp.model import MoEPPForCausalLM, preset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_three_python_snippets_of_about_ten_lines_at_most() -> None:
    snippets = blocks("python")
    assert len(snippets) == 3
    assert all(len([line for line in snippet.splitlines() if line.strip()]) <= 11 for snippet in snippets)


def test_layer_snippet_runs_on_the_layer_alone() -> None:
    code = blocks("python")[0] + "\nimport sys; assert 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'ffn'" in done.stdout


def test_hugging_face_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an untrained model in the place where the demo leaves its own."""
    torch.manual_seed(0)
    folder = tmp_path / "runs" / "demo" / "moepp"
    tokenizer = train_tokenizer(["def main(args):\n    return 0\n"] * 20, 300)
    tokenizer.save_pretrained(folder)
    MoEPPForCausalLM(preset("debug", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)).save_pretrained(
        folder
    )
    monkeypatch.chdir(tmp_path)
    exec(blocks("python")[1], {})


def test_two_lines_give_a_transformers_model_our_kernels() -> None:
    snippet = blocks("python")[2]
    assert len([line for line in snippet.splitlines() if line]) == 2
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        before = model(ids).logits
        exec(snippet, {"model": model})
        assert model.config._experts_implementation == "moepp_auto"
        torch.testing.assert_close(model(ids).logits, before)


def commands() -> list[str]:
    return [line for block in blocks("console") for line in block.replace("\\\n", "").splitlines() if line]


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line: str) -> None:
    program, command, *arguments = shlex.split(line.rpartition(" | ")[2], comments=True)
    if program == "torchrun":  # tests/distributed/test_restarts.py starts one
        module = arguments.index("-m")
        program, command, *arguments = arguments[module + 1 :]
    if program == "python":
        module, _, name = arguments[0].partition(".")
        assert (command, module) == ("-m", "experiments")
        assert (name or arguments[1]) in (*NAMES, "all")
        assert scale(arguments[arguments.index("--scale") + 1])
        return
    if program == "make":
        assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        return
    if program == "curl":  # tests/serve/test_server.py asks the same of a server
        assert command.endswith("/v1/completions")
        assert "prompt" in json.loads(arguments[arguments.index("-d") + 1])
        return
    if program == "hf":  # needs a network
        assert command == "download"
        return
    from moepp.train import load_recipe

    assert program == "moepp"
    if command == "train":
        recipe, *overrides = [a for a in arguments if not a.startswith("--")]
        assert load_recipe(ROOT / recipe, overrides).output_dir.startswith("runs/")
    elif command == "bench":
        from moepp.commands import bench, bench_model

        from .commands import test_bench, test_bench_model

        typed = line.partition("#")[0]
        if arguments[0] in ("comm", "loader"):
            group = typer.main.get_group(cli.app).commands["bench"].commands  # pyright: ignore
            group[arguments[0]].make_context(arguments[0], arguments[1:])
        elif arguments[0] == "model":
            assert bench_model.plan(test_bench_model.options_of(typed))
        else:
            assert arguments[0] == "report" or bench.plan(test_bench.options_of(typed))
    elif command == "info":
        preset(arguments[0])
    else:
        known = typer.main.get_group(cli.app).commands
        known[command].make_context(command, arguments)  # parses, and runs nothing


def test_presets_named_in_the_text_exist() -> None:
    names = re.findall(r'preset\("([^"]+)"', README)
    assert names
    for name in names:
        preset(name)


def test_the_demos_output_and_picture_are_shown() -> None:
    (output,) = blocks("text")
    for row in ("validation loss, nats per token", "FFN experts per token", "bound on the gain"):
        assert re.search(rf"^{row} +[+\d.]+", output, flags=re.MULTILINE)
    assert re.search(r"!\[[^]]+\]\(docs/images/demo\.png\)", README)


def test_entries_of_the_log_that_are_referred_to_exist() -> None:
    log = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").glob("*.yaml")]
    dates = {
        date for file in files for date in re.findall(r"log\.md,\s+#?\s*(\d{4}-\d\d-\d\d)", file.read_text("utf-8"))
    }
    assert dates
    assert all(f"## {date}" in log for date in dates)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target
