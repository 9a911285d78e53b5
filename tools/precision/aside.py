"""What is set aside, and where faults are planted: names, fixed before the first run of each part."""

from __future__ import annotations

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
# the same for the second part: the nets of the first third under other seeds and in large batches
MORE_ASIDE = frozenset(
    f"{name}, {how}"
    for how in ("seed 1", "batches of 256")
    for name in (
        "timm test_byobnet", "transformers RegNet", "timm tinynet_e", "digits, residual",
        "torchvision shufflenet_v2_x0_5",
    )
)  # fmt: skip
# where the second part's faults are planted: trained weights, other seeds, large batches
MORE_BASES = (
    "MobileNet-V2 of fdet, adapted", "digits, convolutions, seed 1", "torchvision vgg of 8 layers, batches of 256",
    "timm test_resnet, seed 1", "digits, convolutions, batches of 256", "transformers ResNet, batches of 256",
    "torchvision mobilenet_v3_small, seed 1",
)  # fmt: skip
MORE_ASIDE_BASES = (
    "CREPE tiny, adapted", "digits, residual, seed 1", "transformers RegNet, batches of 256",
    "timm test_byobnet, seed 1",
)  # fmt: skip
