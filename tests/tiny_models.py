"""Tiny checkpoints with the keys, dtypes and containers of the published ones, for the tests.

They are made by independent code where there is some: MERT and CLAP by transformers, whose modules
have the published names. Every tensor is random, so that none can be mixed up with another.

`python tests/tiny_models.py FOLDER` writes one of each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import torch

Container = Literal["wrapped", "bare", "backbone"]

TINY_MERT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "layer_norm_eps": 1e-5,
}
BASE_95M: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "conv_dim": [512] * 7,
    "layer_norm_eps": 1e-5,
}
TINY_JMLA = {"width": 64, "depth": 2, "heads": 4, "feedforward": 96}

# What a published config.json has beside a HuBERT's sizes.
MERT_EXTRAS: dict[str, Any] = {
    "_name_or_path": "m-a-p/MERT-v1-95M",
    "architectures": ["MERTModel"],
    "auto_map": {"AutoModel": "modeling_MERT.MERTModel"},
    "model_type": "mert_model",
    "attention_relax": -1.0,
    "deepnorm": False,
    "feature_extractor_cqt": False,
    "feature_extractor_cqt_bins": 336,
    "sample_rate": 24000,
    "tokenizer_class": "Wav2Vec2CTCTokenizer",
    "torch_dtype": "float32",
    "transformers_version": "4.24.0",
}


def hubert(sizes: dict[str, Any], stable: bool, seed: int = 0) -> Any:
    """Return transformers' HubertModel with random weights, eager attention, in evaluation."""
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        **sizes, do_stable_layer_norm=stable, feat_extract_norm="group", conv_bias=False
    )
    config._attn_implementation = "eager"
    with torch.device("meta"):  # which saves the time to fill it twice
        model: Any = HubertModel(config)
    model.to_empty(device="cpu").eval().requires_grad_(False)
    randomise(model, seed)
    return model


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fill every parameter: norms and the gain of weight norm around 1, the rest around 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        spread = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        around = 1.0 if name.lower().endswith(("norm.weight", "original0")) else 0.0
        around = 2.7 if "logit_scale" in name else around
        parameter.data.copy_(around + spread * noise)


def mert_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a HubertModel under the names of the published checkpoint."""
    modern = "encoder.pos_conv_embed.conv.parametrizations.weight.original"
    published = {f"{modern}0": "weight_g", f"{modern}1": "weight_v"}
    return {
        f"encoder.pos_conv_embed.conv.{published[name]}" if name in published else name: tensor
        for name, tensor in model.state_dict().items()
    }


def write_tiny_mert(folder: Path, stable: bool = False, seed: int = 0) -> Any:
    """Write config.json and pytorch_model.bin of a tiny MERT; return the HubertModel of it."""
    model = hubert(TINY_MERT, stable, seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict() | MERT_EXTRAS
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    torch.save(mert_tensors(model), folder / "pytorch_model.bin")
    return model


def jmla_tensors(sizes: dict[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random tensors under the published names, of the sizes given."""
    width, wide = sizes["width"], sizes["feedforward"]
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 936, width),
        "patch_embed.projection.weight": (width, 3, 16, 16),
        "patch_embed.projection.bias": (width,),
    }
    for i in range(sizes["depth"]):
        for norm in ("ln1", "ln2"):
            shapes[f"layers.{i}.{norm}.weight"] = shapes[f"layers.{i}.{norm}.bias"] = (width,)
        dense: dict[str, tuple[int, ...]] = {"attn.qkv": (3 * width, width)}
        dense |= {"attn.proj": (width, width)}
        dense |= {"ffn.layers.0.0": (wide, width), "ffn.layers.1": (width, wide)}
        for name, shape in dense.items():
            shapes[f"layers.{i}.{name}.weight"] = shape
            shapes[f"layers.{i}.{name}.bias"] = shape[:1]
    shapes["ln1.weight"] = shapes["ln1.bias"] = (width,)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        spread = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        around = 1.0 if name.endswith(("ln1.weight", "ln2.weight")) else 0.0
        tensors[name] = around + spread * torch.randn(shape, generator=generator)
    return tensors


def write_tiny_jmla(
    folder: Path, container: Container = "wrapped", seed: int = 0
) -> dict[str, torch.Tensor]:
    """Write epoch_20.pth, and config.json for its sizes; return the tensors."""
    tensors = jmla_tensors(TINY_JMLA, seed)
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = dict(tensors)
    if container == "backbone":
        content = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    if container != "bare":
        content = {"state_dict": content, "author": "MMSelfSup"}
    torch.save(content, folder / "epoch_20.pth")
    (folder / "config.json").write_text(json.dumps(TINY_JMLA), encoding="utf-8")
    return tensors


def write_tiny_clap(folder: Path, seed: int = 0) -> Any:
    """Write a tiny CLAP as the hub has it, tokenizer included; return the ClapModel of it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import (
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        RobertaTokenizerFast,
    )

    folder.mkdir(parents=True, exist_ok=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        ["This is a rock song."], vocab_size=270, special_tokens=special, show_progress=False
    )
    trainer.save_model(str(folder))  # vocab.json, merges.txt
    tokenizer = RobertaTokenizerFast.from_pretrained(folder, model_max_length=64)
    tokenizer.save_pretrained(folder)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 66,
        "projection_dim": 16,
    }
    audio = {
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "projection_dim": 16,
        "enable_fusion": False,
    }
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
    model: Any = ClapModel(config)
    model.eval().requires_grad_(False)
    randomise(model, seed)
    config.save_pretrained(folder)
    ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50).save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_tiny_mert(target / "mert-95m")
    write_tiny_mert(target / "mert-330m", stable=True)
    write_tiny_jmla(target / "jmla")
    write_tiny_clap(target / "clap")
