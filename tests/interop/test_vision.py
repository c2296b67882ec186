"""Vision-language models of transformers' own classes, as save_pretrained writes them: the vision tower and what
leads from it pass through unread, the text decoder is upcycled, and the class that holds the result computes the
dense model's logits for text and for an image."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import each_expert
import harness
import runner
import test_families as families
import test_passed as passed

torch.set_num_threads(1)  # tiny models: a second thread only waits
transformers.utils.logging.set_verbosity_error()
IMAGE = 60  # the token that stands for a piece of an image
TEXT = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
TOWER = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=4)
BLOCKS = dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, out_hidden_size=32)
MROPE = dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1]))
LFM2 = dict(TEXT, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
NOISE = torch.Generator().manual_seed(7)
PATCHES = dict(pixel_values=torch.randn(16, 3 * 2 * 4 * 4, generator=NOISE), image_grid_thw=torch.tensor([[1, 4, 4]]))
PIXELS = dict(pixel_values=torch.randn(1, 3, 16, 16, generator=NOISE))
NAFLEX = dict(
    pixel_values=torch.randn(1, 16, 3 * 4 * 4, generator=NOISE), spatial_shapes=torch.tensor([[4, 4]]),
    pixel_attention_mask=torch.ones(1, 16, dtype=torch.long),
)  # fmt: skip


def config(kind, text, vision, **options):
    """`text` is a config of the decoder's own class, or the words of the one class that there is for it."""
    return getattr(transformers, kind + "Config")(text_config=text, vision_config=vision, **options)


def of(kind, **words):
    return getattr(transformers, kind + "Config")(**words)


def siglip():
    return of("SiglipVision", **TOWER, image_size=16)


# How each is made, and what an image is to it: its inputs, and so many tokens.
MODELS = {
    "Qwen3VL": (lambda: config("Qwen3VL", dict(TEXT, head_dim=8, **MROPE),
        dict(BLOCKS, num_position_embeddings=16, deepstack_visual_indexes=[0]), image_token_id=IMAGE,
        video_token_id=61, vision_start_token_id=62, vision_end_token_id=63), PATCHES, 4),
    "Lfm2Vl": (lambda: config("Lfm2Vl", of("Lfm2", **LFM2), of("Siglip2Vision", **TOWER, num_patches=16),
        image_token_id=IMAGE, downsample_factor=2, projector_hidden_size=24), NAFLEX, 4),
    "Cohere2Vision": (lambda: config("Cohere2Vision", of("Cohere2", **TEXT, head_dim=8, sliding_window=4), siglip(),
        image_token_id=IMAGE, downsample_factor=2, alignment_intermediate_size=24), PIXELS, 4),
    # classes that take any decoder, here of the families that have a row in the program's table
    "Llava": (lambda: config("Llava", of("Llama", **TEXT), of("CLIPVision", **TOWER, image_size=16),
        image_token_index=IMAGE, vision_feature_layer=-1), PIXELS, 16),
    "InternVL": (lambda: config("InternVL", of("Qwen3", **TEXT, head_dim=8), dict(TOWER, image_size=[16, 16],
        patch_size=[4, 4]), image_token_id=IMAGE, image_seq_length=4), PIXELS, 4),
    "Idefics3": (lambda: config("Idefics3", of("Mistral", **TEXT, sliding_window=None), dict(TOWER, image_size=16),
        scale_factor=2, image_token_id=IMAGE, tie_word_embeddings=True), dict(pixel_values=PIXELS["pixel_values"][None]), 4),
}  # fmt: skip
MIXTURES = dict(zip(MODELS, ("qwen3_vl_moe_text", "lfm2_moe", "cohere2_moe", "mixtral", "qwen3_moe", "mixtral")))
OTHERS = {  # resharded alone
    "Gemma3": lambda: config("Gemma3", dict(TEXT, head_dim=8, sliding_window=4), dict(TOWER, image_size=16,
        model_type="siglip_vision_model"), mm_tokens_per_image=4),
    "Qwen2_5_VL": lambda: config("Qwen2_5_VL", dict(TEXT, **MROPE), dict(BLOCKS, window_size=16)),
    "Glm4v": lambda: config("Glm4v", dict(TEXT, **MROPE), dict(BLOCKS, image_size=16)),
    "Qwen3VLMoe": lambda: config("Qwen3VLMoe", dict(TEXT, head_dim=8, num_experts=4, moe_intermediate_size=20,
        num_experts_per_tok=2, **MROPE), dict(BLOCKS, num_position_embeddings=16, deepstack_visual_indexes=[0])),
}  # fmt: skip


def born(kind, made, folder):
    torch.manual_seed(4)
    model = getattr(transformers, kind + "ForConditionalGeneration")(made).to(torch.float32).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder)
    return model


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(folder):
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def logits(model, kind, image=True):
    inputs, tokens = MODELS[kind][1:]
    ids = families.IDS % 60
    ids[0, 3 : 3 + tokens] = IMAGE if image else 5
    inputs = dict(inputs, mm_token_type_ids=(ids == IMAGE).int()) if kind == "Qwen3VL" else inputs
    with torch.no_grad():
        return model(input_ids=ids, **(inputs if image else {})).logits


@pytest.mark.parametrize("kind", MODELS)
def test_the_decoder_becomes_a_mixture(scratch, kind):
    """Naive experts compute the dense logits, each of them counts, and all else is the source's, bit for bit."""
    dense = born(kind, MODELS[kind][0](), scratch / "a")
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        (scratch / "a" / name).write_text('{"size": 16}')
    families.convert(scratch, scratch / "a", "out", **passed.NAIVE)
    moe = load(scratch / "out")
    assert moe.config.text_config.model_type == MIXTURES[kind]
    for image in (False, True):
        wanted = logits(dense, kind, image)
        assert harness.relative_difference(logits(moe, kind, image), wanted) < 1e-5, image
    assert (logits(dense, kind) - logits(dense, kind, False)).abs().max() > 1e-2  # the image is seen
    each_expert.check(lambda: logits(moe, kind), each_expert.of_transformers(moe))
    before, after = families.tensors(scratch / "a"), families.tensors(scratch / "out")
    kept = [name for name in after if ".experts." not in name and not name.endswith("gate.weight")]
    assert len(kept) == len(before) - 3 * TEXT["num_hidden_layers"]
    assert all(harness.same_bits(after[name], before[name]) for name in kept)
    was, now = passed.config(scratch / "a"), passed.config(scratch / "out")
    assert {k: v for k, v in was.items() if k in now and "token" in k}.items() <= now.items()
    assert {k: v for k, v in was["vision_config"].items() if k != "model_type"}.items() <= now["vision_config"].items()
    assert was["text_config"].keys() <= now["text_config"].keys()
    assert now["text_config"].get("sliding_window") == was["text_config"].get("sliding_window")
    assert (scratch / "out" / "preprocessor_config.json").read_text() == '{"size": 16}'
    assert "AutoModelForImageTextToText" in (scratch / "out" / runner.MANIFEST).read_text()


@pytest.mark.parametrize("kind", OTHERS)
def test_there_and_back(scratch, kind):
    born(kind, OTHERS[kind](), scratch / "a")
    passed.there_and_back(scratch, scratch / "a")


def test_a_mixture_inside_a_class_that_takes_any(scratch):
    """Back bit for bit, over two expert-parallel ranks, too; and a mixture of twice the experts is made of it."""
    mixtral = of("Mixtral", **TEXT, head_dim=8, num_local_experts=4)
    made = config("Llava", mixtral, of("CLIPVision", **TOWER, image_size=16), image_token_index=IMAGE,
        vision_feature_layer=-1)  # fmt: skip
    small = born("Llava", made, scratch / "a")
    passed.there_and_back(scratch, scratch / "a")
    passed.reshard(scratch, scratch / "a", "ep", target__format="huggingface", target__expert_parallel=2)
    families.same_tensors(scratch / "a", scratch / "ep")
    more = families.convert(scratch, scratch / "h5", "more", **passed.NAIVE, upcycle__experts=8, upcycle__top_k=4)
    wanted = logits(small, "Llava")
    assert harness.relative_difference(logits(load(more), "Llava"), wanted) < 1e-5


def test_by_hdf5_and_by_drop(scratch):
    """The same mixture of an HDF5 checkpoint; drop redraws its neurons alone; ranks change no byte."""
    source, drop = scratch / "a", dict(upcycle__ratio=0.5)
    born("Qwen3VL", MODELS["Qwen3VL"][0](), source)
    passed.reshard(scratch, source, "h5", target__format="hdf5")
    naive = families.tensors(families.convert(scratch, source, "naive", **passed.NAIVE))
    made = families.convert(scratch, source, "drop", **drop)
    dropped = families.tensors(made)
    for name in naive:
        differs = naive[name] != dropped[name]
        if name.endswith("down_proj"):
            assert (differs.any(dim=1).sum(dim=1) == TEXT["intermediate_size"] // 2).all(), name
        elif ".experts." not in name:
            assert not differs.any(), name
    families.convert(scratch, scratch / "h5", "by-h5", **drop)
    families.same_tensors(made, scratch / "by-h5")
    file = runner.write_config(
        scratch / "run.yaml", source, scratch / "three", target__format="huggingface", target__dtype="source", **drop
    )
    result = runner.upcycle(file, np=3, options=("--unit-bytes", "1024"))
    assert result.status == 0, str(result)
    families.same_tensors(made, scratch / "three")


def test_what_no_class_holds(scratch):
    source = scratch / "a"
    born("Gemma3", OTHERS["Gemma3"](), source)
    passed.refused(scratch, source, "no class of transformers is known", "mode: reshard", **passed.NAIVE)
    passed.refused(scratch, source, "passed through unread", **passed.RESHARD, target__format="megatron-dist")
    other = scratch / "b"  # a host that is not known to take any decoder
    born("Lfm2Vl", MODELS["Lfm2Vl"][0](), other)
    llava = scratch / "c"  # whose decoder has a row
    born("Llava", MODELS["Llava"][0](), llava)
    for target in ("megatron-torch", "mixtral", "moe-recipes"):
        passed.refused(scratch, llava, "a vision tower beside its text decoder", **passed.NAIVE, target__format=target)
    edit(llava, text_config=dict(passed.config(llava)["text_config"], something_new=1))
    passed.refused(scratch, llava, "text_config.something_new", "source.unknown", **passed.NAIVE)
    edit(other, model_type="someones_vl")
    passed.refused(scratch, other, "no class of transformers is known", **passed.NAIVE)
    families.convert(scratch, other, "named", **passed.NAIVE, target__class="lfm2_moe")
    assert passed.config(scratch / "named")["model_type"] == "someones_vl"


def test_experts_that_lie_transposed(scratch):
    """As the published Qwen3-VL-MoE has them."""
    source = scratch / "a"
    born("Qwen3VLMoe", OTHERS["Qwen3VLMoe"](), source)
    path = source / "model.safetensors"
    turned = {k: v.transpose(1, 2).contiguous() if ".experts." in k else v for k, v in load_file(path).items()}
    save_file(turned, path, metadata={"format": "pt"})
    passed.refused(scratch, source, "layer 0", "transposed", **passed.RESHARD)


def note_class():
    from transformers.models.dots3_note import modeling_dots3_note

    return modeling_dots3_note.Dots3NoteVisionModel


def note_tower(folder, **words):
    """dots3_note's vision encoder by itself, dense unless told otherwise; what is no matrix is not at its start."""
    sizes = dict(hidden_size=64, intermediate_size=96, moe_intermediate_size=96, num_hidden_layers=4, patch_size=4)
    sizes |= dict(num_attention_heads=4, adapter_in_dim=64, adapter_out_dim=32)
    torch.manual_seed(3)
    tower = note_class()(of("Dots3NoteVision", **{"mlp_layer_types": ["dense"] * 4, **sizes, **words}))
    with torch.no_grad():
        for p in tower.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    tower.save_pretrained(folder)
    return folder


def seen(folder):
    tower, info = note_class().from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return tower.eval()


def test_a_tower_of_experts(scratch):
    """dots3_note's blocks become its own routed ones, a list says which: naive copies are the dense tower, each
    expert counts, and the mixture is resharded bit for bit. Biases of the choice are 0."""
    source, image = note_tower(scratch / "a"), torch.randn(64, 3 * 4 * 4, generator=NOISE)
    grid = torch.tensor([[1, 8, 8]])
    made = families.convert(scratch, source, "out", **passed.NAIVE, upcycle__moe_layer_freq="last-half")
    assert passed.config(made)["mlp_layer_types"] == ["dense", "dense", "sparse", "sparse"]
    towers = seen(source), seen(made)

    def compute(tower):
        with torch.no_grad():
            return tower(image, grid_thw=grid).pooler_output

    assert harness.relative_difference(compute(towers[1]), compute(towers[0])) < 1e-5
    each_expert.check(lambda: compute(towers[1]), each_expert.of_transformers(towers[1]))
    tensors = families.tensors(made)
    assert not tensors["blocks.3.mlp.router_bias"].any() and "blocks.1.mlp.router_bias" not in tensors
    passed.there_and_back(scratch, made)
    odd = note_tower(scratch / "odd", mlp_layer_types=["dense", "sparse"] * 2, num_local_experts=8, num_experts_per_tok=2)
    passed.refused(scratch, odd, "a mixture of experts of which all but the experts is passed",
        **{**passed.NAIVE, "upcycle__experts": 16, "upcycle__top_k": 4})  # fmt: skip
