# %% [tutorial] test-time frameworks
# %% [markdown]
# [[## Plot it: the average runs behind || ## 画出来：平均值跟在后面]]
#
# [[While a net trains its weights move the data: here the mean of a channel climbs from 0 to 2. Three layers watch the
# same batches of 8 with different momenta. The smallest is late, the largest noisy; `nk.recalibrate` measures the final
# data anew and is neither. || 网络训练时，权重在移动数据：这里一个通道的均值从 0 爬到 2。三个层看同样的批次（每批 8
# 个），momentum 不同。最小的迟到，最大的有噪声；`nk.recalibrate` 用最终的数据重新测量，两样毛病都没有。]]
# %%
import matplotlib.pyplot as plt

STEPS = 120
batches = [2 * k / STEPS + torch.randn(8, 1) for k in range(STEPS)]
figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
axis.plot([batch.mean() for batch in batches], ".", color="grey", label="mean of each batch")
for momentum in (0.01, 0.1, 0.5):
    bn, means = nk.BatchNorm1d(1, momentum=momentum), []
    for batch in batches:
        bn(batch)
        means.append(bn.running_mean.item())
    axis.plot(means, label=f"momentum {momentum}")
nk.recalibrate(bn, [2 + torch.randn(8, 1) for _ in range(100)], progress=False)
axis.plot(STEPS - 1, bn.running_mean.item(), "k*", markersize=12, label="recalibrate")
axis.set(xlabel="step", ylabel="mean")
axis.legend()
plt.show()


# %% [exercise]
# [[How many batches does it take until the initial value 0 weighs less than 1 %, at momentum 0.1? ||
# momentum 为 0.1 时，要多少个批次，初值 0 的权重才低于 1%？]]
# [[44, since 0.9⁴⁴ = 0.0097 and 0.9⁴³ = 0.0108. || 44：0.9⁴⁴ = 0.0097，而 0.9⁴³ = 0.0108。]]
# %%
def check(count: int) -> None:
    bn, ones = nk.BatchNorm1d(1, momentum=0.1).double(), torch.tensor([[0.5], [1.5]], dtype=torch.float64)
    lacking = [1.0]  # the running mean of batches of mean 1 lacks what the initial 0 still weighs
    for _ in range(count):
        bn(ones)
        lacking.append(1 - bn.running_mean.item())
    print("right" if count > 0 and lacking[-1] < 0.01 <= lacking[-2] else "not yet", f"0 weighs {lacking[-1]:.4f}")


check(count=10)  # yours
# %% [answer]
check(count=44)
