"""Reading a sweep's table: right verdicts, rates with their denominators.

Rows hold findings; what a rule says of them is worked out here, when a table is read, so that a new rule needs no new
scan. A rule is any of `anomaly.RULES`, or PAPER: the Gamma test as the L-RED papers put it, over all pairs for the method
that solves a problem for each pair, over the classes for all others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import anomaly, metrics
from ..anomaly import Norms, Verdict

if TYPE_CHECKING:
    import pandas as pd

PAPER = "paper"


def verdicts(table: pd.DataFrame, rule: str, what: str = "case") -> pd.Series:
    """What a rule says of every row: `case`, `flags` (classes), `score`, or `outcome` (see `anomaly.Verdict`).

    A case is one of I to IV of B3D, or "inconclusive" where nothing is flagged and classes had to be left out.
    Empty where the rule cannot judge: pairs that a detector does not look at, too few classes.
    """
    import pandas as pd

    columns = [table[name] if name in table else [None] * len(table) for name in _READ]
    rows = (tuple(map(_there, row)) for row in zip(*columns, strict=True))
    found = [_said(what, _judged(row, rule), row[-1]) for row in rows]
    return pd.Series(found, index=table.index, dtype=float if what == "score" else object)


_READ = (
    "detector",
    "norms",
    "reached",
    "pair_norms",
    "pair_reached",
    "gamma_pairs_score",
    "gamma_pairs_flags",
    "target",
)


def _there(value: Any) -> Any:
    """The value; None for the NaN that pandas puts where a row of another table lacks a column."""
    return None if isinstance(value, float) and np.isnan(value) else value


def _judged(row: tuple[Any, ...], rule: str) -> Verdict | None:
    """The verdict on a row of the columns _READ; None where the rule cannot judge."""
    detector, norms, reached, pair_norms, pair_reached, score, flags, _ = row
    k = len(norms)
    if rule == PAPER:
        of_pairs = detector == "p-red" and k >= anomaly.RULES["gamma-pairs"].least
        rule = "gamma-pairs" if of_pairs else "gamma"
    how = anomaly.RULES.get(rule)
    if how and k < how.least:
        return None
    if how and how.judges == "pairs" and pair_norms is None:
        return _recorded(score, flags) if how.name == "gamma-pairs" else None
    return _verdict(rule, how, *map(_frozen, (norms, reached, pair_norms, pair_reached)))


def _recorded(score: float | None, flags: Any) -> Verdict | None:
    """What older rows say of pairs: they hold the verdict, and no norms of pairs to judge anew."""
    if score is None:
        return None
    targets = tuple(int(t) for t in flags)
    nan = float("nan")
    return Verdict(
        "gamma-pairs", bool(targets), targets, targets[0] if targets else -1, float(score), nan, nan
    )


@lru_cache(maxsize=8192)
def _verdict(rule: str, how: anomaly.Rule | None, norms: Any, *more: Any) -> Verdict:
    """Kept as long as the name stands for the same rule."""
    rest = (None if values is None else np.asarray(values) for values in more)
    return anomaly.judge(Norms(np.asarray(norms), *rest), rule)


def _frozen(values: Any) -> Any:
    """A list, or a list of lists, as tuples."""
    if values is None:
        return None
    return tuple(_frozen(v) if isinstance(v, (list, tuple, np.ndarray)) else v for v in values)


def _said(what: str, verdict: Verdict | None, target: float | None) -> Any:
    if verdict is None:
        return None
    if what == "flags":
        return list(verdict.targets)
    if what == "case":
        return metrics.case_of(verdict, None if target is None else int(target))
    return getattr(verdict, what)


def right(table: pd.DataFrame, rule: str = PAPER) -> pd.Series:
    """Was each row's verdict right? Attacked: the target alone (Case I); clean: nothing flagged (Case IV)."""
    case = verdicts(table, rule)
    return (case == "I").where(table["target"].notna(), case == "IV")


def methods(table: pd.DataFrame) -> pd.Series:
    """The RED family by the paper's names: with two clean images per class L-RED is L-RED'."""
    prime = (table["detector"] == "l-red") & (table["n"] == 2)
    return table["detector"].str.upper().mask(prime, "L-RED'")


def detection_rates(table: pd.DataFrame, rule: str = PAPER) -> dict[str, dict[str, metrics.Rate]]:
    """group -> method (see `methods`) -> share of right verdicts, with denominators."""
    judged = table.assign(right=right(table, rule), method=methods(table))
    return {
        str(group): {
            str(m): metrics.rate(rows["right"].tolist()) for m, rows in block.groupby("method", sort=False)
        }
        for group, block in judged.groupby("group", sort=False)
    }


def target_weights(row: pd.Series) -> np.ndarray:
    """(K,) the weights that the search towards the true target has given to the source classes.

    Of a row whose detector weighs them and whose classifier is attacked.
    """
    if _there(row.get("weights")) is None:  # older rows hold these alone
        return np.asarray(row["target_weights"], float)
    return np.asarray(row["weights"][int(row["target"])], float)


def standing(table: pd.DataFrame) -> pd.Series:
    """The target's norm over the median of the other classes': 1 is nothing special. NaN on clean classifiers."""

    def of_row(norms: np.ndarray, target: float) -> float:
        if np.isnan(target):
            return float("nan")
        return float(norms[int(target)] / np.median(np.delete(norms, int(target))))

    import pandas as pd

    found = [of_row(np.asarray(n), float(t)) for n, t in zip(table["norms"], table["target"], strict=True)]
    return pd.Series(found, index=table.index)


def works(table: pd.DataFrame) -> pd.Series:
    """Does each attack work? ASR of 0.9 or more, and CTA within 2 points of the clean classifier's."""
    return (table["asr"] >= 0.9) & (table["cta"] >= table["clean_cta"] - 0.02)


def attack_summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per image set and attack of a table of attacks.

    Means over the seeds, the lowest ASR, and how many classifiers meet both marks of `works`.
    """
    return (
        table.assign(works=works(table))
        .groupby(["dataset", "attack"], sort=False)
        .agg(
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
    )
