"""Every key of config.json is understood, carried or refused (src/model/huggingface_keys.c).

One test walks the configuration classes of each installed transformers: a field that the table does
not name fails it. Another changes each key of a tiny real model, one at a time: what the program makes
of the changed folder computes what the real class makes of it, or the program refuses, or the class
itself fails; fields on which no logit depends arrive as they were. The figures are printed.
MGR_MUTATIONS=all takes every value; without it one in twenty is drawn, of the newer families one in
ninety, the same ones each time."""

import collections
import copy
import json
import os
import re
import shutil
import zlib

import pytest
import torch
import transformers

import harness
import runner
import transformers_judge as judge

torch.set_num_threads(1)  # tiny models: a second thread only waits
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
SOURCE = (runner.ROOT / "src" / "model" / "huggingface_keys.c").read_text()
TABLE = (runner.ROOT / "src" / "model" / "huggingface_family.c").read_text()
FAMILIES = {name: 1 << i for i, name in enumerate(re.findall(r'\.type = "(\w+)"', TABLE))}
NAMES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mixtral": "Mixtral",
    "phi3": "Phi3",
    "seed_oss": "SeedOss",
    "smollm3": "SmolLM3",
    "ernie4_5": "Ernie4_5",
    "granite": "Granite",
    "olmo2": "Olmo2",
    "flex_olmo": "FlexOlmo",
    "granitemoe": "GraniteMoe",
}
NEWER = list(NAMES)[5:]  # of which one key in many is drawn, since there are many
IDS = torch.arange(24).reshape(1, 24) * 7 % 61


def table():
    """{(key, bit of a family): use}"""
    masks = {name.upper(): bit for name, bit in FAMILIES.items()} | {"EVERY": (1 << len(FAMILIES)) - 1}
    masks["PASSED"] = 1 << len(FAMILIES)  # classes without a row have no keys of their own
    for name, mask in re.findall(r"#define (\w+) (\([A-Z0-9_ |&~]+\))(?: /\*.*)?\n", SOURCE):
        masks[name] = eval(mask, {"__builtins__": {}}, masks)  # of our own source
    rows = {}
    body = SOURCE[SOURCE.index("static const mgr_hf_key keys[]") :]
    found = re.findall(r'\b(READ|CARRIED|IGNORED|NEUTRAL)\(\s*"([^"]+)",\s*([A-Z0-9_ |&~()]+?)\s*,', body)
    nested = re.findall(r'\b(READ|NEUTRAL)\(place "([^"]+)",\s*([A-Z0-9_ |&~()]+?)\s*,', SOURCE)
    places = ("rope_parameters", "rope_scaling")
    found += [(use, place + name, mask) for place in places for use, name, mask in nested]
    for use, name, mask in found:
        bits = eval(mask, {"__builtins__": {}}, masks)  # of our own source
        for bit in FAMILIES.values():
            if bits & bit:
                assert (name, bit) not in rows, f"two rows of {name} for one family"
                rows[name, bit] = use
    assert len({name for name, _ in rows}) > 100
    return rows


@pytest.fixture(scope="module")
def releases():
    with judge.Releases() as running:
        yield running


@pytest.mark.parametrize("release", judge.ALL)
def test_the_table_names_every_field_of_the_classes(releases, release):
    rows, missing, count = table(), [], 0
    for family, fields in releases.ask(release, do="fields", families=list(FAMILIES))["fields"].items():
        count += len(fields)
        missing += [f"{family}.{f}" for f in fields if (f, FAMILIES[family]) not in rows]
    print(f"transformers {release}: {count} fields of {len(FAMILIES)} classes")
    assert count > 200 and not missing, missing


# ---- each key changed

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
BASES = {
    "llama": {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True, "sliding_window": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "phi3": {"sliding_window": 8},
    "seed_oss": {"attention_out_bias": True},
    "smollm3": {"no_rope_layers": [1, 0], "layer_types": ["full_attention"] * 2},
    "ernie4_5": {},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "attention_multiplier": 0.3},
    "olmo2": {},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "residual_multiplier": 0.7},
}


def tiny(folder, family):
    """A real model with random weights, and its whole config.json."""
    torch.manual_seed(3)
    base = dict(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=[2, 3],
        pad_token_id=5,
        dtype="float32",
    )
    config = getattr(transformers, NAMES[family] + "Config")(**base, **copy.deepcopy(BASES[family]))
    model = getattr(transformers, NAMES[family] + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.15)
    model.save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text())
    written.update(BASES[family])
    written.pop("transformers_version")
    path.write_text(json.dumps(written))
    return written


def other_values(value):
    if isinstance(value, bool):
        return [not value, None]
    if isinstance(value, int):
        return [value + 1, max(value // 2, 1), 0, None]
    if isinstance(value, float):
        return [value * 2 + 0.25, 0.0, None]
    if isinstance(value, str):
        return ["gelu", "something", None]
    if isinstance(value, list):
        return [[], value[::-1], value[:1], None]
    if isinstance(value, dict):
        changed = [{**value, key: other} for key, old in value.items() for other in other_values(old)[:2]]
        left_out = [{k: v for k, v in value.items() if k != key} for key in value]
        return [{}, None, {**value, "mystery": 2.5}, *changed, *left_out]
    return [True, 1, 6, 0.5, "something", ["sliding_attention"] * 2]


def mutations(family, written):
    """(key, value): every key of the file and of the table."""
    names = {name for name, bit in table() if bit == FAMILIES[family] and "." not in name}
    strangers = ["mystery", "attention_multiplier", "final_logit_softcapping", "no_rope_layers"]
    for key in sorted({*written, *names, *strangers}):
        for value in other_values(written.get(key)):
            yield key, value
        if key in written:
            yield key, LEFT_OUT


LEFT_OUT = object()


def drawn(family, key, value):
    if os.environ.get("MGR_MUTATIONS") == "all":
        return True
    rare = 90 if family in NEWER else 20
    return zlib.crc32(f"{family} {key} {value if value is not LEFT_OUT else '-'}".encode()) % rare == 0


def load(folder):
    """The logits and what generate() says, or the reason why the class fails."""
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
        if any(info.values()):
            return f"not strictly: {info}"
        model.generation_config = transformers.GenerationConfig()
        with torch.no_grad():
            logits = model.eval()(IDS).logits
            tokens = model.generate(IDS[:, :12], max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
        return logits, tokens
    except Exception as error:
        return repr(error)


def run_program(scratch, family):
    out = scratch / "Mixtral"
    shutil.rmtree(out, ignore_errors=True)
    config = runner.write_config(
        scratch / "run.yaml",
        scratch / "source",
        out,
        mode="reshard",
        upcycle=None,
        target__format="moe-recipes" if family == "mixtral" else "huggingface",
        target__dtype="source",
    )
    return runner.run([runner.program("mgr-upcycle"), config], timeout=60), out


def judge_one(scratch, family, key, value):
    """'refused', 'fails' or 'equal'; anything else is a finding."""
    result, out = run_program(scratch, family)
    if result.status != 0:
        assert result.status == runner.DATA and len(result.errors()) == 1, str(result)
        return "refused"
    expected = load(scratch / "source")
    if isinstance(expected, str):
        return "fails"
    got = load(out)
    if isinstance(got, str):
        return f"the output does not load: {got}"
    if not torch.allclose(expected[0], got[0], rtol=0, atol=1e-6):
        return f"logits differ by {(expected[0] - got[0]).abs().max():g}"
    if not torch.equal(expected[1], got[1]):
        return "generate() differs"
    carried = json.loads((out / "config.json").read_text())
    if table().get((key, FAMILIES[family])) in ("CARRIED", "IGNORED") and carried.get(key, LEFT_OUT) != value:
        return f"arrives as {carried.get(key)!r}"
    return "equal"


@pytest.mark.parametrize("family", list(NAMES))
def test_a_changed_key_is_carried_or_refused(scratch, family, capsys):
    written = tiny(scratch / "source", family)
    assert judge_one(scratch, family, "", None) == "equal"
    seen, wrong = collections.Counter(), []
    for key, value in mutations(family, written):
        if not drawn(family, key, value):
            continue
        changed = {**written, key: value}
        if value is LEFT_OUT:
            del changed[key]
        (scratch / "source" / "config.json").write_text(json.dumps(changed))
        outcome = judge_one(scratch, family, key, value)
        seen[outcome if outcome in ("equal", "refused", "fails") else "wrong"] += 1
        if outcome not in ("equal", "refused", "fails"):
            wrong.append(f"{key} = {'left out' if value is LEFT_OUT else json.dumps(value)}: {outcome}")
    with capsys.disabled():
        print(f"\n{family}: {sum(seen.values())} tried, {dict(seen)}")
    assert not wrong, "\n".join(wrong)


assert harness  # its path is set up there
