"""tools/report: the page of a run, in a real browser where there is one."""

import json
import os
import re
import shutil
import subprocess
import sys

import h5py
import matplotlib.image
import numpy as np
import pytest

import harness
import megatron_like as ml
import runner

SHAPE = ml.Shape(layers=3, hidden=64, ffn=200, heads=4, kv_heads=2, head_dim=16, vocab=96)
PICTURES = ["overlap", "statistics", "histograms-2", "timeline", "throughput"]


@pytest.fixture(scope="module")
def dense(module_scratch):
    return ml.save(ml.dense_model(SHAPE), SHAPE, module_scratch / "dense", 2, 1)


def make(folder, dense, name="Mixtral-out", **how):
    return harness.convert(folder, dense, name=name, np=3, model__vocab_size=SHAPE.vocab, **how)


def report(out, page, *options):
    return runner.run([sys.executable, runner.ROOT / "tools" / "report", out, "-o", page, *options])


def outcomes(page):
    text = page.read_text()
    return re.findall(r'<tr><td class="(pass|fail|none)">', text)


@pytest.mark.parametrize(
    "how",
    [
        {},
        dict(target__format="hdf5", target__compression="deflate", upcycle__shuffle=True),
        dict(upcycle__index_sets="independent", upcycle__ratio=0.3),
    ],
    ids=["moe-recipes", "hdf5", "independent"],
)
def test_all_checks_pass(scratch, dense, how):
    result = report(make(scratch, dense, **how), scratch / "page.html", "--layer", "2")
    assert result.status == 0 and "11 checks, 0 failed" in result.out, str(result)
    assert outcomes(scratch / "page.html") == ["pass"] * 11
    text = (scratch / "page.html").read_text()
    assert re.findall(r'<figure id="([\w-]+)">', text) == PICTURES
    assert not re.search(r'(src|href)="(?!data:)', text), "the page is self-contained"


def test_a_run_without_experts(scratch, dense):
    config = runner.write_config(
        scratch / "run.yaml", dense, scratch / "out", mode="reshard", upcycle=None,
        target__format="huggingface", model__vocab_size=SHAPE.vocab,
    )
    assert runner.upcycle(config).status == 0
    result = report(scratch / "out", scratch / "page.html")
    assert result.status == 0 and outcomes(scratch / "page.html") == ["pass"] * 3, str(result)


def test_damage_is_seen(scratch, dense):
    out = make(scratch, dense)
    name = harness.EXPERT % (0, 0, "w1")
    weights = out / harness.read_index(out)[name]
    content = bytearray(weights.read_bytes())
    size = int.from_bytes(content[:8], "little")
    at = 8 + size + json.loads(content[8 : 8 + size])[name]["data_offsets"][0]
    content[at] ^= 1
    weights.write_bytes(content)
    result = report(out, scratch / "page.html")
    assert result.status == 1 and "failed: the output's CRC-32s are the ledger's" in result.out, str(result)
    with h5py.File(out / runner.LEDGER, "r+") as ledger:
        ledger["experts/overlap"][1, 0, 1] = 0.9
    result = report(out, scratch / "page.html")
    assert "failed: experts share 1 - r of what they keep" in result.out, str(result)


def test_a_check_of_nothing_fails():
    sys.path.insert(0, str(runner.ROOT / "tools" / "report"))
    import checks

    assert checks.judge("all are right", np.bool_(True), "0 differ")[1] is False
    assert checks.judge("all are right", np.bool_(True), "0 differ", 0)[1] is False
    assert checks.judge("all are right", np.bool_(True), "0 differ", 3)[1] is True
    assert checks.judge("all are right", None, "no weights")[1] is None


def test_text_of_files_is_no_markup(scratch, dense):
    out = make(scratch, dense, upcycle__method="naive")
    wild = "</td><script>alert(1)</script>\x1b[2J\u009b1m\u202e\u2066"
    with h5py.File(out / runner.LEDGER, "r+") as ledger:
        for name in ("run", "sources"):
            content = json.loads(ledger[name][()])
            for part in content if isinstance(content, list) else [content]:
                part.update({"path": wild, "source_format": wild, wild: wild})
            del ledger[name]
            ledger[name] = json.dumps(content)
        del ledger["config"]
        ledger["config"] = wild
    result = report(out, scratch / "page.html")
    assert result.status in (0, 1), str(result)
    text = (scratch / "page.html").read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2066]", text + result.out + result.err)


def cells(text, table):
    """The rows of a table as lists of text."""
    body = re.search(r'<table id="%s">(.*?)</table>' % table, text, re.S).group(1)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in body.split("</tr>") if row]


def test_several_layers_and_what_was_expected(scratch, dense):
    """One output, and ways to ask for it that are wrong: one line each."""
    out, page = make(scratch, dense), scratch / "page.html"
    result = report(out, page, "--layer", "0", "--layer", "2")
    assert result.status == 0 and "14 checks, 0 failed" in result.out, str(result)
    text = page.read_text()
    assert re.findall(r'<figure id="histograms-(\d+)">', text) == ["0", "2"]
    paths = dict(cells(text, "paths"))
    assert paths["target"] == str(out.resolve()) and str(dense) in paths["source"]
    found = {row[0]: row[1:] for row in cells(text, "expected")}
    assert found["share of neurons kept"] == ["0.5000", "0.5000"]
    for layer in (0, 2):
        expected, measured = found["cosine of two experts, layer %d" % layer]
        assert expected == "(1 - r)^2 = 0.2500"
        assert abs(float(measured.split("mean ")[1]) - 0.25) < 0.03
        assert [row[0] for row in cells(text, "experts-%d" % layer)[1:]] == [str(e) for e in range(4)]
    assert "not identical to the source" in found["step 0"][0]
    (scratch / "empty").mkdir()
    (scratch / "text").mkdir()
    (scratch / "text" / runner.LEDGER).write_text("no HDF5")
    with h5py.File(scratch / "other.h5", "w") as other:
        other["x"] = 1
    for wrong in (scratch / "nothing", scratch / "empty", scratch / "text", scratch / "other.h5"):
        result = report(wrong, page)
        assert result.status == 1 and len(result.errors()) == 1 and "Traceback" not in result.err, str(result)
        assert str(wrong) in result.errors()[0]
    result = report(out, scratch / "no folder" / "page.html")
    assert result.status == 1 and len(result.errors()) == 1 and "Traceback" not in result.err, str(result)
    result = report(out, page, "--layer", "9")
    assert result.status == 1 and result.errors() == ["tools/report: error: layer 9 has no experts"]


def test_in_a_browser(scratch, dense):
    """A screenshot: every picture is there, and none is blank."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        assert os.environ.get("CI") != "true", "no chromium"
        pytest.skip("no chromium (Debian: apt-get install chromium)")
    page, shot = scratch / "page.html", scratch / "page.png"
    assert report(make(scratch, dense), page, "--layer", "2").status == 0
    # the browser says where the pictures are, and that they could be decoded
    probe = (
        "<script>onload=()=>{document.title=[...document.images].map(i=>[i.naturalWidth,"
        "...['left','top','right','bottom'].map(k=>Math.round(i.getBoundingClientRect()[k]))].join()).join(';')}"
        "</script>"
    )
    page.write_text(page.read_text().replace("</html>", probe + "</html>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--user-data-dir=%s" % (scratch / "profile"), "--window-size=1200,4000"]
    url = page.as_uri()
    dom = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True)
    boxes = re.search(r"<title>([\d,;-]+)</title>", dom.stdout).group(1).split(";")
    assert len(boxes) == len(PICTURES)
    subprocess.run([*command, "--screenshot=%s" % shot, url], capture_output=True, timeout=120, check=True)
    pixels = matplotlib.image.imread(shot)[:, :, :3]
    assert pixels.shape[1] == 1200
    for name, box in zip(PICTURES, boxes):
        natural, left, top, right, bottom = map(int, box.split(","))
        assert natural > 500 and bottom - top > 100, name
        part = pixels[top:bottom, left:right]
        assert part.size and (part < 0.9).any(axis=2).mean() > 0.01, name
        colours = np.unique((part * 15).astype(int).reshape(-1, 3), axis=0)
        assert len(colours) > 8, name  # of axes and letters alone; a short run has few bars
    table = pixels[: int(boxes[0].split(",")[2])]
    green = (table[:, :, 1] > table[:, :, 0] + 0.15) & (table[:, :, 1] > table[:, :, 2] + 0.15)
    assert green.sum() > 100, "the word pass is green"
