# %% [tutorial] use
# %% [markdown]
# [[## Try it: a patient, a check, a cure || ## 试一试：病人、检查、治疗]]
#
# [[A net on real digits whose running statistics were given a momentum of 0.001 by mistake. It trains well and fails in
# `eval()`. The check compares one batch in both modes; the cure measures the statistics anew. Guess the third bar. ||
# 一个真实数字上的网络，momentum 被误设为 0.001。训练很好，`eval()` 却失败。检查方法是同一批数据在两种模式下比较；治疗方法
# 是重新测量统计量。猜一猜第三根柱子有多高。]]
# %%
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

data = load_digits()
x, y = torch.tensor(data.images[:, None] / 4, dtype=torch.float32), torch.tensor(data.target)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16, momentum=0.001), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
    nn.Linear(144, 10),
)  # fmt: skip
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
for _ in range(100):
    chosen = torch.randint(256, len(y), (64,))
    loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def wrong(net: nn.Module) -> float:
    """Test error in percent, in the mode that the net is in; its statistics stay as they are."""
    with torch.no_grad():
        return 100 * (net(x[:256]).argmax(1) != y[:256]).float().mean().item()


statistics = {name: value.clone() for name, value in model.state_dict().items()}
bars = {"train()": wrong(model.train())}
model.load_state_dict(statistics)  # the look in training mode moved them
bars["eval()"] = wrong(model.eval())
nk.recalibrate(model, x[256:].split(64), progress=False)
bars["eval(), recalibrated"] = wrong(model)
figure, axis = plt.subplots(figsize=(6, 2.4), layout="constrained")
axis.bar(list(bars), list(bars.values()))
axis.set(ylabel="test error, %")
plt.show()


# %% [exercise]
# [[The test images become twice as bright and half as contrasty. Which of the calls of the table helps now: `recalibrate`
# on the training data, `adapt` to the test data, or `freeze`? || 测试图像变亮、对比度减半。表里的哪个调用现在有用：用训练
# 数据 `recalibrate`、对测试数据 `adapt`，还是 `freeze`？]]
# [[`adapt`: the statistics of the training data were right and do not fit any more. It mixes in those of the test batch.
# || `adapt`：训练数据的统计量本来没错，只是不再合用；它混入测试批次的统计量。]]
# %%
def check(call: str) -> None:
    global x
    kept, x = x, 0.5 * x + 6.0  # the test data are of another kind
    try:
        if call == "adapt":
            with nk.adapt(model, prior=16):
                error = wrong(model)
        elif call == "recalibrate":
            nk.recalibrate(model, kept[256:].split(64), progress=False)
            error = wrong(model)
        else:
            error = wrong(nk.freeze(model))
    finally:
        x = kept
    print("right" if error < 2 * bars["eval(), recalibrated"] + 5 else "not yet", f"{error:.1f} %")


check("recalibrate")  # yours: recalibrate, adapt or freeze
# %% [answer]
check("adapt")
