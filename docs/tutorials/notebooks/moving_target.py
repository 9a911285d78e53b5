# %% [tutorial] problem
# %% [markdown]
# [[## Plot it: what one unit sees while the net trains || ## 画出来：训练时一个单元看到了什么]]
#
# [[A tanh net of six layers on real 8x8 digits, weights three times too large. The band holds the 15th to the 85th
# percentile of one unit's input; beyond ±1.8 (dotted) tanh is saturated. Guess the two pictures first. Then set
# `gain = 1`: is there still a difference? ||
# 六层 tanh 网，真实的 8x8 数字，权重大了三倍。色带是某单元输入的第 15 到第 85 百分位；超出 ±1.8（点线）tanh 就饱和了。
# 先猜两张图的样子。再令 `gain = 1`：还有差别吗？]]
# %%
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

data = load_digits()
digits = torch.tensor(data.images.reshape(-1, 64) / 16, dtype=torch.float32)
digits = (digits - digits.mean()) / digits.std()
labels = torch.tensor(data.target)


def build(normalized: bool, gain: float) -> nn.Sequential:
    torch.manual_seed(0)
    layers = []
    for _ in range(6):
        linear = nn.Linear(64, 64)
        nn.init.normal_(linear.weight, std=gain / 64**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nk.BatchNorm1d(64) if normalized else nn.Identity(), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def watched(net: nn.Sequential, layer: int, x: torch.Tensor) -> torch.Tensor:
    """What the tanh of `layer` (counted from 1) is given."""
    with torch.no_grad():
        return net[: 3 * layer - 1](x)


gain = 3.0
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
for axis, normalized in zip(axes, (False, True), strict=True):
    net, bands = build(normalized, gain), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(150):
        bands.append(torch.quantile(watched(net, 4, digits[:256])[:, 0], torch.tensor([0.15, 0.5, 0.85])))
        chosen = torch.randint(256, len(labels), (64,))
        loss = nn.functional.cross_entropy(net(digits[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        unseen = nn.functional.cross_entropy(net.eval()(digits[:256]), labels[:256])
    low, middle, high = torch.stack(bands).T
    axis.fill_between(range(150), low, high, alpha=0.3)
    axis.plot(middle)
    axis.set(title=f"{'batch norm' if normalized else 'no norm'}: loss {unseen.item():.2f} on unseen digits", xlabel="step")
    for edge in (-1.8, 1.8):
        axis.axhline(edge, color="grey", linestyle=":")
plt.show()


# %% [exercise]
# [[How many percent of the units of layer 3 are saturated (|tanh| > 0.95) at the start, with gain 3 and no norm? And with
# batch norm? || 增益为 3、没有归一化时，一开始第 3 层有百分之多少的单元饱和（|tanh| > 0.95）？加上批归一化呢？]]
# [[About 48 % without, about 7 % with batch norm: the input's deviation is 1, and 1.83 deviations are seldom exceeded. ||
# 不加约 48%，加了约 7%：输入的标准差是 1，很少超过 1.83 个标准差。]]
# %%
def check(without: float, with_norm: float) -> None:
    seen = [100 * (watched(build(n, 3.0), 3, digits).tanh().abs() > 0.95).float().mean().item() for n in (False, True)]
    right = abs(without - seen[0]) < 10 and abs(with_norm - seen[1]) < 10
    print(f"right: {seen[0]:.0f} % and {seen[1]:.0f} %" if right else "not yet")


check(without=90, with_norm=90)  # yours: percent
# %% [answer]
check(without=48, with_norm=7)
