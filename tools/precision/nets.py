"""The healthy nets, how each was made, and which of them are set aside.

settled   random weights of a fixed seed; gamma of 0.5 to 1.5, beta of deviation 0.2 (a gamma that is 0 throughout stays
          so: a residual branch that begins at 0); counters at 1,000; statistics of one pass of nk.recalibrate over 8
          batches. The doctor sees 6 other batches of the same kind.
trained   by SGD on handwritten digits, its rate falling to 0, statistics as training left them.
shipped   a trained network inside a package, as it is: its state alone, since its data are not at hand.
adapted   a shipped one with the statistics of the data here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from tests.surgery.foreign import crepe, imagenet_mobilenet_v2, library, torchvision_model
from torch import Tensor, nn

import normkit as nk

from . import small
from .sources import BATCHES, SETTLING, clips, crops, digits, sounds, tokens

Batches = list[Tensor]
Data = Callable[[int, int], Batches]  # (seed, count) -> batches


@dataclass(frozen=True)
class Net:
    """name; make() -> a new model; data: None for a net of which only the state is judged; how: see above."""

    name: str
    make: Callable[[], nn.Module]
    data: Data | None
    how: str = "settled"

    @property
    def aside(self) -> bool:
        return self.name in ASIDE

    def healthy(self) -> nn.Module:
        """The model in evaluation mode."""
        with torch.random.fork_rng(devices=()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' own
            torch.default_generator.manual_seed(0)
            model = self.make().eval().requires_grad_(True)
        if self.how == "settled":
            stir(model)
        if self.how in ("settled", "adapted") and self.data is not None:
            settle(model, self.data(1, SETTLING))
        return model

    def batches(self) -> Batches | None:
        return None if self.data is None else self.data(2, BATCHES)


def stir(model: nn.Module) -> None:
    """gamma, beta and counters as after a training."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                gamma, beta = (getattr(module, name, None) for name in ("weight", "bias"))
                if isinstance(gamma, nn.Parameter) and bool((gamma != 0).any()):
                    gamma.copy_(torch.rand(gamma.shape, generator=g) + 0.5)
                if isinstance(beta, nn.Parameter):
                    beta.copy_(0.2 * torch.randn(beta.shape, generator=g))
                counter = module._buffers.get("num_batches_tracked")
                if counter is not None:
                    counter.fill_(1000)


def settle(model: nn.Module, batches: Batches) -> None:
    nk.recalibrate(model, batches, progress=False)


def photographs(size: int, batch: int = 8) -> Data:
    return lambda seed, count: crops(size, batch, seed, count=count)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: library("timm").create_model(name, num_classes=10, **options)


def _vision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision_model(name)


def _crepe(frames: int = 32) -> Data:
    return lambda seed, count: sounds(1024, frames, seed, count)


def _digits(seed: int, count: int) -> Batches:
    x, _ = digits()
    return list(x.split(200)[:count])  # so many that little is left open


def _named(how: str, data: Data | None, **nets: Callable[[], nn.Module]) -> list[Net]:
    return [Net(name, make, data, how) for name, make in nets.items()]


NETS: tuple[Net, ...] = (
    *[
        Net(f"torchvision {name}", _vision(name), photographs(size))
        for name, size in {
            "resnet18": 40, "resnet50": 32, "densenet121": 32, "mobilenet_v2": 48, "mobilenet_v3_small": 48,
            "shufflenet_v2_x0_5": 48, "regnet_y_400mf": 48, "mnasnet0_5": 48, "efficientnet_b0": 48, "googlenet": 48,
            "inception_v3": 80, "convnext_tiny": 32, "swin_t": 32, "segmentation.lraspp_mobilenet_v3_large": 48,
            "segmentation.deeplabv3_mobilenet_v3_large": 48,
        }.items()
    ],
    Net("torchvision vgg of 8 layers", small.vgg, photographs(32, 16)),
    Net("torchvision vit of 2 layers", small.vision_transformer, photographs(32)),
    Net("torchvision video.r3d_18", _vision("video.r3d_18"), lambda seed, count: clips(24, 4, seed)[:count]),
    *[
        Net(f"timm {name}", _timm(name), photographs(size))
        for name, size in {
            "test_resnet": 48, "test_byobnet": 48, "test_efficientnet": 48, "test_convnext": 48,
            "test_efficientnet_gn": 48, "tf_efficientnetv2_b0": 48, "regnetx_002": 48, "ghostnet_050": 48,
            "skresnet18": 48, "tinynet_e": 48, "lcnet_050": 48, "repvgg_a0": 48, "mobileone_s0": 48, "dla46_c": 64,
            "hardcorenas_a": 48, "mobilevit_xxs": 64, "rexnet_100": 48, "convnextv2_atto": 48, "selecsls42": 48,
            "ese_vovnet19b_dw": 48,
        }.items()
    ],
    Net("timm test_vit", _timm("test_vit", img_size=64), photographs(64)),
    *[
        Net(f"transformers {name}", make, data)
        for name, (make, data) in {
            "ResNet": (small.hf_resnet, photographs(32, 16)),
            "RegNet": (small.hf_regnet, photographs(32, 16)),
            "CLIP vision": (small.hf_clip, photographs(32)),
            "BERT": (small.hf_bert, lambda seed, count: tokens(200, 16, 8, seed)[:count]),
            "GPT-2": (small.hf_gpt2, lambda seed, count: tokens(200, 16, 8, seed)[:count]),
            "Llama": (small.hf_llama, lambda seed, count: tokens(200, 16, 8, seed)[:count]),
            "Wav2Vec2": (small.hf_wav2vec2, lambda seed, count: sounds(2000, 8, seed, count)),
            "Wav2Vec2-Conformer": (small.hf_conformer, lambda seed, count: sounds(4000, 8, seed, count)),
        }.items()
    ],
    Net("monai UNet", small.monai_unet, photographs(32)),
    Net("monai UNet, batch norm", small.monai_unet_batch, photographs(32)),
    Net("monai SegResNet", small.monai_segresnet, photographs(32)),
    Net("monai DenseNet", small.monai_densenet, photographs(32)),
    Net("digits, convolutions", small.trained(small.digits_net), _digits, "trained"),
    Net("digits, residual", small.trained(small.digits_residual), _digits, "trained"),
    Net("digits, rows", small.trained(small.digits_rows), _digits, "trained"),
    Net("digits, group norm", small.trained(small.digits_group), _digits, "trained"),
    Net("MobileNet-V2 of fdet, as shipped", imagenet_mobilenet_v2, None, "shipped"),
    Net("MobileNet-V2 of fdet, adapted", imagenet_mobilenet_v2, photographs(64), "adapted"),
    Net("CREPE tiny, as shipped", partial(crepe, "tiny"), None, "shipped"),
    Net("CREPE tiny, adapted", partial(crepe, "tiny"), _crepe(), "adapted"),
    Net("CREPE full, as shipped", partial(crepe, "full"), None, "shipped"),
)  # fmt: skip

# a third of the nets, fixed before the first run
ASIDE = frozenset((
    "torchvision shufflenet_v2_x0_5", "torchvision densenet121", "torchvision mnasnet0_5", "torchvision inception_v3",
    "torchvision swin_t", "torchvision segmentation.deeplabv3_mobilenet_v3_large", "timm test_byobnet",
    "timm test_efficientnet_gn", "timm ghostnet_050", "timm tinynet_e", "timm mobileone_s0", "timm mobilevit_xxs",
    "timm selecsls42", "transformers RegNet", "transformers GPT-2", "transformers Wav2Vec2-Conformer",
    "monai UNet, batch norm", "digits, residual", "CREPE tiny, adapted", "CREPE full, as shipped",
))  # fmt: skip

# where faults are planted: small nets, by turns
OPEN_BASES = (
    "torchvision mobilenet_v3_small", "timm test_resnet", "torchvision vgg of 8 layers", "transformers ResNet",
    "digits, convolutions", "timm lcnet_050", "monai DenseNet",
)  # fmt: skip
ASIDE_BASES = ("torchvision shufflenet_v2_x0_5", "timm test_byobnet", "transformers RegNet", "timm tinynet_e")
BY_NAME = {net.name: net for net in NETS}


def net(name: str) -> Net:
    return cast(Net, BY_NAME[name])
