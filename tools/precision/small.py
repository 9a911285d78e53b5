"""Small nets for the table: parts of torchvision, transformers and monai at small sizes, and nets trained on digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.surgery.foreign import library
from torch import Tensor, nn

from .sources import digits

Norm = Callable[[int], nn.Module]
STEPS, BATCH, RATE = 300, 64, 0.1


def vgg() -> nn.Module:
    make_layers = library("torchvision").models.vgg.make_layers
    layers = make_layers([16, "M", 32, 32, "M", 64, 64, "M", 64, 64], batch_norm=True)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def vision_transformer() -> nn.Module:
    return library("torchvision").models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)


def _transformers() -> Any:
    library("torchvision")  # without the operators that do not load beside this torch
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


def hf_resnet() -> nn.Module:
    t = _transformers()
    config = t.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 2, 1], layer_type="basic")
    return t.ResNetModel(config)


def hf_regnet() -> nn.Module:
    t = _transformers()
    config = t.RegNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 2], groups_width=8)
    return t.RegNetModel(config)


def hf_clip() -> nn.Module:
    t = _transformers()
    config = t.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    return t.CLIPVisionModel(config)


def hf_bert() -> nn.Module:
    t = _transformers()
    config = t.BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return t.BertModel(config)


def hf_gpt2() -> nn.Module:
    t = _transformers()
    return t.GPT2Model(t.GPT2Config(vocab_size=200, n_positions=32, n_embd=32, n_layer=2, n_head=2, use_cache=False))


def hf_llama() -> nn.Module:
    t = _transformers()
    config = t.LlamaConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    return t.LlamaModel(config)


def _wav2vec2(config: Any) -> Any:
    return config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16, 16, 16),
        conv_kernel=(10, 3, 2), conv_stride=(5, 2, 2), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip


def hf_wav2vec2() -> nn.Module:
    t = _transformers()
    return t.Wav2Vec2Model(_wav2vec2(t.Wav2Vec2Config))


def hf_conformer() -> nn.Module:
    t = _transformers()
    return t.Wav2Vec2ConformerModel(_wav2vec2(t.Wav2Vec2ConformerConfig))


def _monai() -> Any:
    library("timm")  # torchvision with it, without the operators that do not load beside this torch
    from monai.networks import nets

    return nets


def monai_unet(norm: str = "INSTANCE") -> nn.Module:
    return _monai().UNet(2, 3, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=1, norm=norm)


def monai_unet_batch() -> nn.Module:
    return monai_unet("BATCH")


def monai_segresnet() -> nn.Module:
    return _monai().SegResNet(2, init_filters=8, in_channels=3, out_channels=2, blocks_down=(1, 1), blocks_up=(1,))


def monai_densenet() -> nn.Module:
    return _monai().DenseNet(2, 3, 10, init_features=16, growth_rate=8, block_config=(2, 2, 2))


def _block(inputs: int, outputs: int, stride: int = 1, norm: Norm = nn.BatchNorm2d) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs), nn.ReLU()]


def digits_net(norm: Norm = nn.BatchNorm2d) -> nn.Module:
    blocks = [*_block(1, 16, 1, norm), *_block(16, 32, 2, norm), *_block(32, 32, 1, norm)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def digits_group() -> nn.Module:
    return digits_net(lambda channels: nn.GroupNorm(4, channels))


def digits_rows() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in ((64, 64), (64, 32)):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 10))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)


def digits_residual() -> nn.Module:
    layers = [*_block(1, 16), _Residual(16), *_block(16, 32, 2), _Residual(32)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def trained(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The net, trained on digits with a rate that falls to 0, so that its statistics are those of its last weights."""

    def made() -> nn.Module:
        x, y = digits()
        model, draw = make().train(), torch.Generator().manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=1e-4)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
            chosen = torch.randint(len(x), (BATCH,), generator=draw)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
        return model.eval()

    return made
