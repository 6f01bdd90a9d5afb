"""Attacks that need a model or the training: what they do to the model, and what they leave behind."""

from dataclasses import replace

import pretend
import pytest
import torch
from attack_samples import CRAFTED, image_set, job, on_grid
from torch import nn

from lib import metrics, models, train, zoo
from lib.attacks import AttackError, Trojan
from lib.attacks.crafted import batches

pytestmark = pytest.mark.long


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 11, 9)], ids=["grey", "colour, odd"])
@pytest.mark.parametrize("name", CRAFTED)
def test_training_attacks_are_deterministic_and_stay_on_the_grid(name, shape):
    attack, at_work = CRAFTED[name], job(shape)
    state = torch.random.get_rng_state()
    model, learnt = attack.train(at_work)
    assert torch.equal(state, torch.random.get_rng_state())
    again, learnt_again = attack.train(job(shape))
    assert learnt.keys() == learnt_again.keys() and bool(learnt) == attack.learns
    assert all(torch.equal(learnt[k], learnt_again[k]) for k in learnt)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    stamped = attack.with_learnt(learnt).embed(at_work.images)
    assert stamped.shape == at_work.images.shape and on_grid(stamped)
    assert not model.training and all(p.requires_grad for p in model.parameters())
    clean = metrics.cta(models.predict(model, at_work.images), at_work.labels)
    assert float(clean) > 0.9 or name == "trojan without images"  # which may cost accuracy


@pytest.mark.parametrize("name", [n for n, a in CRAFTED.items() if a.learns])
def test_a_trigger_that_is_learnt_cannot_be_used_before(name):
    x, _ = image_set()
    with pytest.raises(AttackError, match="learnt in training"):
        CRAFTED[name].embed(x)


def test_a_learnt_patch_does_not_fit_images_of_other_channels():
    ready = CRAFTED["trojan"].with_learnt({"pattern": torch.zeros(1, 3, 3)})
    with pytest.raises(AttackError, match=r"\(1, 3, 3\), these images need \(3, 3, 3\)"):
        ready.embed(torch.zeros(2, 3, 8, 8))


def test_more_neurons_than_there_are_is_refused():
    with pytest.raises(AttackError, match="neurons = 25: the last hidden layer has 24"):
        replace(CRAFTED["trojan"], neurons=25).train(job())


def test_the_label_consistent_attack_keeps_labels_and_its_radius():
    at_work = job()
    attack = replace(CRAFTED["label-consistent"], epsilon=20)
    with pytest.raises(AttackError, match="needs a clean model"):
        attack.poison(at_work.images, at_work.labels, torch.Generator())
    model = at_work.clean_model()
    p = attack.poison(at_work.images, at_work.labels, torch.Generator().manual_seed(0), model=model)
    assert torch.equal(p.labels, at_work.labels[p.source])
    originals = at_work.images[p.source[p.poisoned]]
    changed = attack.manipulate(model, originals, at_work.labels[p.source[p.poisoned]])
    assert (changed - originals).abs().max() <= 20.01 / 255 and on_grid(changed)
    before, after = (
        nn.functional.cross_entropy(model(x), torch.ones(30, dtype=torch.long)) for x in (originals, changed)
    )
    assert after > before


def test_input_aware_triggers_differ_between_images():
    at_work = job()
    attack = CRAFTED["input-aware"]
    ready = attack.with_learnt(attack.train(at_work)[1])
    x = at_work.images
    assert torch.equal(ready.cross_embed(x, x), ready.embed(x))
    assert not torch.equal(ready.cross_embed(x, x.roll(1, 0)), ready.embed(x))


def test_the_latent_backdoor_needs_no_poisoned_label_and_pulls_features_to_the_target():
    at_work = job()
    attack = replace(CRAFTED["latent"], epochs=40)
    model, learnt = attack.train(at_work)
    ready, others = attack.with_learnt(learnt), at_work.images[at_work.labels != 1]
    goal = models.hidden(model, at_work.images[at_work.labels == 1]).mean(0)
    clean, stamped = (
        (models.hidden(model, x) - goal).square().sum(1).mean() for x in (others, ready.embed(others))
    )
    assert stamped < 0.6 * clean


def test_what_an_attack_learnt_is_kept_with_the_model(tmp_path):
    attack = Trojan(target=1, size=4, steps=3, per_source=3, epochs=1)
    spec = zoo.Spec(n_train=120, recipe=train.Recipe(epochs=1, batch_size=32, lr=1e-3), attack=attack)
    first = zoo.get(spec, zoo=tmp_path)
    second = zoo.get(spec, zoo=tmp_path)
    x = first.dataset.test_images[:20]
    assert first.path == second.path and first.record == {k: second.record[k] for k in first.record}
    assert torch.equal(first.attack.embed(x), second.attack.embed(x))
    (first.path / zoo.LEARNT).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        third = zoo.get(spec, zoo=tmp_path)
    assert torch.equal(third.attack.embed(x), first.attack.embed(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CRAFTED)
def test_training_attacks_run_on_a_gpu(name):
    on_gpu = job(device="cuda")
    model, learnt = CRAFTED[name].train(on_gpu)
    stamped = CRAFTED[name].with_learnt({k: v.cpu() for k, v in learnt.items()}).embed(on_gpu.images)
    assert stamped.is_cuda and on_grid(stamped.cpu())
    clean = metrics.cta(models.predict(model, on_gpu.images), on_gpu.labels)
    assert float(clean) > 0.9 or name == "trojan without images"  # which may cost accuracy


class Ones(nn.Module):
    def forward(self, x):
        return torch.ones_like(x[:, :1])


def test_a_cross_trigger_in_training_is_that_of_another_image():
    """The pattern of an image is the image itself, and its mask is full: what is shown tells whose trigger it is."""
    attack, at_work, shown = replace(CRAFTED["input-aware"], epochs=1), job(), []
    model = at_work.build()
    model.register_forward_pre_hook(lambda _, given_: shown.append(given_[0].detach()))
    attack._train_jointly(model, nn.Identity(), Ones(), at_work, torch.Generator().manual_seed(0))
    order = batches(150, 32, 1, torch.Generator().manual_seed(0), progress=False, title="")
    for index, seen in zip(order, shown, strict=True):
        x = at_work.images[index]
        n = round(0.25 * len(x))
        whose = torch.cdist(seen.flatten(1), x.flatten(1)).argmin(1)
        assert whose[:n].tolist() == list(range(n))
        assert sorted(whose[n : 2 * n].tolist()) == list(range(n, 2 * n))
        assert all(whose[i] != i for i in range(n, 2 * n))
        assert whose[2 * n :].tolist() == list(range(2 * n, len(x)))


@pytest.mark.parametrize("name", CRAFTED)
def test_training_attacks_are_the_same_elsewhere(name):
    """On a GPU that is pretended (see `pretend`)."""
    attack = replace(
        CRAFTED[name], **{k: 2 for k in ("steps", "epochs", "mask_epochs") if hasattr(CRAFTED[name], k)}
    )
    here = job(epochs=2)
    model, learnt = attack.train(here)
    with pretend.device() as there:
        on_it = replace(
            here,
            images=here.images.to(there),
            labels=here.labels.to(there),
            build=lambda: pretend.moved(here.build()),
        )
        model_, learnt_ = attack.train(on_it)
        x = attack.with_learnt({k: v.cpu() for k, v in learnt_.items()}).embed(on_it.images)
        assert x.device == there and learnt_.keys() == learnt.keys()
        for a, b in zip(model.state_dict().values(), model_.state_dict().values(), strict=True):
            assert torch.allclose(a, b.cpu(), atol=1e-4)
