"""tools/train/first_steps.py in its short form: what it says of step 0 and of the first steps holds."""

import json
import math
import re
import subprocess
import sys

import pytest

import runner

PAGE = runner.ROOT / "tools" / "docs" / "first-steps.md"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    (said,) = re.findall(r"^    \.venv/bin/python (.*)$", PAGE.read_text(), re.M)  # the documents' command, but for its length
    words = said.replace("first-steps ", "%s " % folder).replace("--minutes 12", "--pretrain 60 --steps 20").split()
    assert "--minutes" not in words and str(folder) in words, said
    done = subprocess.run(
        [sys.executable, *words, "--bin", runner.BIN], capture_output=True, text=True, timeout=1500, cwd=runner.ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "losses.png").stat().st_size > 10000
    assert done.stdout.count("| 0 |") == done.stdout.count("| 20 |") == 1, done.stdout
    return json.loads((folder / "losses.json").read_text())["arms"]


def start(results, name):
    return results[name]["losses"][0][1]


def test_step_0(results):
    """The contract: copies compute the dense model, what is drawn anew costs."""
    dense, scratch = start(results, "dense"), start(results, "from scratch")
    assert dense < math.log(256) - 1  # it has learnt something
    assert abs(start(results, "naive") - dense) < 1e-4
    assert dense + 0.02 < start(results, "drop 0.5") < min(scratch, start(results, "drop 1.0"))
    assert abs(scratch - math.log(256)) < 0.2


def test_twenty_steps_train(results):
    for name, arm in results.items():
        first, last = arm["losses"][0], arm["losses"][-1]
        assert (first[0], last[0]) == (0, 20) and all(math.isfinite(loss) for _, loss in arm["losses"]), name
        if name in ("drop 0.5", "drop 1.0", "from scratch"):
            assert last[1] < first[1] - 0.02, name
        else:  # the rate warms up again, which may cost these a little
            assert last[1] < first[1] + 0.2, name
    assert results["naive"]["losses"][-1][1] < results["from scratch"]["losses"][-1][1]


def test_no_expert_with_old_neurons_is_dead(results):
    """Where all is drawn anew, a router has not found all of them after so few steps."""
    assert results["dense"]["least_used"] is None
    for name in ("naive", "drop 0.5"):
        assert results[name]["least_used"] > 0, name


def test_a_program_that_is_missing_is_said_before_the_training(tmp_path):
    words = [sys.executable, "tools/train/first_steps.py", tmp_path / "out", "--bin", tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=runner.ROOT)
    assert done.returncode == 2 and "no mgr-upcycle in %s" % tmp_path in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()
