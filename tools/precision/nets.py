"""The healthy nets, how each was made, and which of them are set aside.

settled   random weights of a fixed seed; gamma of 0.5 to 1.5, beta of deviation 0.2 (a gamma that is 0 throughout stays
          so: a residual branch that begins at 0); counters at 1,000; statistics of one pass of nk.recalibrate over 8
          batches. The doctor sees 6 other batches of the same kind.
trained   by SGD on handwritten digits, its rate falling to 0, statistics as training left them.
shipped   a trained network inside a package, as it is: its state alone, since its data are not at hand.
adapted   a shipped one with the statistics of the data here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

from tests.surgery.foreign import crepe, imagenet_mobilenet_v2
from torch import nn

from . import small
from .made import Net, crepe_sounds, digits_batches, digits_in, photographs, timm, vision
from .sources import clips, crops, sounds, tokens

NETS: tuple[Net, ...] = (
    *[
        Net(f"torchvision {name}", vision(name), photographs(size))
        for name, size in {
            "resnet18": 40, "resnet50": 32, "densenet121": 32, "mobilenet_v2": 48, "mobilenet_v3_small": 48,
            "shufflenet_v2_x0_5": 48, "regnet_y_400mf": 48, "mnasnet0_5": 48, "efficientnet_b0": 48, "googlenet": 48,
            "inception_v3": 80, "convnext_tiny": 32, "swin_t": 32, "segmentation.lraspp_mobilenet_v3_large": 48,
            "segmentation.deeplabv3_mobilenet_v3_large": 48,
        }.items()
    ],
    Net("torchvision vgg of 8 layers", small.vgg, photographs(32, 16)),
    Net("torchvision vit of 2 layers", small.vision_transformer, photographs(32)),
    Net("torchvision video.r3d_18", vision("video.r3d_18"), lambda seed, count: clips(24, 4, seed)[:count]),
    *[
        Net(f"timm {name}", timm(name), photographs(size))
        for name, size in {
            "test_resnet": 48, "test_byobnet": 48, "test_efficientnet": 48, "test_convnext": 48,
            "test_efficientnet_gn": 48, "tf_efficientnetv2_b0": 48, "regnetx_002": 48, "ghostnet_050": 48,
            "skresnet18": 48, "tinynet_e": 48, "lcnet_050": 48, "repvgg_a0": 48, "mobileone_s0": 48, "dla46_c": 64,
            "hardcorenas_a": 48, "mobilevit_xxs": 64, "rexnet_100": 48, "convnextv2_atto": 48, "selecsls42": 48,
            "ese_vovnet19b_dw": 48,
        }.items()
    ],
    Net("timm test_vit", timm("test_vit", img_size=64), photographs(64)),
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
    Net("digits, convolutions", small.trained(small.digits_net), digits_batches, "trained"),
    Net("digits, residual", small.trained(small.digits_residual), digits_batches, "trained"),
    Net("digits, rows", small.trained(small.digits_rows), digits_batches, "trained"),
    Net("digits, group norm", small.trained(small.digits_group), digits_batches, "trained"),
    Net("MobileNet-V2 of fdet, as shipped", imagenet_mobilenet_v2, None, "shipped"),
    Net("MobileNet-V2 of fdet, adapted", imagenet_mobilenet_v2, photographs(64), "adapted"),
    Net("CREPE tiny, as shipped", partial(crepe, "tiny"), None, "shipped"),
    Net("CREPE tiny, adapted", partial(crepe, "tiny"), crepe_sounds(), "adapted"),
    Net("CREPE full, as shipped", partial(crepe, "full"), None, "shipped"),
)  # fmt: skip

BY_NAME = {net.name: net for net in NETS}


def net(name: str) -> Net:
    return cast(Net, BY_NAME[name])


def _as_seed(one: Net) -> Net:
    return replace(one, name=f"{one.name}, seed 1", seed=1)


def _in_256(name: str, make: Callable[[], nn.Module], size: int) -> Net:
    return Net(f"{name}, batches of 256", make, lambda seed, count: crops(size, 256, seed, count=min(count, 4)))


# the second part: other seeds and large batches; the doctor sees 4 batches of 256
MORE: tuple[Net, ...] = (
    *[
        _as_seed(BY_NAME[name])
        for name in (
            "timm test_resnet", "torchvision mobilenet_v3_small", "transformers ResNet", "monai DenseNet",
            "torchvision vgg of 8 layers", "digits, convolutions", "digits, rows", "timm lcnet_050",
            "timm test_byobnet", "transformers RegNet", "timm tinynet_e", "digits, residual",
            "torchvision shufflenet_v2_x0_5",
        )
    ],
    _in_256("torchvision vgg of 8 layers", small.vgg, 32),
    _in_256("transformers ResNet", small.hf_resnet, 32),
    _in_256("monai DenseNet", small.monai_densenet, 32),
    _in_256("transformers RegNet", small.hf_regnet, 32),
    *[
        replace(BY_NAME[name], name=f"{name}, batches of 256", data=lambda *_: digits_in(256))
        for name in ("digits, convolutions", "digits, residual")
    ],
)  # fmt: skip
BY_NAME |= {one.name: one for one in MORE}
