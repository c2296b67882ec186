"""Keys and formats as a user meets them: whose a key is, hints that can be followed, a dump that is a configuration."""

import json
import pathlib
import re
import tempfile
import unittest

import runner

MODELS = {
    "dense": [],
    "dense with biases": ["--qkv-bias"],
    "dense with norms and biases": ["--qkv-bias", "--qk-norm"],
    "experts": ["--experts", 2],
    "experts with norms": ["--experts", 2, "--qk-norm"],
    "gelu": ["--activation", "gelu"],
}
FORMATS = ("huggingface", "moe-recipes", "mixtral", "megatron-torch", "megatron-dist", "hdf5", "deepspeed")
HINT = re.compile(r"hint: target formats that hold this model: (.*)")

PRESETS = sorted((pathlib.Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "array": list}


def fits(value, schema):
    """As far as JSON Schema is used here."""
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(isinstance(value, TYPES[n]) and (n == "boolean") == isinstance(value, bool) for n in names):
        return False
    if isinstance(value, str) and "pattern" in schema:
        return bool(re.search(schema["pattern"], value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(fits(each, schema["items"]) for each in value)
    if not isinstance(value, dict) or "properties" not in schema:
        return True
    known = schema["properties"]
    return set(schema["required"]) <= set(value) <= set(known) and all(fits(v, known[k]) for k, v in value.items())


def plain_value(text):
    try:
        return json.loads(text)
    except ValueError:
        return text.strip("'\"")


def plain_yaml(text):
    """The presets' YAML: two levels of scalars, maps of one line, and lists of these."""
    tree, section, name = {}, None, None
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).rstrip()
        if not line:
            continue
        if line.lstrip()[:3] == "- {":
            tree[name] = [*tree[name], plain_yaml(line.lstrip()[3:].rstrip("}").replace(", ", "\n"))]
            continue
        key, value = (part.strip() for part in line.split(":", 1))
        if not value:
            name, section = key, tree.setdefault(key, {})
            continue
        if value[0] == "{":
            value = plain_yaml(value.strip("{}").replace(", ", "\n"))
        else:
            value = plain_value(value)
        (section if line[0] == " " else tree)[key] = value
    return tree


class Keys(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.place = pathlib.Path(folder.name)

    def synth(self, format_name, words):
        sizes = ["--layers", 1, "--hidden", 16, "--ffn", 32, "--heads", 2, "--vocab", 8]
        out = ["-q", "--force", self.place / "made"]
        return runner.run([runner.program("mgr-synth"), *sizes, *words, "--format", format_name, *out])

    def reshard(self, source, format_name, **changes):
        target = self.place / ("Mixtral-" + format_name)
        config = runner.write_config(
            self.place / "run.yaml", source, target, mode="reshard", target__format=format_name, **changes
        )
        return runner.upcycle(config, np=1, options=["--dry-run"])

    def test_the_schema(self):
        result = runner.run([runner.program("mgr-upcycle"), "--schema"])
        self.assertEqual((result.status, result.err), (0, ""), str(result))
        schema = json.loads(result.out)
        schema["properties"]["sources"]["items"]["anyOf"][1] = schema["properties"]["source"]
        self.assertGreater(len(PRESETS), 3)
        for preset in PRESETS:
            tree = plain_yaml(preset.read_text())
            self.assertTrue(fits(tree, schema), preset)
            for section, key, value in (
                ("target", "formt", "hdf5"), ("target", "format", "no-such"), ("target", "sha256", "yes"),
                ("source", "path", 3), ("model", "num_layers", -1), ("source", "iteration", "soon"),
            ):
                wrong = {**tree, section: {**tree.get(section, {}), key: value}}
                self.assertFalse(fits(wrong, schema), (section, key, value))
            self.assertFalse(fits({**tree, "memory_per_rank": "2G"}, schema))
            self.assertFalse(fits({k: v for k, v in tree.items() if k != "target"}, schema))

    def test_presets_say_what_they_keep(self):
        """Each names what it is from, and what it says of step 0 is what the program says of a small model."""
        self.synth("huggingface", ["--layers", 2, "--heads", 8, "--ffn", 64])
        tried = 0
        for preset in PRESETS:
            text = preset.read_text()
            if preset.stem in ("quickstart", "reshard", "t5-to-switch"):  # tools/docs, and interop.t5
                continue
            said = re.search(r"^# At step 0: (.*)", text, re.M)
            self.assertTrue(said and re.search(r"arXiv|Marco-MoE/README|8x3.7B|Llama-3-8B", text), preset)
            small = re.sub(r"(path: )/scratch/llm/[^,} \n]*", rf"\g<1>{self.place}/made", text)
            small = re.sub(rf"(\ntarget:.*?path: ){self.place}/made", rf"\g<1>{self.place}/Mixtral", small, flags=re.S)
            small = re.sub(r"\n +(vocab_size|rotary_base|iteration): .*", "", small).replace("expert_width: 2560", "expert_width: 20")
            small = re.sub(r"\nmodel:\n(?! )", "\n", small)
            config = self.place / "preset.yaml"
            config.write_text(small)
            result = runner.upcycle(config, np=1, options=["--dry-run"])
            self.assertEqual(result.status, 0, f"{preset} {result}")
            same = re.search(r"^step 0 +identical", result.out, re.M) is not None
            self.assertEqual(same, said[1] == "the dense model, to rounding.", f"{preset} {result}")
            tried += 1
        self.assertGreaterEqual(tried, 18)

    def test_hints_name_formats_that_take_the_model(self):
        refused = 0
        for name, words in MODELS.items():
            status = {f: self.synth(f, words) for f in FORMATS}
            taken = [f for f in FORMATS if status[f].status == 0]
            self.assertTrue(taken, name)
            for format_name in set(FORMATS) - set(taken):
                with self.subTest(model=name, format=format_name):
                    refused += 1
                    if "choose target format 'huggingface'" in status[format_name].err:
                        self.assertIn("huggingface", taken)
                        continue
                    hint = HINT.search(status[format_name].err)
                    self.assertTrue(hint, str(status[format_name]))
                    self.assertEqual(hint[1].split(", "), taken)
        self.assertGreater(refused, 10)

    def test_a_hint_of_a_run_can_be_followed(self):
        source = runner.synth(self.place / "dense")
        first = self.reshard(source, "moe-recipes")
        self.assertEqual(first.status, runner.CONFIG, str(first))
        for format_name in HINT.search(first.err)[1].split(", "):
            result = self.reshard(source, format_name)
            self.assertEqual(result.status, 0, str(result))

    def test_a_wrong_key_is_no_reason_for_another_format(self):
        source = runner.synth(self.place / "dense")
        result = self.reshard(source, "huggingface", target__expert_parallel=2)
        self.assertEqual(result.status, runner.CONFIG, str(result))
        self.assertNotIn("hint", result.err)

    def test_the_manifest_has_a_configuration(self):
        source = runner.synth(self.place / "dense")
        for number, changes in enumerate(
            (
                {"target__format": "mixtral", "upcycle__method": "noise", "upcycle__router": "normal"},
                {"mode": "reshard", "target__format": "megatron-dist", "target__tensor_parallel": 2},
            )
        ):
            first, second = (self.place / ("Mixtral-%d%s" % (number, part)) for part in "ab")
            config = runner.write_config(self.place / "run.yaml", source, first, **changes)
            result = runner.upcycle(config)
            self.assertEqual(result.status, 0, str(result))
            dump = json.loads((first / runner.MANIFEST).read_text())["config"]
            self.assertEqual("upcycle:" in dump, "mode" not in changes)
            self.assertNotIn("compression", dump)
            self.assertIn("format: megatron-torch", dump)  # what was found
            again = self.place / "again.yaml"
            again.write_text(dump)
            result = runner.upcycle(again, options=["--set", "target.path=%s" % second])
            self.assertEqual(result.status, 0, str(result))
            self.assertEqual(runner.hashes(first), runner.hashes(second))

    def test_a_key_that_the_found_format_does_not_have(self):
        self.assertEqual(self.synth("huggingface", []).status, 0)
        source = self.place / "made"
        config = runner.write_config(
            self.place / "run.yaml", source, self.place / "x", source__iteration=100, mode="reshard"
        )
        for np in (1, 2):
            result = runner.upcycle(config, np=np)
            self.assertEqual((result.status, len(result.errors())), (runner.CONFIG, 1), str(result))
            self.assertIn("run.yaml:4:3: 'source.iteration' is for source format", result.err)
            self.assertIn("'source.format' is 'huggingface'", result.err)

    def test_a_name_of_the_hub(self):
        config = runner.write_config(self.place / "run.yaml", "nobody/no-model-7b", self.place / "x")
        result = runner.upcycle(config, np=1)
        self.assertEqual(result.status, runner.NO_INPUT, str(result))
        self.assertIn("hf download nobody/no-model-7b --local-dir", result.err)


if __name__ == "__main__":
    unittest.main()
