"""The pace of scans beside the floor."""

import torch

from lib.audit import bench


def test_every_detector_has_a_pace_and_no_setting_is_left_changed(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", {"small": (1, 16, 16)})
    before = torch.get_num_threads()
    for threads in (1, 2):
        found = list(bench.scans(seconds=0.2, threads=threads))
        assert [p.detector for p in found] == ["l-red", "u-red", "neural-cleanse", "usb", "b3d"]
        assert all(0 < p.share < 3 and p.gradients + p.answers > 0 and p.threads == threads for p in found)
        assert [p.gradients > 0 for p in found] == [True] * 4 + [False]
        assert torch.get_num_threads() == before
