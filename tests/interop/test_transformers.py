"""What we write works under each release of transformers that is in use."""

import pytest
import torch

import harness
import megatron_like as ml
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
    got = torch.tensor(releases.ask(release, do="logits", folder=out, ids=ids.tolist())["logits"])
    assert harness.relative_difference(got, dense) < 2e-5

    def generate(ids, mask):
        return releases.ask(release, do="generate", folder=out, ids=ids, mask=mask, new=4)["tokens"]

    padded = generate([[0, 0, 5, 7], [3, 9, 4, 8]], [[0, 0, 1, 1], [1, 1, 1, 1]])
    assert padded == generate([[5, 7]], [[1, 1]]) + generate([[3, 9, 4, 8]], [[1, 1, 1, 1]])
