"""What we write works under each release of transformers that is in use."""

import json
import re
import shlex

import pytest
import torch

import harness
import megatron_like as ml
import runner
import transformers_judge as judge


@pytest.fixture(scope="module")
def releases():
    with judge.Releases() as running:
        yield running


@pytest.fixture(scope="module")
def mixtral(module_scratch):
    """({target.names: folder}, token ids, their dense logits)"""
    shape = ml.Shape()
    model = ml.dense_model(shape, dtype=torch.float32)
    source = ml.save(model, shape, module_scratch / "dense", 2, 2)
    folders = {
        names: harness.convert(
            module_scratch,
            source,
            name="Mixtral-" + names,
            upcycle__method="naive",
            upcycle__ratio=None,
            model__vocab_size=shape.vocab,
            target__names=names,
        )
        for names in ("per-expert", "fused")
    }
    ids = harness.token_ids(shape)
    return folders, ids, harness.llama_logits(model, shape, ids)


@pytest.mark.parametrize(
    "release,names", [*((release, "per-expert") for release in judge.ALL), (judge.CURRENT, "fused")]
)
def test_a_mixtral_loads_computes_and_generates(releases, mixtral, release, names):
    folders, ids, dense = mixtral
    out = folders[names]
    about = releases.ask(release, do="about", folder=out)
    assert about["class"] == "MixtralForCausalLM"
    # with it, generate() computes a balancing loss, whose mask does not fit from the second token on
    assert about["config"]["output_router_logits"] is False
    got = torch.tensor(releases.ask(release, do="logits", folder=out, ids=ids.tolist(), each=True)["logits"])
    assert harness.relative_difference(got, dense) < 2e-5

    def generate(ids, mask):
        return releases.ask(release, do="generate", folder=out, ids=ids, mask=mask, new=4)["tokens"]

    padded = generate([[0, 0, 5, 7], [3, 9, 4, 8]], [[0, 0, 1, 1], [1, 1, 1, 1]])
    assert padded == generate([[5, 7]], [[1, 1]]) + generate([[3, 9, 4, 8]], [[1, 1, 1, 1]])


# ---- the way on


def told(out, kind="next"):
    remarks = json.loads((out / runner.MANIFEST).read_text())["remarks"].get(kind, [])
    return [remark["now" if kind == "next" else "why"] for remark in remarks]


def steps(out):
    """{the first words of the comment: lines below it}"""
    found = {}
    for line in told(out):
        if line.startswith("#"):
            found[line.split()[1]] = (line, [])
        else:
            found[list(found)[-1]][1].append(line)
    return found


@pytest.mark.parametrize("release", judge.ALL)
def test_the_lines_for_transformers_work_in_each_release(releases, mixtral, release):
    folders, ids, dense = mixtral
    out = folders["per-expert"]
    comment, lines = steps(out)["transformers"]
    assert comment == "# transformers 4.46 or later:"
    got = releases.ask(release, do="follow", lines=lines, ids=ids.tolist())
    assert (got["class"], got["dtype"]) == ("MixtralForCausalLM", "torch.float32")
    assert harness.relative_difference(torch.tensor(got["logits"]), dense) < 2e-5


def test_the_lines_name_the_release_that_is_needed(mixtral):
    comment, _ = steps(mixtral[0]["fused"])["transformers"]
    assert comment == "# transformers 5 or later:"
    assert any("fused names" in why for why in told(mixtral[0]["fused"], "warning"))


def test_the_options_for_moe_recipes(mixtral):
    out = mixtral[0]["per-expert"]
    _, lines = steps(out)["moe-recipes'"]
    options = shlex.split(" ".join(line.removesuffix("\\") for line in lines))
    assert options[:2] == ["--base-model", str(out)]
    assert options[options.index("--seq-length") + 1] == str(ml.Shape().positions) and "--bf16" in options


SCALED = {"rope_type": "linear", "factor": 4.0}
OLD = judge.pinned()[0]


@pytest.mark.parametrize(
    "family,changes,needs",
    [
        ("Mistral", {"rope_scaling": SCALED}, "4.48"),
        ("Mixtral", {"rope_scaling": SCALED}, "4.48"),
        ("Mixtral", {"head_dim": 6}, "4.47"),
        ("Qwen2", {"head_dim": 6}, "4.48"),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}, "4.57"),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 3}, "4.57"),
        ("Qwen3", {}, "4.51"),
    ],
)
def test_what_an_older_release_does_is_said(releases, scratch, family, changes, needs):
    """It fails or computes something else, and the summary says from which release on it does not."""
    import transformers

    assert OLD.startswith("4.46.")
    torch.manual_seed(1)
    settings = dict(vocab_size=50, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)
    settings |= dict(num_key_value_heads=2, max_position_embeddings=64, rope_theta=1e4, sliding_window=None)
    model = getattr(transformers, family + "ForCausalLM")(
        getattr(transformers, family + "Config")(**(settings | changes))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(scratch / "source")
    config = runner.write_config(
        scratch / "run.yaml", scratch / "source", scratch / "out", mode="reshard", target__format="huggingface"
    )
    result = runner.upcycle(config, np=1)
    assert result.status == 0, str(result)
    comment, lines = steps(scratch / "out")["transformers"]
    assert comment == f"# transformers {needs} or later:"
    assert not changes or re.search(rf"note .*transformers\s+(\S+\s+)*?{re.escape(needs)}", result.out, re.S), str(result)
    ids = [[3, 1, 4, 1, 5, 9, 2, 6]]
    right = torch.tensor(releases.ask(judge.CURRENT, do="follow", lines=lines, ids=ids)["logits"])
    try:
        old = torch.tensor(releases.ask(OLD, do="follow", lines=lines, ids=ids)["logits"])
    except AssertionError:
        return
    assert (old - right).abs().max() > 1e-3, "it is right in the older release, too"
