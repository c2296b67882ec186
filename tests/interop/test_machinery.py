"""The tests' own tools, held against each other and against transformers; the program is not run."""

import zipfile

import numpy as np
import pytest
import torch

import harness
import damage
import megatron_like as ml
import philox
import upcycle_oracle as oracle


@pytest.mark.parametrize("tp,pp", [(1, 1), (2, 1), (1, 2), (2, 2), (4, 4)])
@pytest.mark.parametrize("names", ["te", "local"])
def test_what_is_split_can_be_put_together_again(scratch, tp, pp, names):
    for shape in (ml.Shape(), ml.Shape(kv_heads=4, tied=True), ml.Shape(kv_heads=1)):
        model = ml.dense_model(shape, seed=tp)
        root = ml.save(model, shape, scratch / f"{shape.kv_heads}", tp, pp, names)
        again, read = ml.load(root, shape.vocab)
        assert again.keys() == model.keys()
        assert all(harness.same_bits(again[name], model[name]) for name in model)
        assert (read.layers, read.kv_heads, read.tied) == (shape.layers, shape.kv_heads, shape.tied)


def test_files_look_like_megatrons(scratch):
    shape = ml.Shape()
    ml.save(ml.dense_model(shape), shape, scratch, 2, 2)
    with ml.megatron_enums():
        file = torch.load(scratch / "iter_0000007/mp_rank_01_001/model_optim_rng.pt", weights_only=False)
    state = file["model"]
    tensors = [t for name, t in state.items() if not name.endswith("_extra_state")]
    storages = {t.untyped_storage().data_ptr() for t in tensors}
    assert len(storages) == 1 and min(t.storage_offset() for t in tensors) > 0
    assert tensors[0].untyped_storage().nbytes() > sum(t.numel() * t.element_size() for t in tensors)
    assert hasattr(state, "_metadata")
    kinds = {type(v).__name__ for name, v in state.items() if name.endswith("_extra_state")}
    assert kinds == {"NoneType", "Tensor", "BytesIO"}
    assert (
        "decoder.layers.0.mlp.linear_fc2.weight" in state
        and "decoder.layers.2.mlp.linear_fc2.weight" not in state
    )
    assert (
        file["args"].padded_vocab_size == 64
        and type(file["args"].model_type).__module__ == "megatron.core.enums"
    )


def test_philox_gives_the_known_answers_of_random123():
    known = [
        ((0,) * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for counter, key, answer in known:
        assert " ".join("%08x" % x for x in philox.block([[c] for c in counter], key)[:, 0]) == answer


def test_streams_can_be_entered_anywhere():
    whole = philox.words(5, 3, 2, 1, 0, 100)
    assert all((philox.words(5, 3, 2, 1, k, 20) == whole[k : k + 20]).all() for k in range(9))
    z = philox.normals(5, 3, 2, 1, 0, 200001)
    assert oracle.ks_statistic(z) < oracle.ks_limit() and (philox.normals(5, 3, 2, 1, 4, 6) == z[4:10]).all()


def test_ks_refuses_what_is_not_normal():
    rng = np.random.default_rng(1)
    assert oracle.ks_statistic(rng.normal(size=20000)) < oracle.ks_limit()
    for wrong in (
        rng.uniform(-(3**0.5), 3**0.5, 20000),
        rng.laplace(scale=0.5**0.5, size=20000),
        rng.normal(0.05, 1, 20000),
        rng.normal(0, 1.15, 20000),
    ):
        assert oracle.ks_statistic(wrong) > oracle.ks_limit()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("independent", [False, True])
def test_published_procedure_and_contract_agree_on_what_is_not_drawn(shuffle, independent):
    shape = ml.Shape(layers=1, ffn=96, hidden=32)
    dense = harness.dense_ffn(ml.dense_model(shape, dtype=torch.float32), 0)
    rng = np.random.default_rng(3)
    theirs = oracle.published_layer(dense, 0.5, 4, rng, shuffle, independent)
    ours = [
        oracle.contract_expert(dense, 9, 0, e, 0.5, independent=independent, shuffle=shuffle)
        for e in range(4)
    ]
    for expert, done in theirs + [({k: v.astype(np.float32) for k, v in x.items()}, d) for x, d in ours]:
        for name in oracle.MATRICES:
            place = oracle.recover_permutation(name, expert[name], dense[name])
            kept = np.flatnonzero(place >= 0)
            assert (np.flatnonzero(place < 0) == done["sets"][name]).all() and len(done["sets"][name]) == 48
            assert (place[kept] == done["perm"][kept]).all()
            replaced = oracle.neurons(name, dense[name])[done["perm"][done["sets"][name]]]
            assert np.allclose(done["moments"][name], oracle.statistics(replaced))
        same = [(done["sets"]["gate"] == done["sets"][x]).all() for x in ("up", "down")]
        assert same == [not independent] * 2


@pytest.mark.parametrize("tied", [False, True])
def test_a_naive_mixtral_computes_what_the_dense_model_does(scratch, tied):
    shape = ml.Shape(tied=tied, head_dim=16)
    model = ml.dense_model(shape, dtype=torch.float32)

    def ffn(layer, expert):
        return {kind: model[f"model.layers.{layer}.mlp.{kind}_proj.weight"] for kind in harness.W}

    def router(layer):
        return torch.from_numpy(oracle.contract_router("uniform", 1, layer, 4, shape.hidden)).float()

    out = harness.write_mixtral(scratch / "Mixtral", model, shape, 4, ffn, router)
    harness.check_naive(harness.read_output(out), model, shape, 4)
    ids = harness.token_ids(shape)
    dense = harness.llama_logits(model, shape, ids)
    assert harness.relative_difference(harness.mixtral_logits(out, ids), dense) < 1e-5
    wrong = dict(model, **{"model.layers.1.mlp.gate_proj.weight": model["model.layers.1.mlp.up_proj.weight"]})
    assert harness.relative_difference(harness.llama_logits(wrong, shape, ids), dense) > 1e-3


def test_damage_is_what_it_says(scratch):
    """tests/cli damages files of mgr-synth; here the same surgery on files of torch.save, with
    torch to look at the patient afterwards."""
    shape = ml.Shape()
    file = ml.save(ml.dense_model(shape), shape, scratch) / "iter_0000007/mp_rank_00/model_optim_rng.pt"
    untouched = file.read_bytes()
    name = "decoder.layers.0.mlp.linear_fc2.weight"

    def operated(operation, *how):
        file.write_bytes(untouched)
        archive = damage.Archive(file)
        operation(archive, *how)
        archive.write()
        assert zipfile.ZipFile(file).testzip() is None
        with ml.megatron_enums():
            return torch.load(file, weights_only=False)

    before = operated(lambda archive: None)
    after = operated(damage.flip_tensor_byte, name, 6)
    assert [
        n
        for n, t in after["model"].items()
        if isinstance(t, torch.Tensor) and not torch.equal(t, before["model"][n])
    ] == [name]
    assert (after["model"][name] != before["model"][name]).nonzero().tolist() == [[0, 3]]
    after = operated(damage.add_tensor_after, name, "decoder.layers.0.mlp.linear_fc9.weight")
    assert set(after["model"]) - set(before["model"]) == {"decoder.layers.0.mlp.linear_fc9.weight"}
    after = operated(damage.rename_tensor, name, "decoder.layers.9.weight")
    assert set(after["model"]) ^ set(before["model"]) == {name, "decoder.layers.9.weight"}
    after = operated(damage.set_int_arg, "hidden_size", 72)
    assert {
        k
        for k, v in vars(after["args"]).items()
        if v != getattr(before["args"], k) and k not in ("model_type", "attention_backend", "timers")
    } == {"hidden_size"}

    file.write_bytes(untouched)
    damage.wrong_crc(file, lambda member: member.endswith("/data/0"))
    assert zipfile.ZipFile(file).testzip().endswith("/data/0")
    file.write_bytes(untouched)
    archive = damage.Archive(file)
    archive.write(deflated=[archive.pickle_name])
    assert [i.filename for i in zipfile.ZipFile(file).infolist() if i.compress_type] == [archive.pickle_name]
