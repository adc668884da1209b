"""An epoch's plan depends on seed and epoch alone: not on the number of processes, nor on where one enters it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cnnlab.augment import CropFlip, CutMix
from cnnlab.config.options import UserError
from cnnlab.data.images import Images
from cnnlab.data.loaders import Slices, refuse_few
from cnnlab.data.plan import draw_epoch, of_process, sampling_weights

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


@pytest.mark.parametrize(
    "weights", [[1, np.nan, 1], [1, -1, 1], [0, 1, 0], [1, 1], [[1, 1, 1]], [1, np.inf, 1], [1e308, 1, 1e308]]
)
def test_weights_that_nothing_can_be_drawn_by_are_refused(weights):
    images = Images(np.zeros((3, 1, 2, 2), np.uint8), np.zeros(3, np.int64), ("a",), np.array(weights))
    with pytest.raises(UserError, match="one finite, non-negative number for each training image"):
        sampling_weights(images, np.array([0, 2]), "weighted")


@pytest.mark.parametrize("num", [2, 3, 7, 100])
@pytest.mark.parametrize("side", [32, 2000])
def test_processes_have_equal_numbers_of_batches_for_evaluation_and_none_is_empty(num, side):
    def batches(rank: int) -> list:
        data = SimpleNamespace(
            trainer=SimpleNamespace(global_rank=rank, world_size=2),
            device=torch.device("cpu"),
            home=torch.device("cpu"),
            stored=SimpleNamespace(size=(side, side)),
            parts={"test": SimpleNamespace(pixels=None)},
        )
        return Slices(data, "test", torch.arange(num)).batches

    of_rank = [batches(rank) for rank in range(2)]
    assert len(of_rank[0]) == len(of_rank[1])
    assert all(len(index) for some in of_rank for _, index, _ in some)
    assert sorted(torch.cat([index for some in of_rank for _, index, _ in some]).tolist()) == [*range(num)]


def test_fewer_images_to_evaluate_than_processes_are_refused():
    data = SimpleNamespace(held_out_index=[1, 2], data=SimpleNamespace(test=SimpleNamespace(targets=[0] * 3)))
    refuse_few(data, 2)
    with pytest.raises(UserError, match="2 held-out images cannot be shared by 3 processes"):
        refuse_few(data, 3)
    data.held_out_index = []
    with pytest.raises(UserError, match="3 test images cannot be shared by 4 processes"):
        refuse_few(data, 4)
