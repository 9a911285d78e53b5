"""Small models of transformers from configurations, random weights: one of each way to write a norm."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from .foreign import library

_DECODER = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "use_cache": False,
}  # fmt: skip
_T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0,
       "decoder_start_token_id": 0}  # fmt: skip
_SPEECH = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "conv_dim": (16, 16),
    "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "hidden_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "activation_dropout": 0.0,
    "layerdrop": 0.0, "mask_time_prob": 0.0, "apply_spec_augment": False,
}  # fmt: skip
_ENCODER = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_IMAGE = {**_ENCODER, "image_size": 32, "patch_size": 8, "num_channels": 3}
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "num_key_value_heads": 4,
}  # fmt: skip
_MAMBA = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "state_size": 8,
    "n_groups": 2, "chunk_size": 8, "use_cache": False,
}  # fmt: skip
_GEMMA = {"attention_dropout": 0.0, "query_pre_attn_scalar": 8, "sliding_window": 16}

# name -> (folder, class of the model, changes to the configuration's defaults, kind of input)
MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "Llama": ("llama", "LlamaForCausalLM", _DECODER, "tokens"),
    "Qwen2": ("qwen2", "Qwen2ForCausalLM", _DECODER, "tokens"),
    "Qwen3": ("qwen3", "Qwen3ForCausalLM", _DECODER, "tokens"),
    "Mistral": ("mistral", "MistralForCausalLM", _DECODER, "tokens"),
    "Gemma": ("gemma", "GemmaForCausalLM", _DECODER, "tokens"),
    "Gemma2": ("gemma2", "Gemma2ForCausalLM", _DECODER | _GEMMA, "tokens"),
    "Gemma3": ("gemma3", "Gemma3ForCausalLM", _DECODER | _GEMMA, "tokens"),
    "Phi": ("phi", "PhiForCausalLM", _DECODER, "tokens"),
    "Phi3": ("phi3", "Phi3ForCausalLM", _DECODER, "tokens"),
    "Granite": ("granite", "GraniteForCausalLM", _DECODER, "tokens"),
    "Olmo": ("olmo", "OlmoForCausalLM", _DECODER, "tokens"),
    "Olmo2": ("olmo2", "Olmo2ForCausalLM", _DECODER, "tokens"),
    "Cohere": ("cohere", "CohereForCausalLM", _DECODER, "tokens"),
    "DeepseekV3": ("deepseek_v3", "DeepseekV3ForCausalLM", _DECODER | _LATENT, "tokens"),
    "Mamba2": ("mamba2", "Mamba2ForCausalLM", _MAMBA, "tokens"),
    "T5": ("t5", "T5ForConditionalGeneration", _T5, "both"),
    "Bert": ("bert", "BertModel", _ENCODER, "tokens"),
    "Whisper": (
        "whisper", "WhisperModel",
        {"vocab_size": 61, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 8,
         "max_source_positions": 16, "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2, "decoder_start_token_id": 1, "dropout": 0.0},
        "mel",
    ),
    "Wav2Vec2": ("wav2vec2", "Wav2Vec2Model", _SPEECH, "sound"),
    "ViT": ("vit", "ViTModel", _IMAGE, "image"),
    "DINOv2": ("dinov2", "Dinov2Model", _IMAGE, "image"),
    "ConvNeXt": ("convnext", "ConvNextModel", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, "image"),
    "Swin": ("swin", "SwinModel", {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1],
                                   "num_heads": [2, 2], "window_size": 4, "drop_path_rate": 0.0}, "image"),
    "GPT2": (
        "gpt2", "GPT2LMHeadModel",
        {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0,
         "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False},
        "tokens",
    ),
    "Conformer": (
        "wav2vec2_conformer", "Wav2Vec2ConformerModel",
        _SPEECH | {"conformer_conv_dropout": 0.0, "conv_depthwise_kernel_size": 5}, "sound",
    ),
    "MobileViT": (
        "mobilevit", "MobileViTModel",
        {"image_size": 32, "hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [8] * 6 + [16], "num_attention_heads": 2,
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "large image",
    ),
    "DETR": (
        "detr", "DetrModel",
        {"backbone_config": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 8],
                             "depths": [1, 1, 1, 1], "layer_type": "basic", "out_features": ["stage4"]},
         "use_timm_backbone": False, "use_pretrained_backbone": False, "d_model": 16, "encoder_layers": 1,
         "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "num_queries": 4, "dropout": 0.0},
        "large image",
    ),
    "SegFormer": (
        "segformer", "SegformerModel",
        {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16],
         "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0},
        "image",
    ),
}  # fmt: skip


def model_of(name: str, **more: Any) -> nn.Module:
    """The model, in evaluation, with every parameter of a norm away from 1 and 0."""
    library("transformers")
    folder, kind, changes, _ = MODELS[name]
    modeling = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    torch.manual_seed(0)
    config = getattr(modeling, kind).config_class(**(changes | more))
    model: nn.Module = getattr(modeling, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def inputs_of(name: str) -> dict[str, Tensor]:
    """Two samples."""
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 61, (2, 9), generator=random)
    kind = MODELS[name][3]
    if kind in ("tokens", "both"):
        return {"input_ids": tokens, **({"decoder_input_ids": tokens[:, :5]} if kind == "both" else {})}
    if kind == "sound":
        return {"input_values": torch.randn(2, 600, generator=random)}
    if kind == "mel":
        return {"input_features": torch.randn(2, 8, 32, generator=random), "decoder_input_ids": tokens[:, :5]}
    size = 64 if kind == "large image" else 32
    return {"pixel_values": torch.randn(2, 3, size, size, generator=random)}
