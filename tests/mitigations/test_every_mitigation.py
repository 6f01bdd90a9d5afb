"""What every filter and repair must do: one signature, a model left alone, bad input refused."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import fields, replace

import pretend
import pytest
import torch
from backdoors import KINDS, TARGET, THOROUGH, Oracle, Planted, both, images_of, judged, scan_of, trigger_of
from torch import nn

from lib import metrics, mitigations
from lib.detectors import LRED
from lib.mitigations import (
    ActivationFilter,
    DetectAndPatch,
    Filter,
    KLScore,
    PatchEveryLabel,
    Pruning,
    Repair,
    Strip,
    Trigger,
    Unlearning,
    recovered,
    triggers_of,
)

pytestmark = pytest.mark.long

FILTERS: dict[str, Filter] = {
    "activation filter": ActivationFilter(),
    "S(x)": KLScore(),
    "STRIP": Strip(overlays=10),
}
REPAIRS: dict[str, Repair] = {
    "unlearning": Unlearning(sample=0.5),
    "pruning": Pruning(),
    "patch every label": PatchEveryLabel(unlearning=Unlearning(sample=0.5)),
    "detect and patch": DetectAndPatch(detector=Oracle(), suspected=(TARGET,), max_rounds=2, n_clean=5),
}
# Settings under which a repair has done its work on so small a network.
ENOUGH = {
    "unlearning": THOROUGH,
    "pruning": Pruning(),
    "patch every label": PatchEveryLabel(unlearning=THOROUGH),
    "detect and patch": DetectAndPatch(
        detector=Oracle(), rule="mad-or-quarter", unlearning=THOROUGH, n_clean=10
    ),
}
HELD = images_of(60)

every_filter = pytest.mark.parametrize("name", FILTERS)
every_repair = pytest.mark.parametrize("name", REPAIRS)
every_one = pytest.mark.parametrize("name", [*FILTERS, *REPAIRS])


def fit(name: str, model: nn.Module, triggers: object, images: object, labels: object, **more: int) -> object:
    """Whatever is fitted, a Filter without the labels."""
    if name in FILTERS:
        return FILTERS[name].fit(model, triggers, images)
    return REPAIRS[name].fit(model, triggers, images, labels, **more)


def test_every_mitigation_is_here() -> None:
    """What is parametrised below is about all of them."""
    kinds = {k for k in vars(mitigations).values() if inspect.isclass(k) and hasattr(k, "fit")}
    kinds = {k for k in kinds if not inspect.isabstract(k) and k is not Filter}
    assert kinds == {type(one) for one in (FILTERS | REPAIRS).values()} and ENOUGH.keys() == REPAIRS.keys()


def parameters(method: Callable[..., object]) -> list[tuple[str, object, object]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]


@every_one
def test_all_are_called_alike(name: str) -> None:
    one, protocol = (FILTERS[name], Filter) if name in FILTERS else (REPAIRS[name], Repair)
    assert parameters(type(one).fit) == parameters(protocol.fit)


@every_one
@pytest.mark.parametrize("training", [True, False])
def test_the_model_given_stays_as_it_was(name: str, training: bool) -> None:
    model, trigger = Planted("patch").train(training), trigger_of("patch")
    model.act.train(not training)
    model.hidden.weight.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    made = fit(name, model, [trigger], *HELD)
    assert torch.equal(state, torch.random.get_rng_state())
    if isinstance(made, nn.Module):
        shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in made.parameters()}
        assert made is not model and not made.training and not shared
    modes = {name: module.training is training for name, module in model.named_modules()}
    assert modes == {"": True, "hidden": True, "act": False, "head": True}
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["hidden.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@every_one
def test_it_is_the_same_elsewhere(name: str) -> None:
    """On a GPU that is pretended (see `pretend`)."""
    trigger, x = trigger_of("patch"), images_of(20, 1).images
    here = fit(name, Planted("patch"), [trigger], *HELD)
    with pretend.device() as there:
        held = [part.to(there) for part in HELD]
        made = fit(name, pretend.moved(Planted("patch")), [trigger], *held)
        if name in FILTERS:
            assert torch.allclose(made.score(x.to(there)).cpu(), here.score(x), atol=1e-4)  # type: ignore[attr-defined]
        else:
            said = made(x.to(there))  # type: ignore[operator]
            assert said.device == there and torch.allclose(said.cpu(), here(x), atol=1e-3)  # type: ignore[operator]


@every_filter
def test_a_score_is_the_same_each_time(name: str) -> None:
    model, triggers = Planted("patch"), [trigger_of("patch")]
    one, two = (FILTERS[name].fit(model, triggers, HELD.images) for _ in range(2))
    x = images_of(20, 1).images
    assert torch.equal(one.clean_scores, two.clean_scores) and torch.equal(one.score(x), two.score(x))
    assert one.score(x).shape == (20,) and torch.equal(one.score(HELD.images), one.clean_scores)


@every_filter
@pytest.mark.parametrize("kind", KINDS)
def test_a_stamped_image_is_more_suspect_than_a_clean_one(name: str, kind: str) -> None:
    model, trigger = Planted(kind), trigger_of(kind)
    filtering = FILTERS[name].fit(model, [trigger], images_of(60).away(TARGET).images)
    clean = images_of(60, 1).away(TARGET).images
    assert metrics.auc(filtering.score(trigger(clean)), filtering.score(clean)) > 0.9
    assert filtering.rejects(trigger(clean)).float().mean() > 0.9
    assert filtering.rejects(clean).float().mean() < 0.2


@every_repair
@pytest.mark.parametrize("kind", KINDS)
def test_a_repair_takes_the_planted_backdoor_out_and_leaves_the_rest(name: str, kind: str) -> None:
    model, trigger = Planted(kind), trigger_of(kind)
    known = [] if name == "detect and patch" else [trigger]  # which is to find it
    repaired = ENOUGH[name].fit(model, known, *images_of(300), seed=1)
    before, after = (judged(m, trigger) for m in (model, repaired))
    assert before.asr.value == before.accuracy.value == 1
    assert after.asr.value < 0.1 and after.accuracy.value > 0.95 and after.true_label.value > 0.9


@every_repair
def test_the_same_seed_gives_the_same_repair(name: str) -> None:
    model, triggers, x = Planted("patch"), [trigger_of("patch")], images_of(20, 1).images
    one, two, three = (REPAIRS[name].fit(model, triggers, *HELD, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one(x), two(x))
    assert torch.equal(one(x), three(x)) == (name == "pruning"), "only pruning draws nothing"


@every_filter
def test_of_several_triggers_the_largest_score_counts(name: str) -> None:
    model, triggers = both(), [trigger_of(kind) for kind in KINDS]
    x = images_of(30, 1).images
    inputs = torch.cat([x, *(trigger(x) for trigger in triggers)])
    together = FILTERS[name].fit(model, triggers, HELD.images)
    alone = [FILTERS[name].fit(model, [trigger], HELD.images) for trigger in triggers]
    wanted = torch.stack([one.score(inputs) for one in alone]).amax(0)
    assert torch.equal(together.score(inputs), wanted)
    assert torch.equal(together.clean_scores, torch.stack([one.clean_scores for one in alone]).amax(0))


@every_one
@pytest.mark.parametrize("what", ["a trigger", "a function", "nothing", "a scan's class"])
def test_anything_but_a_sequence_of_triggers_is_refused(name: str, what: str) -> None:
    trigger = trigger_of("patch")
    bad = {"a trigger": trigger, "a function": [trigger.embed], "nothing": None, "a scan's class": [TARGET]}
    with pytest.raises(ValueError, match=r"triggers.* is of type .*: a sequence of triggers is needed"):
        fit(name, Planted("patch"), bad[what], *HELD)


@pytest.mark.parametrize("name", ["activation filter", "S(x)", "pruning", "patch every label"])
def test_without_a_trigger_there_is_nothing_to_fit(name: str) -> None:
    with pytest.raises(ValueError, match="at least one is needed"):
        fit(name, Planted("patch"), [], *HELD)


@every_one
def test_images_that_are_none_are_refused(name: str) -> None:
    images, labels = HELD
    for bad, of in ((images[0], labels), (images[:0], labels[:0])):
        with pytest.raises(ValueError, match=r"\(N, C, H, W\) with N >= 1 is needed"):
            fit(name, Planted("patch"), [trigger_of("patch")], bad, of)


@every_repair
def test_labels_of_other_images_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="one label per image"):
        fit(name, Planted("patch"), [trigger_of("patch")], HELD.images, HELD.labels[:5])


@every_one
def test_what_a_setting_cannot_be_is_refused_by_name(name: str) -> None:
    one, nothing = (FILTERS | REPAIRS)[name], "nothing of the kind"
    for f in fields(one):
        bad = [-1, float("nan"), float("inf"), float("-inf"), True, None, ["a list"], (0.1, -2), {}]
        for value in bad + [nothing] * (f.name != "layer"):  # any text may be a layer's name
            with pytest.raises(ValueError, match=f.name):
                replace(one, **{f.name: value})


def test_detect_and_patch_refuses_before_it_scans() -> None:
    with pytest.raises(ValueError, match=r"rule = 'gamma-pairs'.*LRED looks at none"):
        DetectAndPatch(detector=LRED(), rule="gamma-pairs")
    with pytest.raises(ValueError, match=r"suspected = \(3,\): classes from 0 to 2"):
        DetectAndPatch(detector=LRED(), suspected=(3,)).fit(Planted("patch"), [], *HELD)


# --- triggers


def test_a_trigger_is_a_function_with_a_target() -> None:
    scan, x = scan_of("patch"), images_of(4).images
    trigger = recovered(scan, TARGET)
    assert trigger.target == TARGET and torch.equal(trigger(x), scan.embed(x, TARGET))
    assert (trigger(x)[..., -2:, -2:] == 1).all() and torch.equal(trigger(x)[..., :-2], x[..., :-2])
    every = triggers_of(scan)
    assert [one.target for one in every] == [0, 1, 2] and torch.equal(every[TARGET](x), trigger(x))
    assert "tensor" not in repr(every), "a trigger in a notebook must not print its scan"
    assert torch.equal(Trigger(lambda z: z + 1, 0)(x), x + 1)


def test_recovered_names_a_class_that_is_not_there() -> None:
    for bad in (3, -1):
        with pytest.raises(ValueError, match=f"target = {bad}: the scan has classes 0 to 2"):
            recovered(scan_of("patch"), bad)
