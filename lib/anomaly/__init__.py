"""From the norms of a scan to a verdict: does a class stand out, and would a clean model's?

Estimation and decision are separate rooms: any detector's norms can meet any rule of RULES here. Every
verdict carries the rule's false-positive rate under the rule's own null for this number of classes, found by
simulation.

    >>> verdict = judge(np.array([2.0, 1.9, 2.1, 0.4, 2.2]), "mad")
    >>> verdict.targets, verdict.outcome
    ((3,), 'attacked')

A search that did not reach its class has found no trigger, and its norm says only that a working one is probably
larger. Where that norm is above the median of the reached ones, it is kept as the lower bound that it is; the
other unreached classes are left out of the judgement. A scan that flags nothing and had to leave classes out is no
all-clear: its outcome is "inconclusive".

Sources: the Gamma order-statistic test is of "L-RED: Efficient Post-Training Detection of Imperceptible
Backdoor Attacks without Access to the Training Set" (Xiang et al. 2021), Sec. 3.2; the median absolute
deviation (MAD) of "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks" (Wang et
al. 2019), Sec. IV-C; MAD or a quarter of the median of B3D, "Black-box Detection of Backdoor Attacks with
Limited Information and Data" (Dong et al. 2021), Sec. 4. The calibrated Gamma test is this book's.

Non-finite or non-positive statistics are an error, not a verdict. Fewer than three classes leave no null to
fit: the Gamma rules then say so, and so does MAD, which could never flag because both deviations are equal.
"""

from .nulls import (
    anomaly_index,
    fit_gamma,
    gamma_false_positive_rate,
    log_order_p,
    log_p_values,
    log_survival,
    mad_false_positive_rate,
    union_false_positive_rate,
)
from .rules import (
    ATTACKED,
    INCONCLUSIVE,
    NOTHING,
    RULES,
    AnomalyError,
    Norms,
    Rule,
    Verdict,
    calibrated,
    gamma,
    gamma_pairs,
    judge,
    mad,
    mad_or_quarter,
    mad_pairs,
    verdicts,
)

__all__ = [
    "ATTACKED",
    "INCONCLUSIVE",
    "NOTHING",
    "RULES",
    "AnomalyError",
    "Norms",
    "Rule",
    "Verdict",
    "anomaly_index",
    "calibrated",
    "fit_gamma",
    "gamma",
    "gamma_false_positive_rate",
    "gamma_pairs",
    "judge",
    "log_order_p",
    "log_p_values",
    "log_survival",
    "mad",
    "mad_false_positive_rate",
    "mad_or_quarter",
    "mad_pairs",
    "union_false_positive_rate",
    "verdicts",
]
