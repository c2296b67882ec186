"""usage: python3 -m mgr.experts MIXTURE --keep N [--by SCORE] -o experts.json

Which N experts of each layer have the highest score, as the list that mgr-upcycle takes by 'upcycle.experts_file'.
The scores need no data:

  router-sum    the sum of the router's row of the expert
  router-norm   its Euclidean norm
  ffn-norm      the Frobenius norm of the expert's gate and up (default)

MIXTURE is a checkpoint in any format that this library reads. Scores of data (REAP and kin) are made where the data
is; a file of the same form takes their lists.
"""

import argparse
import json
import re
import sys

import numpy

import mgr

ROUTER = re.compile(r"layers\.(\d+)\.(?:mlp|block_sparse_moe)\.(?:gate|router\.layer)\.weight$")
EXPERT = re.compile(r"layers\.(\d+)\..*experts\.(\d+)\.(?:gate_proj|up_proj|w1|w3)\.weight$")
BY = ("router-sum", "router-norm", "ffn-norm")


def _rows(tensor):
    return numpy.asarray(tensor[:], dtype=numpy.float64)


def scores(checkpoint, by):
    """{layer: [one for each expert]}"""
    found, squares = {}, {}
    for name, tensor in checkpoint.items():
        router, expert = ROUTER.search(name), EXPERT.search(name)
        if router and by == "router-sum":
            found[int(router[1])] = _rows(tensor).sum(axis=1)
        elif router and by == "router-norm":
            found[int(router[1])] = numpy.linalg.norm(_rows(tensor), axis=1)
        elif expert and by == "ffn-norm":
            layer = squares.setdefault(int(expert[1]), {})
            layer[int(expert[2])] = layer.get(int(expert[2]), 0.0) + numpy.square(_rows(tensor)).sum()
    for layer, of in squares.items():
        found[layer] = numpy.sqrt([of[e] for e in range(len(of))])
    return found


def best(checkpoint, keep, by="ffn-norm"):
    """For each layer with experts the numbers of the `keep` best, ascending; of equal ones the first."""
    lists = []
    for layer, values in sorted(scores(checkpoint, by).items()):
        if not 0 < keep <= len(values):
            raise ValueError("layer %d has %d experts, of which %d cannot be kept" % (layer, len(values), keep))
        lists.append(sorted(numpy.argsort(-numpy.asarray(values), kind="stable")[:keep].tolist()))
    if not lists:
        raise ValueError("this is no mixture of experts")
    return lists


def main(words=None):
    parser = argparse.ArgumentParser(prog="python3 -m mgr.experts", description="The best experts of each layer, by a score.")
    parser.add_argument("mixture")
    parser.add_argument("--keep", type=int, required=True)
    parser.add_argument("--by", choices=BY, default="ffn-norm")
    parser.add_argument("-o", "--output", required=True)
    given = parser.parse_args(words)
    try:
        with mgr.open(given.mixture) as checkpoint:
            lists = best(checkpoint, given.keep, given.by)
        with open(given.output, "w") as file:
            json.dump({"by": given.by, "experts": lists}, file)
    except (mgr.Error, ValueError, OSError) as error:
        print("mgr.experts: error: %s" % error, file=sys.stderr)
        return 65
    return 0


if __name__ == "__main__":
    sys.exit(main())
