{
  const areaOf = (v) => 2 ** v;
  const percent = (v) => (v >= 10 ? ">1000 %" : `${short(100 * v, 2)} %`);
  section("my-problem", {
    labels: {batch: String, area: (v) => String(areaOf(v))},
    truth: () => 100 / Math.sqrt(4),
    actions: {
      copy: (place, _state, button) => {
        const code = place.querySelector(".answer:not([hidden]) pre").textContent;
        const selected = () => {  // where a file may not write to the clipboard
          getSelection().selectAllChildren(place.querySelector(".answer:not([hidden]) pre"));
        };
        if (navigator.clipboard) navigator.clipboard.writeText(code).catch(selected); else selected();
        button.classList.add("good");
      },
    },
    draw(s, place) {
      for (const answer of place.querySelectorAll("[data-answer]")) answer.hidden = answer.dataset.answer !== s.symptom;
      place.querySelector('[data-do="copy"]').classList.remove("good");
      const m = s.batch * areaOf(s.area), mean = 1 / Math.sqrt(m), variance = Math.sqrt(2 / (m - 1));
      say(place, "m", String(m));
      say(place, "mean", percent(mean), mean > 0.25 ? "bad" : mean < 0.1 ? "good" : "");
      say(place, "variance", m > 1 ? percent(variance) : t("not defined", "无定义"), variance > 0.3 ? "bad" : variance < 0.15 ? "good" : "");
      const words = m === 1 ? t("One value has no variance: small_batch=\"running\", or group norm.", "一个值没有方差：用 small_batch=\"running\" 或组归一化。")
        : mean > 0.25 ? t("Too few: statistics over all processes, a larger batch, or a norm without a batch.", "太少：跨进程同步、加大批次，或换不依赖批次的归一化。")
        : t("Enough for the statistics of this layer.", "对这一层的统计量来说足够了。");
      say(place, "advice", words);
    },
  });
}
