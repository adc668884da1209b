"""Optimizers, schedules and knobs of the training step, against torch used by hand."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from lightning import LightningModule
from lightning.pytorch.callbacks import Timer
from omegaconf import OmegaConf
from torch import nn

from cnnlab.config.objects import instantiate
from cnnlab.config.options import CONF, UserError
from cnnlab.config.shape import Shape
from cnnlab.losses import CrossEntropy
from cnnlab.networks import ConvNet
from cnnlab.train.classifier import Classifier
from cnnlab.train.epoch_state import take_over
from cnnlab.train.optimizers import keeps_factors, make_optimizer, schedule, weight_groups
from cnnlab.train.trainer import check_parts, clip_gradients

NUM_EPOCHS, STEPS_PER_EPOCH = 4, 5


def rates(*overrides: str, metric: float | None = None) -> list[float]:
    """The learning rate of every step, as Lightning would step the schedules of a configuration, and we plateau's."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["optim.lr=0.8", *overrides])
    network = nn.Linear(2, 2)
    optim, sched = instantiate(config.optim), instantiate(config.sched)
    classifier = Classifier(network, optim, sched, warmup_epochs=config.warmup_epochs)
    steps = NUM_EPOCHS * STEPS_PER_EPOCH
    data = SimpleNamespace(num_full_batches=STEPS_PER_EPOCH)
    classifier.trainer = SimpleNamespace(
        datamodule=data, limit_train_batches=1.0, accumulate_grad_batches=1, max_epochs=NUM_EPOCHS
    )
    [optimizer], schedules = classifier.configure_optimizers()
    seen = []
    for step in range(1, steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for entry in schedules:
            if entry["interval"] == "step" or step % STEPS_PER_EPOCH == 0:
                entry["scheduler"].step(*([metric] if "monitor" in entry else []))
    return seen


EPOCHS = [step // STEPS_PER_EPOCH for step in range(NUM_EPOCHS * STEPS_PER_EPOCH)]
CLOSED_FORMS = {
    "sched=constant": [0.8 for _ in EPOCHS],
    "sched=exponential sched.gamma=0.5": [0.8 * 0.5**epoch for epoch in EPOCHS],
    "sched=step sched.step_size=2": [0.8 * 0.1 ** (epoch // 2) for epoch in EPOCHS],
    "sched=cosine": [0.4 * (1 + math.cos(math.pi * step / 20)) for step in range(20)],
    "warmup_epochs=2": [0.8 * min(1, 0.1 + 0.9 * step / 10) for step in range(20)],  # a tenth, then ten equal steps
}


@pytest.mark.parametrize("typed", CLOSED_FORMS)
def test_schedules_follow_their_formula(typed):
    assert rates(*typed.split()) == pytest.approx(CLOSED_FORMS[typed])


def test_warm_up_multiplies_the_schedule():
    warm = [min(1, 0.2 + 0.8 * step / 5) for step in range(20)]
    for sched in ("sched=cosine", "sched=exponential"):
        product = [rate * factor for rate, factor in zip(rates(sched), warm, strict=True)]
        assert rates(sched, "warmup_epochs=1") == pytest.approx(product)


SCHEDULERS = {
    "ConstantLR": {"factor": 0.5, "total_iters": 2},
    "CosineAnnealingLR": {"eta_min": 0.01},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2, "cycle_momentum": False},
    "LambdaLR": {"lr_lambda": lambda epoch: 0.9**epoch},
    "MultiStepLR": {"milestones": [1, 2]},
    "OneCycleLR": {"max_lr": 0.1},
    "PolynomialLR": {"total_iters": 4, "power": 2.0},
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_it_is_known_which_schedules_a_warm_up_can_multiply(kind):
    make = partial(getattr(torch.optim.lr_scheduler, kind), **SCHEDULERS[kind])

    def seen(warmup_steps: int) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        entry = schedule(make, optimizer, 20, "val/acc")
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup_steps, total_iters=warmup_steps)
        found = []
        for step in range(1, 21):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            warmup.step()
            if entry["interval"] == "step" or step % STEPS_PER_EPOCH == 0:
                entry["scheduler"].step()
        return found

    product = [rate * min(1, (0.1 + 0.09 * step)) for step, rate in enumerate(seen(1))]
    as_product = seen(10) == pytest.approx(product, rel=0.05)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    assert keeps_factors(schedule(make, optimizer, 20, "val/acc")["scheduler"]) == as_product


def test_a_warm_up_that_a_schedule_would_overwrite_is_refused():
    data, module = SimpleNamespace(num_batches=10, batch_size=8, train_index=range(80)), plain()
    parts = SimpleNamespace(network=nn.Linear(2, 2), higher=True, select_on="val/acc", data=data, module=module)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["sched=onecycle", "warmup_epochs=1"])
    with pytest.raises(UserError, match=r"OneCycleLR sets every rate anew.* Use warmup_epochs=0"):
        check_parts(config, parts, {})
    config.warmup_epochs = 0.0
    check_parts(config, parts, {})
    config.sched.pct_start = 0.01  # of 100 steps, which are not those of the run, it would rise in none
    check_parts(config, parts, {})


@pytest.mark.parametrize("own", [Timer(), [Timer(), Timer()]])
def test_callbacks_of_a_module_are_refused_as_nothing_checks_them(own):
    config = OmegaConf.create({"module": {"_target_": "own.modules.GAN"}})
    module = LightningModule()
    module.configure_callbacks = lambda: own
    with pytest.raises(UserError, match=r"own.modules.GAN.configure_callbacks returns Timer.*callbacks=NAME"):
        check_parts(config, SimpleNamespace(module=module), {})


def test_onecycle_rises_to_the_rate_and_falls_over_the_whole_training():
    seen = rates("sched=onecycle", "sched.pct_start=0.3")
    assert max(seen) == pytest.approx(0.8)
    assert seen.index(max(seen)) == round(0.3 * 20) - 1
    assert seen[0] == pytest.approx(0.8 / 25)
    assert seen[-1] == pytest.approx(0.8 / 25 / 1e4)


@pytest.mark.parametrize("factors", [(0.1, 1.0), (10.0, 1.0), (0.1, 0.1)])
def test_onecycle_keeps_the_rates_of_layers_as_multiples_of_its_own(factors):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    scale = {str(layer): factor for layer, factor in enumerate(factors)}
    optimizer = make_optimizer(lambda groups: torch.optim.SGD(groups, lr=0.8), network, True, scale)
    onecycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.8)
    scheduler, highest = schedule(onecycle, optimizer, 20, "val/acc")["scheduler"], [0.0, 0.0]
    for _ in range(20):
        optimizer.step()
        rates = {id(weights): group["lr"] for group in optimizer.param_groups for weights in group["params"]}
        highest = [max(before, rates[id(layer.weight)]) for before, layer in zip(highest, network, strict=True)]
        scheduler.step()
    assert highest == pytest.approx([0.8 * factor for factor in factors])


@pytest.mark.parametrize(("sched", "name"), [("cosine", "T_max"), ("onecycle", "total_steps")])
def test_a_length_that_would_be_replaced_by_that_of_the_training_is_refused(sched, name):
    with pytest.raises(UserError, match=rf"sched\.{name}=3 .* Leave sched\.{name} out"):
        rates(f"sched={sched}", f"+sched.{name}=3")


def test_plateau_waits_for_the_metric():
    seen = rates("sched=plateau", "sched.patience=1", metric=0.5)
    assert seen == pytest.approx([0.8 if epoch < 3 else 0.4 for epoch in EPOCHS])
    entry = schedule(torch.optim.lr_scheduler.ReduceLROnPlateau, torch.optim.SGD([torch.zeros(1)], 0.1), 9, "val/acc")
    assert (entry["interval"], entry["monitor"]) == ("epoch", "val/acc")


def test_decay_spares_biases_and_norms_if_asked():
    network = ConvNet(batch_norm=True)
    assert [len(group["params"]) for group in weight_groups(network, decay_all=True)] == [16]
    decayed, spared = weight_groups(network, decay_all=False)
    names = {id(weights): name for name, weights in network.named_parameters()}
    assert {names[id(w)] for w in decayed["params"]} == {
        f"{name}.weight" for name in ("conv1", "conv2", "conv3", "fc4", "fc5")
    }
    assert len(spared["params"]) == 11
    assert spared["weight_decay"] == 0
    optimizer = torch.optim.SGD([decayed, spared], lr=0.1, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0]


def test_lbfgs_steps_convolutions_in_channels_last_as_in_any_layout():
    images, targets = torch.randn(6, 3, 4, 4, dtype=torch.float64), torch.arange(6) % 3
    first = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)).double()
    second = copy.deepcopy(first)
    first.to(memory_format=torch.channels_last)
    make = partial(torch.optim.LBFGS, lr=0.1, max_iter=3)
    for network, optimizer in ((first, make_optimizer(make, first, True)), (second, make(second.parameters()))):

        def closure(network=network, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images.to(memory_format=torch.channels_last)), targets)
            loss.backward()
            return loss

        optimizer.step(closure)
    for found, expected in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def plain(**options) -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    return Classifier(network, torch.optim.SGD, torch.optim.lr_scheduler.ConstantLR, **options)


IMAGES, LABELS = torch.randn(7, 3, 4, 4), torch.arange(7) % 5


def test_label_smoothing_counts_in_training_alone():
    classifier = plain(loss=CrossEntropy(label_smoothing=0.2))
    shares = 0.8 * F.one_hot(LABELS, 5) + 0.2 / 5
    expected = -(shares * classifier(IMAGES).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(classifier.training_step((IMAGES, LABELS), 0), expected)
    classifier.eval()
    classifier.validation_step((IMAGES, LABELS), 0)
    loss = classifier.evaluation_sums.totals()[0] / 7
    torch.testing.assert_close(loss.float(), F.cross_entropy(classifier(IMAGES), LABELS))


def test_flips_at_evaluation_take_the_mean_of_both():
    classifier = plain(test_flips=True)
    classifier.validation_step((IMAGES, LABELS), 0)
    logits = (classifier(IMAGES) + classifier(IMAGES.flip(3))) / 2
    torch.testing.assert_close((classifier.evaluation_sums.totals()[0] / 7).float(), F.cross_entropy(logits, LABELS))
    torch.testing.assert_close(
        classifier.training_step((IMAGES, LABELS), 0), F.cross_entropy(classifier(IMAGES), LABELS)
    )


@pytest.mark.parametrize("flips", [False, True])
def test_shifts_at_evaluation_take_the_mean_of_moved_images(flips):
    classifier = plain(test_flips=flips, test_shifts=1)
    mirrored = [1, 0, 1, 2, 3, 2]  # rows, and columns, with one mirrored at each edge
    wide = IMAGES[:, :, mirrored][:, :, :, mirrored]
    views = [IMAGES, wide[:, :, 2:, 2:], wide[:, :, :4, :4]]
    views += [view.flip(3) for view in views] if flips else []
    logits = torch.stack([classifier(view) for view in views]).mean(0)
    torch.testing.assert_close(classifier.validation_step((IMAGES, LABELS), 0), logits)


def trained(lr_scale: list[str]) -> tuple[dict[str, torch.Tensor], Classifier, torch.optim.Optimizer]:
    """What one step has changed of each tensor of a network, as a multiple of what plain SGD does."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    before = {name: values.clone() for name, values in network.state_dict().items()}
    classifier = Classifier(network, torch.optim.SGD, torch.optim.lr_scheduler.ConstantLR, lr_scale=lr_scale)
    optimizer = make_optimizer(lambda groups: torch.optim.SGD(groups, lr=0.1), network, True, classifier.lr_scale)
    classifier.training_step((IMAGES, LABELS), 0).backward()
    optimizer.step()
    return {name: values - before[name] for name, values in network.state_dict().items()}, classifier, optimizer


def test_rates_of_layers_are_multiples_and_0_freezes_weights_and_statistics():
    plain, _, _ = trained([])
    faster, _, optimizer = trained(["3:10", "3.bias:0.5"])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 1.0, 0.05])
    torch.testing.assert_close(faster["3.weight"], 10 * plain["3.weight"])
    torch.testing.assert_close(faster["3.bias"], 0.5 * plain["3.bias"])
    assert faster["0.weight"].equal(plain["0.weight"])
    frozen, classifier, _ = trained(["0:0", "1:0"])
    classifier.try_it(Shape(5, 3, 4, 4))  # which evaluates, and leaves each layer as it was
    assert [name for name, change in frozen.items() if change.any()] == ["3.weight", "3.bias"]
    assert [layer.training for layer in classifier.network] == [False, False, True, True]


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (["4:1"], r"no weight's name begins with 4\. The layers are 0, 1, 3"),
        (["0:-1"], r"lr_scale=\[0:-1\] is not LAYER:FACTOR"),
        (["0:much"], r"Use lr_scale=\[fc:10,conv1:0\]"),
        (["0"], "is not LAYER:FACTOR"),
    ],
)
def test_rates_that_are_none_and_layers_that_there_are_none_of(scale, said):
    with pytest.raises(UserError, match=said):
        trained(scale)


def test_compiled_or_not_a_network_has_the_same_weights_by_the_same_names(monkeypatch):
    """The compiler itself is torch's: here its backend runs what Dynamo has traced as it is."""
    compiler, compiled_by_torch = torch.compile, []

    def compile(work, **options):
        compiled_by_torch.append(work)
        return compiler(work, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile)
    compiled, usual = plain(compile=True), plain()
    for classifier in (compiled, usual):
        classifier.training_step((IMAGES, LABELS), 0).backward()
    assert compiled_by_torch == [compiled.loss_of]
    assert list(compiled.state_dict()) == list(usual.state_dict())
    for mine, theirs in zip(compiled.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert compiled.validation_step((IMAGES, LABELS), 0).equal(usual.validation_step((IMAGES, LABELS), 0))


def test_gradients_of_float16_are_clipped_before_a_fused_optimizer_steps():
    """Lightning refuses this; against the same step in float32."""
    weights, reference = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD([weights], lr=1.0, fused=True)
    plugin = SimpleNamespace(scaler=scaler, main_params=lambda optimizer: [weights])
    plugin.clip_grad_by_norm = lambda optimizer, norm: nn.utils.clip_grad_norm_(weights, norm)
    scaler.scale(weights.square().sum() / 2).backward()  # the gradient is the weights, of norm 5
    clip_gradients(plugin, optimizer, 1.0)
    scaler.step(optimizer)
    torch.testing.assert_close(weights, reference - torch.tensor([0.6, 0.8]), rtol=1e-5, atol=1e-5)


class Counting(nn.Module):
    """A loss with a buffer that every call changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, outputs, targets):
        self.calls += 1
        return F.cross_entropy(outputs, targets)


def test_a_loss_is_tried_without_changing_it():
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), None, None, loss=Counting())
    classifier.try_it(Shape(3, 3, 2, 2))
    assert classifier.loss.calls == 0


def test_values_of_a_module_are_of_all_processes_and_a_plateau_steps_once_before_the_checkpoint():
    logged, stepped = [], []
    module = SimpleNamespace(log=lambda name, value, **how: logged.append(how))
    loop = SimpleNamespace(
        update_lr_schedulers=lambda interval, update_plateau_schedulers: stepped.append(
            (interval, update_plateau_schedulers)
        )
    )
    trainer = SimpleNamespace(world_size=2, fit_loop=SimpleNamespace(epoch_loop=loop))
    step = take_over(trainer, module)
    module.log("loss", 1.0)
    module.log("loss", 1.0, sync_dist=False)
    module.log("loss", 1.0, rank_zero_only=True)
    found = [{"sync_dist": True}, {"sync_dist": False}, {"sync_dist": False, "rank_zero_only": True}]
    assert logged == found
    step()
    for plateau in (False, True):
        loop.update_lr_schedulers("step", update_plateau_schedulers=plateau)
        loop.update_lr_schedulers("epoch", update_plateau_schedulers=plateau)  # with plateau: Lightning's, too late
    assert stepped == [("epoch", True), ("step", False), ("epoch", False), ("step", True)]
