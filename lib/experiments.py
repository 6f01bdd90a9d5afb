"""Tasks (data, network, attack, detector, seed) -> one tidy row per classifier and detector, with provenance.

Every finished row is a parquet file of its own, written whole; the table is their union. A sweep killed at
any moment is continued by the same command: rows that exist are not computed again, classifiers come from
the zoo. Rows hold raw statistics and every rule's verdict, never a decision alone.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from . import anomaly, attacks, data, detectors, metrics, models, zoo
from .grids import Task

if TYPE_CHECKING:
    import pandas as pd


def clean_images(classifier: zoo.Classifier, n: int, *, seed: int = 0) -> torch.Tensor:
    """n correctly classified test images per class, (K, n, C, H, W), drawn with `seed`:
    what a defender holds.
    """
    d = classifier.dataset
    return data.clean_per_class(
        lambda x: models.predict(classifier.model, x),
        d.test_images,
        d.test_labels,
        n,
        n_classes=d.n_classes,
        generator=torch.Generator().manual_seed(seed),
    )


def scan(
    classifier: zoo.Classifier,
    detector: detectors.Detector,
    n: int = 8,
    *,
    seed: int | None = None,
    progress: bool = False,
) -> detectors.Scan:
    """Scan a classifier of the zoo with n of its `clean_images` per class; `seed`, by default that of its
    training, draws them and whatever the detector draws.
    """
    seed = classifier.spec.seed if seed is None else seed
    clean = clean_images(classifier, n, seed=seed)
    generator = torch.Generator(clean.device).manual_seed(seed)
    return detector.scan(classifier.model, clean, generator=generator, progress=progress)


def run(
    task: Task, *, device: str = "cpu", zoo_folder: str | Path | None = None, progress: bool = False
) -> dict[str, Any]:
    """Train (or fetch) one classifier, scan it, and judge the scan with every rule: one flat row."""
    classifier = zoo.get(task.spec, zoo=zoo_folder, device=device, progress=progress)
    detector = detectors.build(task.detector, **dict(task.settings))
    return _row(task, classifier, scan(classifier, detector, task.n, progress=progress)) | provenance(device)


def _row(task: Task, classifier: zoo.Classifier, scan: detectors.Scan) -> dict[str, Any]:
    attack, spec = task.spec.attack, task.spec
    row: dict[str, Any] = {
        "key": task.key,
        "dataset": spec.dataset,
        "network": spec.network,
        "recipe": str(spec.recipe),
        "group": task.group,
        "seed": spec.seed,
        "attack": json.dumps(attacks.describe(attack)),
        "target": attack.target if attack else None,
        "n_sources": len(attack.source_classes(scan.n_classes)) if attack else 0,
        "detector": task.detector,
        "n": task.n,
        "settings": json.dumps(dict(task.settings)),
        "cta": classifier.metrics["cta"],
        "asr": classifier.metrics.get("asr"),
        "collateral": classifier.metrics.get("collateral"),
        "zoo_key": classifier.path.name,
        "norms": scan.norms.tolist(),
        "success": scan.success.tolist(),
        "converged": bool(scan.converged.all()),
        "image_forwards": scan.cost.forward,
        "image_gradients": scan.cost.backward,
        "queries": scan.cost.queries,
        "seconds": scan.cost.seconds,
    }
    if scan.weights is not None and attack:
        row["weights"] = scan.weights[attack.target].tolist()
    for rule in anomaly.RULES:
        name = rule.replace("-", "_")
        try:
            verdict = anomaly.judge(scan.norms, rule, pair_norms=scan.pair_norms)
        except (
            anomaly.AnomalyError
        ):  # no such verdict, as of the Gamma rules on two classes: the scan is kept
            row |= {f"{name}_score": float("nan"), f"{name}_flags": [], f"{name}_case": None}
            continue
        row |= {f"{name}_score": verdict.score, f"{name}_flags": list(verdict.targets)}
        row[f"{name}_case"] = metrics.case(verdict.targets, row["target"])
    return row


def provenance(device: str) -> dict[str, Any]:
    """Commit, versions, device and time, for every row."""
    name = torch.cuda.get_device_name(device) if str(device).startswith("cuda") else platform.machine()
    return {
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": name,
        "when": datetime.now(UTC).isoformat("T", "seconds"),
    }


def _commit() -> str:
    """The commit of this package, "-dirty" when its own files differ: a table being written does not count."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        said = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run(
            [*git, "diff", "--quiet", "HEAD", "--", "."], capture_output=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return said.stdout.strip() + "-dirty" * bool(changed.returncode) if said.returncode == 0 else "unknown"


def sweep(
    tasks: Iterable[Task],
    out: str | Path,
    *,
    workers: int = 1,
    device: str = "cpu",
    zoo_folder: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Run every task that `out` does not hold yet; returns (and writes to `out`) the whole table.

    Rows land one by one in `<out>.rows/`, so an interrupted sweep resumes, and two sweeps may share a table.
    A task that fails is named at the end in a RuntimeError, after all others have run.
    """
    import pandas as pd

    tasks, out = list(tasks), Path(out)
    rows = out.with_name(out.name + ".rows")
    rows.mkdir(parents=True, exist_ok=True)
    kept = pd.read_parquet(out) if out.exists() else pd.DataFrame({"key": []})
    have = set(kept["key"]) | {p.stem for p in rows.glob("*.parquet")}
    todo = [t for t in tasks if t.key not in have]
    # One classifier's tasks stand together, so two workers seldom wait for the same training.
    todo.sort(key=lambda t: (t.spec.seed, t.group))
    failed = []
    with tqdm(
        total=len(tasks), initial=len(tasks) - len(todo), desc="sweep", unit="row", disable=not progress
    ) as bar:
        for task, error in _each(todo, rows, workers, device, zoo_folder):
            bar.update()
            if error is not None:
                failed.append(
                    f"{task.detector} on {task.spec.dataset} {task.group} seed {task.spec.seed}: {error}"
                )
    table = _compact(rows, out)
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(tasks)} rows failed, the others are in {out}:\n" + "\n".join(failed)
        )
    return table[table["key"].isin({t.key for t in tasks})].reset_index(drop=True)


def _each(
    tasks: list[Task], rows: Path, workers: int, device: str, zoo_folder: str | Path | None
) -> Iterator[tuple[Task, Exception | None]]:
    if workers <= 1:
        for task in tasks:
            try:
                _one(task, rows, device, zoo_folder)
                yield task, None
            except Exception as e:
                yield task, e
        return
    import multiprocessing

    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_single_thread
    ) as pool:
        futures = {pool.submit(_one, task, rows, device, zoo_folder): task for task in tasks}
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                yield futures[future], error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _single_thread() -> None:
    torch.set_num_threads(1)


def _one(task: Task, rows: Path, device: str, zoo_folder: str | Path | None) -> None:
    import pandas as pd

    if (rows / f"{task.key}.parquet").exists():  # another process has been here since this one began
        return
    row = pd.DataFrame([run(task, device=device, zoo_folder=zoo_folder)])
    partial = rows / f"{task.key}.{os.getpid()}.partial"
    row.to_parquet(partial)
    os.replace(partial, rows / f"{task.key}.parquet")


def _compact(rows: Path, out: Path) -> pd.DataFrame:
    """Merge the single rows into the table as it is now, then drop them; one process at a time."""
    import pandas as pd

    with zoo.alone(rows / "lock"):
        files = sorted(rows.glob("*.parquet"))
        parts = [pd.read_parquet(p) for p in ([out] if out.exists() else []) + files]
        if not parts:
            return pd.DataFrame({"key": []})
        table = (
            pd.concat(parts, ignore_index=True)
            .drop_duplicates("key")
            .sort_values(["dataset", "group", "seed", "detector", "n", "key"], ignore_index=True)
        )
        if files:
            partial = out.with_name(out.name + ".partial")
            table.to_parquet(partial)
            os.replace(partial, out)
        for p in files:
            p.unlink()
    return table
