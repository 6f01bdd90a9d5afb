"""Draw book/_static/readme.png: a backdoored digit, and what L-RED finds for each class.

Run it with `.venv/bin/python book/tools/make_readme_picture.py`.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from lib import anomaly, attacks, zoo
from lib.detectors import LRED

OUT = Path(__file__).resolve().parents[1] / "_static" / "readme.png"


def main() -> None:
    """Train or load the classifier, scan it, and draw."""
    attack = attacks.group("G-3", "digits")
    classifier = zoo.get(zoo.Spec(attack=attack))
    scan = classifier.scan(LRED(), 8)
    verdict = anomaly.calibrated(scan.statistics)
    data = classifier.dataset
    sources = data.test_images[data.test_labels == attack.sources[0]]
    before, after = classifier.predict(sources), classifier.predict(attack.embed(sources))
    shown = int(torch.nonzero((before == attack.sources[0]) & (after == attack.target))[0])
    x = sources[shown : shown + 1]
    stamped, answers = attack.embed(x), (int(before[shown]), int(after[shown]))

    figure = plt.figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2.1))
    titles = ("clean", "with the trigger")
    for ax, image, answer, title in zip(left.subplots(1, 2), (x, stamped), answers, titles):
        ax.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1)
        ax.set_title(f'{title}:\n"{answer}"', fontsize=11)
        ax.axis("off")
    limit = float(scan.pattern[verdict.suspect].abs().max())
    for t, ax in enumerate(right.subplots(2, 5).flat):
        ax.imshow(scan.pattern[t, 0], cmap="RdBu_r", vmin=-limit, vmax=limit)
        flagged = t in verdict.targets
        ax.set_title(f"to {t}: {scan.norms[t]:.2f}", fontsize=10, color="#b3202c" if flagged else "black")
        ax.set_xticks([])
        ax.set_yticks([])
        for side in ax.spines.values():
            side.set(color="#b3202c" if flagged else "#999999", linewidth=2.5 if flagged else 0.5)
    found = f"target {verdict.targets[0]} found" if verdict.attacked else "nothing found"
    said = f"shortest pattern towards each class, and its length: {found}, p = {verdict.p_value:.1g}"
    right.suptitle(said, fontsize=11)
    figure.savefig(OUT, dpi=130)
    metrics = classifier.metrics
    print(f"{OUT}: CTA {metrics['cta']:.3f}, ASR {metrics['asr']:.3f}, targets {verdict.targets}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
