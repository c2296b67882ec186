"""Models of transformers' own classes, tiny and with random weights."""

import torch
import transformers

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # tiny models: a second thread only waits
IDS = torch.arange(24).reshape(1, 24) * 7 % 61
SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=64, attn_implementation="eager",
)  # fmt: skip


def logits(lm):
    with torch.no_grad():
        return lm(IDS).logits


def born(kind, sizes):
    """A real model of class KIND; norms, biases and selection biases are not what they are born as."""
    torch.manual_seed(2)
    config = getattr(transformers, kind + "Config")(**sizes)
    lm = getattr(transformers, kind + "ForCausalLM")(config).to(torch.float32).eval()
    buffers = [b for name, b in lm.named_buffers() if "correction" in name]
    with torch.no_grad():
        for p in [*lm.parameters(), *buffers]:
            p.add_(torch.randn_like(p) * 0.15)
    return lm


def load(folder):
    """What from_pretrained makes of a folder, with nothing missing and nothing left over."""
    lm, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return lm.eval()
