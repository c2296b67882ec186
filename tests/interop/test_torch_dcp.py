"""Models of transformers as torch.distributed.checkpoint saves them: files of real torch, written by two ranks
(dcp_save.py), become what they were, bit for bit."""

import json
import shutil
import socket
import subprocess
import sys

import pytest

import harness
import real_models
import runner
import test_families as families
import test_passed as passed

RESHARD = dict(mode="reshard", upcycle=None)
FORMS = ["plain", "held", "shards"]
# odd widths: halves of unequal size
QWEN3_MOE = dict(families.SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=10, head_dim=8)
KINDS = {
    "qwen3_moe": lambda f: real_models.born("Qwen3Moe", QWEN3_MOE).save_pretrained(f),
    "lfm2": lambda f: passed.saved("Lfm2", passed.LFM2, f),  # passed through, with tensors of three axes
}


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    KINDS[request.param](folder / "hf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = runner.ROOT / "tests" / "interop" / "dcp_save.py"
    ranks = [
        subprocess.Popen([sys.executable, script, port, str(r), folder / "hf", folder], stderr=subprocess.PIPE)
        for r in range(2)
    ]
    for rank in ranks:
        _, err = rank.communicate(timeout=120)
        assert rank.returncode == 0, err.decode()
    for form in FORMS + ["whole"]:
        shutil.copy(folder / "hf" / "config.json", folder / form)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_it_becomes_what_it_was(scratch, saved, form):
    result = families.run(scratch, saved / form, "out", **RESHARD)
    assert result.status == 0, str(result)
    assert "torch-dcp" in result.out and "pieces" in result.out, str(result)
    families.same_tensors(saved / "hf", scratch / "out")
    if form == "held":
        assert "1 optimizer" in result.out, str(result)


def test_what_torch_puts_together_is_read_as_any_folder(scratch, saved):
    result = families.run(scratch, saved / "whole", "out", **RESHARD)
    assert result.status == 0 and "huggingface" in result.out, str(result)
    families.same_tensors(saved / "hf", scratch / "out")


def is_moe(folder):
    return "moe" in json.loads((folder / "hf" / "config.json").read_text())["model_type"]


def test_the_config_may_lie_elsewhere(scratch, saved):
    shutil.copytree(saved / "plain", scratch / "a")
    (scratch / "a" / "config.json").unlink()
    changes = dict(RESHARD, source__format="torch-dcp")
    result = families.run(scratch, scratch / "a", "out", **changes)
    assert result.status == runner.CONFIG and "source.config" in result.err, str(result)
    result = families.run(scratch, scratch / "a", "out", **changes, source__config=str(saved / "hf"))
    assert result.status == 0, str(result)
    families.same_tensors(saved / "hf", scratch / "out")


def test_any_ranks_and_methods(scratch, saved):
    if is_moe(saved):
        return
    outs = []
    for np, name, options in ((1, "hf", ()), (3, "plain", ("--unit-bytes", "1024")), (2, "shards", ())):
        out = harness.convert(scratch, saved / name, np=np, name=name, options=options, target__format="huggingface")
        outs.append({p.name: p.read_bytes() for p in out.glob("*.safetensors")})
    assert outs[0] == outs[1] == outs[2]


def test_what_is_broken_is_named(scratch, saved):
    shutil.copytree(saved / "shards", scratch / "a")
    shards = sorted((scratch / "a").glob("shard-*"))
    assert len(shards) == 2
    shards[1].unlink()
    result = families.run(scratch, scratch / "a", "out", **RESHARD)
    assert result.status == runner.DATA, str(result)
    text = shards[0].read_bytes()
    shards[0].write_bytes(text.replace(b"DCP_SHARDING_INFO", b"DCP_SHARDING_INFX"))
    result = families.run(scratch, scratch / "a", "out", **RESHARD)
    assert result.status == runner.DATA and "DCP_SHARDING_INFO" in result.err, str(result)
    shutil.copytree(saved / "plain", scratch / "b")
    (scratch / "b" / "__1_0.distcp").unlink()
    result = families.run(scratch, scratch / "b", "out", **RESHARD)
    assert result.status not in (0, None) and "__1_0.distcp" in result.err, str(result)
