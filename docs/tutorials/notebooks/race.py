# %% [tutorial] benefits weaknesses
# %% [markdown]
# [[## Plot it: 216 trainings || ## 画出来：216 次训练]]
#
# [[The trainings behind `normkit learn`: real 8x8 digits, five ReLU layers, 200 steps, one seed each. Each panel is one
# batch size and one start; look at where the lines touch as well as where they part. ||
# `normkit learn` 背后的训练：真实的 8x8 数字，五层 ReLU，200 步，各一个种子。每格是一种批大小和一种初始化；
# 既要看两线分开之处，也要看相贴之处。]]
# %%
import matplotlib.pyplot as plt
from normkit.learn import runs

race = runs.shipped()["race"]
shape = tuple(len(race[axis]) for axis in ("norms", "starts", "batches", "rates"))
error = torch.tensor([curve[-1] for curve in race["curves"]]).reshape(shape)  # percent, at the end
figure, axes = plt.subplots(3, 3, figsize=(9, 6), sharex=True, sharey=True, layout="constrained")
for row, start in enumerate(race["starts"]):
    for column, batch in enumerate(race["batches"]):
        for index, norm in enumerate(race["norms"]):
            axes[row, column].semilogx(race["rates"], error[index, row, column], marker=".", label=norm)
        axes[row, column].set_title(f"start {start:g}, batch {batch}")
axes[0, 0].legend()
figure.supxlabel("rate")
figure.supylabel("test error, %")
plt.show()


# %% [exercise]
# %%
def check(start: float, batch: int, rate: float) -> None:
    """A setting where batch norm is at least 10 points behind no norm."""
    at = race["starts"].index(start), race["batches"].index(batch), race["rates"].index(rate)
    plain, batched = (error[race["norms"].index(norm)][at].item() for norm in ("none", "batch"))
    print("right" if batched >= plain + 10 else "not yet", f"none {plain} %, batch {batched} %")


check(start=1.0, batch=32, rate=0.3)  # yours: values that stand on the axes above
# %% [answer]
check(start=3.0, batch=32, rate=0.003)
