"""A scan and its verdicts to hand on: one self-contained HTML page, JSON, or a table in the terminal."""

from __future__ import annotations

import base64
import html
import io
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .. import files, fingerprint, prose
from ..anomaly import ATTACKED, INCONCLUSIVE, NOTHING, RULES, Verdict
from ..classifier import Classifier
from ..detectors import Detector, Scan

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a detector found in one classifier.

    verdicts: by rule; `rule` is the one that decides.
    facts: what to print beside it.
    notes: whole sentences that a reader must not miss.
    """

    subject: str
    detector: str
    classes: tuple[str, ...]
    scan: Scan
    rule: str
    verdicts: Mapping[str, Verdict]
    facts: Mapping[str, object]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """That of the rule that decides."""
        return self.verdicts[self.rule]

    @property
    def summary(self) -> str:
        """One sentence, with the statistic and the rule's own rate of false alarms."""
        v = self.verdict
        found = {
            ATTACKED: f"backdoor found, target {', '.join(map(self._class, v.targets))}",
            NOTHING: f"no backdoor found (most suspicious: {self._class(v.suspect)})",
            INCONCLUSIVE: f"{INCONCLUSIVE}: this scan does not tell",
        }[v.outcome]
        if v.unreached:
            pairs = "from every class " if RULES[self.rule].judges == "pairs" else ""
            found += (
                f"; no working trigger was found {pairs}towards {', '.join(map(self._class, v.unreached))}"
            )
        if np.isnan(v.score):
            return f"{found}; too few classes were reached to judge any"
        rate = f"{100 * v.false_positive_rate:.1f} % of clean classifiers of {self._judged} classes"
        open_ = int((~self.scan.converged).sum())
        cut = (
            f"; {open_} searches were ended by their budget, and their norms may be too large"
            if open_
            else ""
        )
        return f"{found}; {_score(v)}; this rule flags {rate} under its null{cut}"

    @property
    def _judged(self) -> int:
        """How many classes the rule has judged: those searched, less those left out; of pairs, all."""
        if RULES[self.rule].judges == "pairs":
            return self.scan.n_classes
        return int((~self.scan.norms.isnan()).sum()) - len(self.verdict.unreached)

    def _class(self, t: int) -> str:
        return f"{t} ({self.classes[t]})" if self.classes[t] != str(t) else str(t)

    def rows(self) -> list[dict[str, Any]]:
        """One row per class: index, name, norm, statistic, success share, reached, converged, flagged."""
        s = self.scan
        return [
            {
                "class": t,
                "name": self.classes[t],
                "norm": float(s.norms[t]),
                "statistic": float(s.statistics[t]),
                "success": float(s.success[t]),
                "reached": bool(s.reached[t]),
                "converged": bool(s.converged[t]),
                "flagged": t in self.verdict.targets,
            }
            for t in range(s.n_classes)
        ]


def conditions(subject: Classifier, detector: Detector, *, n: int, seed: int) -> dict[str, object]:
    """What a report says of how it came about: the classifier, the images, the code, the machine, the time."""
    images = n if detector.needs.images else "none: the detector needs none"
    known = {**subject.facts, "clean images per class": images, "seed": seed}
    made = fingerprint.provenance(str(subject.dataset.test_images.device))
    return known | made | {"when": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}


def _score(v: Verdict) -> str:
    if v.p_value is not None:
        return f"p = {prose.p(v.score)} (log p = {v.score:.2f}), threshold {np.exp(v.threshold):g}"
    return f"{v.score_name} {v.score:.2f}, threshold {v.threshold:g}"


def to_json(report: Report) -> str:
    """Everything but the patterns; numbers that JSON lacks (inf, nan) are null."""
    verdicts = {
        name: asdict(v) | {"outcome": v.outcome, "score_name": v.score_name, "p_value": v.p_value}
        for name, v in report.verdicts.items()
    }
    document = {
        "subject": report.subject,
        "detector": report.detector,
        "settings": report.scan.settings,
        "rule": report.rule,
        "outcome": report.verdict.outcome,
        "attacked": report.verdict.attacked,
        "targets": report.verdict.targets,
        "unreached": report.verdict.unreached,
        "summary": report.summary,
        "notes": list(report.notes),
        "norm": report.scan.norm_name,
        "classes": report.rows(),
        "verdicts": verdicts,
        "cost": asdict(report.scan.cost),
        "facts": dict(report.facts),
    }
    return json.dumps(_finite(document), indent=1, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value


def to_table(report: Report) -> Table:
    """A rich table, one row per class."""
    from rich.table import Table
    from rich.text import Text

    # as Text, in which square brackets are no markup
    title = Text(f"{report.subject}: {report.detector}, rule {report.rule}")
    table = Table(title=title, title_justify="left")
    for name in ("class", "norm", "1 / norm", "success", "reached", ""):
        table.add_column(name, justify="left" if name in ("class", "") else "right")
    for row in report.rows():
        mark = "target" if row["flagged"] else "suspect" if row["class"] == report.verdict.suspect else ""
        table.add_row(
            Text(report._class(row["class"])),
            f"{row['norm']:.4g}",
            f"{row['statistic']:.4g}",
            f"{100 * row['success']:.0f} %",
            "yes" if row["reached"] else "no",
            mark,
            style="bold red" if row["flagged"] else None,
        )
    return table


def to_html(report: Report) -> str:
    """One page that needs nothing beside it."""
    e = html.escape
    cost, summary = report.scan.cost, report.summary
    facts = {**report.facts, **report.scan.settings}
    return Template(Path(__file__).with_name("report.html").read_text()).substitute(
        subject=e(report.subject),
        state=report.verdict.outcome.split()[0],
        summary=e(summary[0].upper() + summary[1:]),
        notes="".join(f"<p>{e(note[0].upper() + note[1:])}.</p>" for note in report.notes),
        detector=e(report.detector),
        rule=e(report.rule),
        norm=e(report.scan.norm_name),
        bars=_bars(report),
        rows="".join(_class_row(report, row) for row in report.rows()),
        figures="".join(_figure(report, t) for t in range(report.scan.n_classes)),
        rules="".join(_rule_row(name, v) for name, v in report.verdicts.items()),
        facts="".join(_cells(key, value) for key, value in facts.items()),
        cost=f"{cost.forward:,} images forward, {cost.backward:,} image-gradients, {cost.queries:,} queries, "
        f"{cost.seconds:.1f} s",
    )


def write(report: Report, path: Path) -> None:
    """The page of `to_html` in a file, whole or not at all."""
    page = to_html(report)
    with files.written(path) as partial:
        partial.write_text(page)


def _cells(*values: object, flag: bool = False) -> str:
    cells = "".join(f"<td>{html.escape(str(value))}</td>" for value in values)
    return f"<tr{' class=flag' if flag else ''}>{cells}</tr>"


def _rule_row(name: str, v: Verdict) -> str:
    targets = ", ".join(map(str, v.targets)) or "—"
    if np.isnan(v.score):
        return _cells(name, v.outcome, targets, "too few classes reached", "—")
    return _cells(name, v.outcome, targets, _score(v), f"{100 * v.false_positive_rate:.1f} %")


def _class_row(report: Report, row: Mapping[str, Any]) -> str:
    return _cells(
        report._class(row["class"]),
        f"{row['norm']:.4g}",
        f"{row['statistic']:.4g}",
        f"{100 * row['success']:.0f} %",
        "yes" if row["reached"] else "no",
        "target" if row["flagged"] else "",
        flag=row["flagged"],
    )


def _bars(report: Report) -> str:
    rows, step = report.rows(), max(18, min(48, 900 // report.scan.n_classes))
    finite = [row["statistic"] for row in rows if np.isfinite(row["statistic"])]
    top, bars = max(finite, default=1.0) or 1.0, []
    for i, row in enumerate(rows):
        height = 120 * min(row["statistic"], top) / top if np.isfinite(row["statistic"]) else 120
        flag = " flag" if row["flagged"] else ""
        bars.append(
            f'<rect class="bar{flag}" x="{i * step + 2}" y="{130 - height:.1f}" width="{step - 4}"'
            f' height="{height:.1f}"/>'
            f'<text x="{i * step + step / 2}" y="145" text-anchor="middle">{row["class"]}</text>'
        )
    label = "Bars: 1 / norm of each class; flagged classes are red. The numbers are in the table below."
    width = len(rows) * step
    size = f'viewBox="0 0 {width} 150" style="max-width:{width}px;width:100%"'
    return f'<svg {size} role="img" aria-label="{label}">{"".join(bars)}</svg>'


def _figure(report: Report, t: int) -> str:
    s = report.scan
    name = html.escape(report._class(t))
    if s.mask is None:
        peak = float(s.pattern[t].abs().max()) or 1.0
        picture, what = 0.5 + s.pattern[t] / (2 * peak), "additive pattern, grey is zero"
    else:
        picture, what = s.mask[t] * s.pattern[t], "mask times pattern"
    source = base64.b64encode(_png(picture)).decode()
    flag = ' class="flag"' if t in report.verdict.targets else ""
    alt = f"Recovered trigger towards class {name}: {what}"
    image = f'<img src="data:image/png;base64,{source}" alt="{alt}">'
    return f"<figure>{image}<figcaption{flag}>{name}</figcaption></figure>"


def _png(image: Tensor) -> bytes:
    """(C, H, W) in [0, 1] -> PNG; grey for any number of channels but three."""
    from matplotlib.image import imsave

    pixels = image.detach().float().cpu().nan_to_num(0.5).clamp(0, 1)
    pixels = pixels if pixels.shape[0] == 3 else pixels.mean(0, keepdim=True).expand(3, -1, -1)
    buffer = io.BytesIO()
    imsave(buffer, pixels.permute(1, 2, 0).numpy(), format="png")
    return buffer.getvalue()
