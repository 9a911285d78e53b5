# %% [tutorial] groups per-channel
# %% [markdown]
# [[## Plot it: ask the gradient || ## 画出来：去问梯度]]
#
# [[Which inputs does one output depend on? Its gradient says it: it is not 0 exactly where a value entered the same mean.
# Rows are images, columns channels; the output looked at is that of image 0, channel 2. Change `GROUPS` and `CELL`. ||
# 一个输出依赖哪些输入？梯度会回答：凡是进入同一个均值的值，梯度就不是 0。行是图像，列是通道；看的是第 0 张图、第 2
# 个通道的输出。改一改 `GROUPS` 和 `CELL`。]]
# %%
import matplotlib.pyplot as plt

GROUPS, CELL = 2, (0, 2)
norms = {
    "batch": nk.BatchNorm2d(8),
    "layer": nk.GroupNorm(1, 8),
    "instance": nk.InstanceNorm2d(8),
    "group": nk.GroupNorm(GROUPS, 8),
}
x = torch.randn(4, 8, 5, 5, requires_grad=True)
figure, axes = plt.subplots(1, 4, figsize=(9, 2), layout="constrained")
for axis, (name, norm) in zip(axes, norms.items(), strict=True):
    (gradient,) = torch.autograd.grad(norm(x)[CELL][0, 0], x)
    shared = gradient.abs().amax((2, 3)) > 0
    axis.imshow(shared, cmap="Blues", vmin=0, vmax=1)
    axis.set(title=f"{name}: m = {int(shared.sum()) * 25}", xlabel="channel", ylabel="image", xticks=[], yticks=[])
plt.show()


# %% [exercise]
# %%
def check(one: str, other: str) -> None:
    image = torch.randn(1, 8, 5, 5)  # a batch of one
    same = one != other and torch.allclose(norms[one](image), norms[other](image), atol=1e-5)
    print("right" if same else "not yet")


check("batch", "layer")  # yours: two of batch, layer, instance, group
# %% [answer]
check("batch", "instance")
