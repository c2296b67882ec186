"""No circle of hints: whatever a source is refused to become, the hint is followed, and what it says works.
The sources are real models of transformers; each run is a dry run, which checks all but the room on the disk."""

import re

import pytest

import real_models
import runner
import test_families as families

BIASES = {"attention_bias": True, "mlp_bias": True}
SOURCES = {
    "llama with all biases": ("Llama", BIASES),
    "qwen2 with windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "granite": ("Granite", families.GRANITE),
    "ernie": ("Ernie4_5", {"head_dim": 8}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "olmo2": ("Olmo2", {}),
    "ernie4_5_moe": ("Ernie4_5_Moe", families.ERNIE),
    "dots1": ("Dots1", families.DOTS1),
    "cohere2": ("Cohere2", {"head_dim": 8}),  # passes through unread, and has a mixture
    "olmo3": ("Olmo3", {}),  # passes through unread, and has none
}
FORMATS = ["huggingface", "hdf5", "mixtral", "megatron-dist"]
CLASSES = ["mixtral", "glm4_moe"]


def targets():
    yield from ({"target__format": f} for f in FORMATS)
    yield from ({"target__format": "huggingface", "target__class": c} for c in CLASSES)


def modes(kind):
    yield {"mode": "reshard", "upcycle": None}
    if kind not in ("ernie4_5_moe", "dots1"):  # whose experts would be taken
        yield {"upcycle__method": "naive", "upcycle__ratio": None}


def run(scratch, source, changes):
    config = runner.write_config(scratch / "run.yaml", source, scratch / "out", target__dtype="source", **changes)
    return runner.upcycle(config, np=1, options=["--dry-run"])


def followed(changes, result):
    """Each way that the hint offers, as another configuration."""
    hint = next((line for line in result.err.splitlines() if line.startswith("hint: ")), "")
    named = re.match(r"hint: target formats that hold this model: (.*)", hint)
    alone = {k: v for k, v in changes.items() if k != "target__class"}
    if named:
        return [{**alone, "target__format": name} for name in named[1].split(", ")]
    if "leave it out" in hint:
        return [alone]
    if "choose target format 'huggingface'" in hint:
        return [{**alone, "target__format": "huggingface"}]
    if "'mode: reshard'" in hint:  # of the dense model; what Megatron holds not even so, says it again
        dense = {k: v for k, v in alone.items() if not k.startswith("upcycle")}
        return [{**dense, "target__format": "huggingface", "mode": "reshard", "upcycle": None}]
    return [{**alone, key.replace(".", "__"): value} for key, value in re.findall(r"'(\w+\.\w+): ([\w-]+)'", hint)]


# Nothing holds it, and it says so by name
NOWHERE = {
    ("smollm3", "upcycle"): "layers without RoPE",
    ("olmo3", "upcycle"): "passed through unread",
    ("qwen2 with windows", "upcycle"): "window",
    ("llama with all biases", "upcycle"): "a bias of the router|biases of the router|biases of the FFN",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_hint_leads_somewhere(scratch, kind):
    name, options = SOURCES[kind]
    real_models.born(name, {**families.SIZES, **options}).save_pretrained(scratch / "a")
    for mode in modes(kind):
        taken = []
        for target in targets():
            result = run(scratch, scratch / "a", {**mode, **target})
            assert result.status in (0, runner.DATA, runner.CONFIG), str(result)
            ways = followed({**mode, **target}, result) if result.status else []
            taken += [target] if result.status == 0 else []
            for way in ways:
                again = run(scratch, scratch / "a", way)
                assert again.status == 0, f"{result}\nand then\n{again}"
            if result.status and not ways:
                nowhere = NOWHERE.get((kind, mode.get("mode", "upcycle")))
                assert nowhere and re.search(nowhere, result.err), str(result)
        assert taken or (kind, mode.get("mode", "upcycle")) in NOWHERE, kind
