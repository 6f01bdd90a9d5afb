"""What a few classifiers of the default book must be on every machine: their weights' bytes, norms, and verdict.

`test_reproducible.py` runs this module as a program, under the machine's own kernels and under the oldest ones:

    python -m tests.golden                     # JSON: name -> findings
    python -m tests.golden > tests/golden.json # anew, after a change of training, networks or digits
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

from lib import anomaly, attacks, classifier, detectors, zoo

FILE = Path(__file__).with_name("golden.json")
# Not the kernels of this processor, but those that every x86-64 one has. Elsewhere PyTorch passes over these names.
OLDEST = {"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
CASES = {
    f"{group}, seed {seed}": (group, seed)
    for seed in (980, 981, 982)
    for group in ("G-3", "patch-3", "L-1", "C-0")
}
FIRST = tuple(CASES)[:2]  # in every run of the tests; the rest at night


def findings(group: str, seed: int) -> dict[str, object]:
    """Trains the classifier and scans it with L-RED."""
    torch.set_num_threads(1)
    attack = None if group == "C-0" else attacks.group(group, "digits")
    spec = zoo.Spec(attack=attack, seed=seed)
    made = classifier.trained(spec, spec.load_data())
    state = made.model.state_dict()
    sha = hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state)))
    scan = made.scan(detectors.LRED(), 8)
    flagged = list(anomaly.judge(scan, "calibrated").targets)
    return {
        "weights": sha.hexdigest(),
        "norms": [round(float(x), 6) for x in scan.norms],
        "flagged": flagged,
    }


if __name__ == "__main__":
    names = sys.argv[1:] or CASES
    print(json.dumps({name: findings(*CASES[name]) for name in names}, indent=1))
