"""An epoch's plan depends on seed and epoch alone: not on the number of processes, nor on where one enters it."""

import pytest
import torch

from cnnlab.augment import CropFlip, CutMix
from cnnlab.data.plan import draw_epoch, of_process

INDICES = torch.arange(5, 105)  # 100 training images
AUGMENTATIONS = {"crop_flip": CropFlip(), "cutmix": CutMix()}


def plan(seed=0, epoch=0, augmentations=AUGMENTATIONS):
    return draw_epoch(seed, epoch, INDICES, augmentations, size=(32, 32))


def test_every_image_comes_once():
    assert plan()["index"].sort().values.equal(INDICES)
    assert all(len(rows) == 100 for rows in plan().values())


def test_same_seed_and_epoch_same_plan_whatever_was_drawn_before():
    first = plan()
    torch.rand(10)
    assert all(first[key].equal(rows) for key, rows in plan().items())


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_another_plan(other):
    assert all(not plan()[key].equal(rows) for key, rows in plan(**other).items())


def test_order_does_not_depend_on_the_augmentation():
    assert plan(augmentations={})["index"].equal(plan()["index"])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_together_see_the_batches_of_one(world_size):
    whole = plan()
    batch_size = 28
    shares = [of_process(whole, batch_size, rank, world_size) for rank in range(world_size)]
    for key, rows in whole.items():
        of_rank = [share[key].unflatten(0, (-1, batch_size // world_size)) for share in shares]
        together = torch.cat(of_rank, 1).flatten(0, 1)
        assert together.equal(rows[: len(together)])
        assert len(together) == 100 // batch_size * batch_size  # an incomplete batch is left out


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_with_a_halo_partners_are_those_of_rolling_the_whole_batch(world_size):
    whole = plan()
    shares = [of_process(whole, 20, rank, world_size, halo=2)["index"] for rank in range(world_size)]
    steps = torch.cat([share.view(5, -1)[:, 2:] for share in shares], 1)
    assert steps.flatten().equal(whole["index"])
    for back in (1, 2):
        partners = torch.cat([share.view(5, -1)[:, 2 - back : -back] for share in shares], 1)
        assert partners.equal(steps.roll(back, 1))


def test_alternating_flips_mirror_every_image_in_every_other_epoch_whatever_its_place():
    crops = {"crop_flip": CropFlip(alternating_flips=True)}
    seen = []
    for epoch in range(3):
        drawn = plan(epoch=epoch, augmentations=crops)
        seen.append(drawn["crop_flip/flip"][drawn["index"].argsort()])
    assert seen[1].equal(~seen[0])
    assert seen[2].equal(seen[0])
    assert 30 < seen[0].sum() < 70
    others = plan(seed=1, augmentations=crops)
    assert not others["crop_flip/flip"][others["index"].argsort()].equal(seen[0])
    random, alternating = plan(augmentations={"crop_flip": CropFlip()}), plan(augmentations=crops)
    assert random["crop_flip/top"].equal(alternating["crop_flip/top"])  # crops are the same ones
