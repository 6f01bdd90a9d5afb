"""The RED Book's package: poison an image classifier, find the backdoor, take it out.

Five nouns, each with one home, and one verb from each to the next:

    Dataset -> Classifier -> Scan -> Verdict -> a row, a report, or a repaired Classifier

    images = data.load("digits")                                   # Dataset
    c = zoo.get(attack=attacks.group("G-3", "digits"))             # poisoned, trained once, kept: Classifier
    scan = c.scan(detectors.LRED(), n=8)                           # a norm for every class: Scan
    verdict = anomaly.judge(scan, "calibrated")                    # attacked? which class? Verdict
    trigger = mitigations.recovered(scan, verdict.suspect)         # what the detector found
    repair = mitigations.Unlearning(sample=1.0, epochs=3)          # on images that carry it, with true labels
    model = repair.fit(c.model, [trigger], *images.train)          # a repaired copy
    c.with_model(model).evaluate()                                 # Classifier again

The rooms, in the order of the chapters:

    data         image sets, and clean images drawn from them        chapter 1
    attacks      what is stamped, with which label                   1, 7
    train, zoo   recipes, and classifiers that are trained once      2
    classifier   a model, its images, its attack                     2
    models       what can be asked of a network                      2
    detectors    L-RED and its rivals: a model in, norms out         3, 4, 8 to 11
    anomaly      from norms to a verdict                             5
    metrics      ASR, CTA, rates with intervals: what needs the truth  2, 6, 12
    experiments  grids of classifiers and detectors, and tables      6, 7, 11
    mitigations  filters for inputs, repairs of the model            13, 14
    widgets      the explorers                                       4, 5, 15
    audit        a model of one's own, a report to hand on           `redbook scan`
    plot, prose  figures, and numbers on their way into text
    settings     what a setting may be, declared beside it
    yaml_files   YAML that people write by hand, read strictly
    fingerprint  which code made a number
    files        written whole or not at all, one process at a time
    book, cli    the build, and the command line

Nothing imports upward: tests/test_repo.py has the floors.
"""

import sys

__version__ = "0.1.0"

# In a checkout the package is `lib`, installed it is `redbook`. One process may load one of them: classes of the
# two would not know each other.
for _other in {"lib", "redbook"} - {__name__}:
    if getattr(sys.modules.get(_other), "__doc__", None) == __doc__:
        raise ImportError(f"this package is loaded already, as {_other}: import it under that name")
del _other
