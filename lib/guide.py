"""The field guide to attacks: one setting of every attack per kind of image,
and what it does to a classifier.

`attack_table` trains (through the zoo) every attack of `settings` beside a clean classifier and returns one
tidy row per attack and seed. `heat_map` moves a patch over the image (B3D Figs. 5 and 8). The settings are
ours: chosen by looking at ASR and clean accuracy alone, never at a detector, so that the attack works on
small networks; the papers' own are in `lib.attacks.groups` and the attacks' docstrings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import attacks, metrics, models, zoo
from .attacks import (
    Attack,
    AttackError,
    BadNets,
    Blended,
    Chessboard,
    Cross,
    Global,
    InputAware,
    LabelConsistent,
    Latent,
    LocalChessboard,
    LocalSquare,
    LShape,
    SinglePixel,
    Trojan,
)
from .experiments import provenance

if TYPE_CHECKING:
    import pandas as pd

    from .grids import AttackTask


def settings(
    shape: tuple[int, int, int], *, target: int = 1, seed: int = 0, n_classes: int = 10
) -> dict[str, Attack]:
    """Every attack by name, with settings for images of this shape (C, H, W),
    at least 16x16; `target` as label.

    Raises AttackError for images too small for the largest patch.
    """
    if min(shape[1:]) < 16:
        raise AttackError(f"shape = {shape}: the guide's attacks need images of 16x16 or more")
    side = max(3, round(min(shape[1:]) / 4))  # 4 on digits, 8 at 32x32: about 6 % of the image
    small = max(3, side // 2 + 1)
    all_to_one: dict[str, Any] = {"target": target, "rate": 0.1, "seed": seed}
    corner: dict[str, Any] = {"at": "bottom-right", "colour": "white"}
    sources = tuple(k for k in (0, 2, 4) if k != target)[:2]
    few: dict[str, Any] = {"sources": sources, "target": target, "per_source": 40, "seed": seed}
    return {
        "global": Global(amplitude=24, **all_to_one),
        "chessboard": Chessboard(amplitude=16, **all_to_one),
        "local chessboard": LocalChessboard(amplitude=80, size=6, **all_to_one),
        "local square": LocalSquare(amplitude=150, size=small, **all_to_one),
        "single pixel": SinglePixel(amplitude=200, **all_to_one),
        "cross": Cross(amplitude=120, **all_to_one),
        "L-shape": LShape(amplitude=120, **all_to_one),
        "BadNets, random colour": BadNets(size=small, **all_to_one),
        "BadNets, white corner": BadNets(size=small, **corner, **all_to_one),
        "BadNets, noisy square": BadNets(size=small, colour="noise", at="bottom-right", **all_to_one),
        "BadNets, triangle": BadNets(size=side, shape="triangle", **corner, **all_to_one),
        "BadNets, checkerboard": BadNets(size=side, shape="checkerboard", **corner, **all_to_one),
        "BadNets, quarter of the image": BadNets(
            size=2 * side, colour="noise", at="bottom-right", **all_to_one
        ),
        "BadNets, place per image": BadNets(
            size=side, colour="noise", per_image=True, **all_to_one | {"rate": 0.2}
        ),
        "source-specific, with cover": BadNets(size=small, cover=40, **corner, **few),
        "source-specific, no cover": BadNets(size=small, **corner, **few),
        "two labels": attacks.several_labels(
            targets=(target, (target + 1) % n_classes), rate=0.1, size=small, seed=seed
        ),
        "nine triggers": attacks.nine_triggers(target=target, rate=0.04, size=small, seed=seed),
        "blended patch": Blended(size=side, **corner, **all_to_one),
        "blended whole image": Blended(size=None, colour="noise", **all_to_one),
        "label-consistent": LabelConsistent(
            target=target, rate=0.08, size=side, epsilon=64 if shape[0] == 1 else 24, seed=seed, **corner
        ),
        "Trojan": Trojan(target=target, size=side, seed=seed),
        "Trojan, no image": Trojan(target=target, size=side, retrain_on="recovered", seed=seed),
        "latent": Latent(target=target, size=side, seed=seed),
        "input-aware": InputAware(target=target, seed=seed),
    }


def attack_table(
    spec: zoo.Spec | None = None,
    *,
    names: Iterable[str] | None = None,
    seeds: Sequence[int] = (0,),
    target: int = 1,
    zoo_folder: str | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> pd.DataFrame:
    """One row per attack and seed: ASR, CTA, the clean classifier's CTA of the same seed,
    collateral, norm, seconds.

    spec: image set, network and recipe; its attack and seed are replaced. names: some of `settings`,
    default all. The column `works` says whether ASR is at least 0.9 with CTA within 2 points of clean;
    `own_trigger` and `cross_trigger` are for input-aware attacks: ASR with the image's own trigger and
    accuracy with another image's. Raises AttackError for an unknown name, before anything is trained.
    """
    import pandas as pd

    spec = spec or zoo.Spec()
    images = spec.load_data()
    kind: dict[str, Any] = {"shape": images.shape, "target": target, "n_classes": images.n_classes}
    known = settings(**kind)
    chosen = list(known) if names is None else list(names)
    for name in chosen:
        if name not in known:
            raise AttackError(f"no attack {name!r} in the guide: allowed are {', '.join(known)}")
    rows = []
    for seed in seeds:
        clean = zoo.get(replace(spec, attack=None, seed=seed), zoo=zoo_folder, device=device)
        of_seed = settings(**kind, seed=seed)
        for name in tqdm(
            chosen, desc=f"attacks, seed {seed}", unit="attack", disable=not progress, leave=False
        ):
            found = zoo.get(replace(spec, attack=of_seed[name], seed=seed), zoo=zoo_folder, device=device)
            rows.append(
                {"dataset": spec.dataset, "network": spec.network, "attack": name, "seed": seed}
                | row(found, clean.metrics["cta"])
                | provenance(str(device))
            )
    return pd.DataFrame(rows)


def attack_tables(tasks: Iterable[AttackTask], out: Path, *, device: str = "cpu") -> pd.DataFrame:
    """The `attack_table` of every task of a grid in one, with a progress bar; written to `out`, a parquet file,
    whole or not at all. The zoo keeps every classifier, so the same call goes on after a kill.
    """
    import pandas as pd

    tables = [
        attack_table(t.spec, names=t.names, seeds=t.seeds, target=t.target, device=device, progress=True)
        for t in tasks
    ]
    table = pd.concat(tables, ignore_index=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    table.to_parquet(partial)
    partial.replace(out)
    return table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per image set and attack of an `attack_table`: means over the seeds, the lowest ASR, and how
    many classifiers meet both marks.
    """
    return table.groupby(["dataset", "attack"], sort=False).agg(
        asr=("asr", "mean"),
        lowest=("asr", "min"),
        cta=("cta", "mean"),
        clean=("clean_cta", "mean"),
        collateral=("collateral", "mean"),
        cross=("cross_trigger", "mean"),
        norm=("norm", "mean"),
        works=("works", "sum"),
        classifiers=("works", "size"),
    )


def row(classifier: zoo.Classifier, clean_cta: float) -> dict[str, Any]:
    """What `attack_table` says of one attacked classifier,
    given the accuracy of a clean one of the same kind.
    """
    found, x, y = classifier.metrics, classifier.dataset.test_images, classifier.dataset.test_labels
    attack = classifier.attack
    assert attack is not None
    change = torch.cat([(part.embed(x) - x).flatten(1).norm(dim=1) for part in attack.parts])
    cross: float | None = None
    if isinstance(attack, InputAware):
        cross = float(metrics.cta(models.predict(classifier.model, attack.cross_embed(x, x.roll(1, 0))), y))
    return {
        "asr": found["asr"],
        "cta": found["cta"],
        "clean_cta": clean_cta,
        "works": found["asr"] >= 0.9 and found["cta"] >= clean_cta - 0.02,
        "collateral": found["collateral"],
        "cross_trigger": cross,
        "norm": float(change.mean()),
        "seconds": classifier.entry["provenance"]["seconds"],
    }


def needs_table(chosen: dict[str, Attack]) -> pd.DataFrame:
    """What the attacker of each attack must hold or control: one row per attack."""
    import pandas as pd

    rows = {
        name: {
            "data": a.needs.data,
            "changes labels": "yes" if a.needs.labels else "no",
            "model": a.needs.model,
            "controls training": "yes" if a.needs.training else "no",
        }
        for name, a in chosen.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


@torch.no_grad()
def heat_map(model: nn.Module, attack: BadNets, images: Tensor, labels: Tensor, *, stride: int = 1) -> Tensor:
    """ASR with the patch moved over all positions (B3D Figs. 5, 8):
    (rows, columns) of top-left corners, `stride` apart.

    images (N, C, H, W) and labels (N,): test images; those of the target class are left out. The patch
    itself does not change.
    """
    x = images[labels != attack.target]
    height, width = x.shape[-2:]
    size = attack.size or 0
    if not 0 < size <= min(height, width) or stride < 1:
        raise AttackError(
            f"size = {attack.size}, stride = {stride}: a patch that can be moved, and a step from 1, are needed"
        )
    places = [
        [(i, j) for j in range(0, width - size + 1, stride)] for i in range(0, height - size + 1, stride)
    ]
    # replace() draws the colours again from the same seed, and forgets only what was learnt: put it back.
    moved = [
        [replace(attack, at=at, per_image=False).with_learnt(attack.learnt) for at in line] for line in places
    ]
    hits = [
        [(models.predict(model, a.embed(x)) == attack.target).float().mean() for a in line] for line in moved
    ]
    return torch.tensor(hits)


def sweep(
    spec: zoo.Spec,
    attack: Attack,
    setting: str,
    values: Sequence[Any],
    *,
    seeds: Sequence[int] = (0,),
    **options: Any,
) -> pd.DataFrame:
    """ASR and CTA of `attack` with one setting varied: one row per value and seed.
    options: passed on to zoo.get.

    Raises AttackError for a setting that the attack does not have, before anything is trained.
    """
    import pandas as pd

    known = [f.name for f in fields(attack)]
    if setting not in known:
        raise AttackError(
            f"{type(attack).__name__} has no setting {setting!r}: allowed are {', '.join(known)}"
        )
    grid = [(v, s, replace(attack, seed=s, **{setting: v})) for v in values for s in seeds]
    rows = []
    for value, seed, variant in grid:
        found = zoo.get(replace(spec, attack=variant, seed=seed), **options).metrics
        rows.append({setting: value, "seed": seed} | {k: found[k] for k in ("asr", "cta", "collateral")})
    return pd.DataFrame(rows)
