"""Parts of other origin than ours are stopped within an epoch and resumed like ours, or refused in one sentence."""

import sys
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule

import cnnlab
from cnnlab import testing
from cnnlab.config.options import UserError
from cnnlab.train.epoch_state import epoch_state
from cnnlab.train.logged import merged

PARTS = '''
import copy
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule
from lightning.pytorch.callbacks import BaseFinetuning
from torchmetrics import MeanMetric
from cnnlab.train.classifier import Classifier


class Net(torch.nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, 2), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 4, 3, 2)
        )
        self.head = torch.nn.LazyLinear(num_classes)
        self.aux = False

    def forward(self, images):
        outputs = self.head(self.body(images).flatten(1))
        return (outputs, outputs) if self.aux and self.training else outputs


class Fits(Net):
    def fit(self, images, targets=None):
        pass


class Uneven(Net):
    """Has a buffer that is not saved with the weights."""

    def __init__(self, num_classes: int):
        super().__init__(num_classes)
        self.register_buffer("steps", torch.zeros(()), persistent=False)
        self.register_buffer("cache", None, persistent=False)

    def forward(self, images):
        if self.training:
            self.steps += 1
            self.cache = self.steps.expand(len(images), 1)
        return super().forward(images) * (1 + 0.1 * self.steps)


class Auxiliary(Net):
    def __init__(self, num_classes: int):
        super().__init__(num_classes)
        self.aux = True


class Teacher(Classifier):
    """Its teacher follows after every step, and is asked in the next one."""

    def __init__(self, *parts, **more):
        super().__init__(*parts, **more)
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)

    def loss_of(self, images, targets):
        loss, logits = super().loss_of(images, targets)
        return loss + F.mse_loss(logits, self.teacher(images)), logits

    def on_train_batch_end(self, outputs, batch, batch_idx):
        for own, taught in zip(self.network.parameters(), self.teacher.parameters(), strict=True):
            taught.data.lerp_(own.data, 0.5)


class Annealed(Classifier):
    """What is set when an epoch begins: an attribute, a buffer, random numbers, and logged values."""

    def __init__(self, *parts, **more):
        super().__init__(*parts, **more)
        self.register_buffer("factor", torch.ones(()))

    def on_train_start(self):
        torch.rand(())

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        self.share, self.noise = 0.1 * self.current_epoch, torch.rand(())
        self.factor *= 0.5
        self.log("train/share", self.share, reduce_fx="sum")

    def loss_of(self, images, targets):
        loss, logits = super().loss_of(images, targets)
        return loss * self.factor + self.share * logits.square().mean() * self.noise, logits


class Rarely(Annealed):
    """Logs a value in the first step of an epoch, and the largest of some."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.log("train/first", batch[0].mean(), on_epoch=True, on_step=False)
        self.log("train/largest", batch[0].max(), on_epoch=True, on_step=False, reduce_fx="max")
        return super().training_step(batch, batch_idx)

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        self.log("train/epoch", float(self.current_epoch))


class Lean(Classifier):
    """Leaves the body out of its checkpoints, which is always the same."""

    strict_loading = False

    def __init__(self, *parts, **more):
        super().__init__(*parts, **more)
        self.network.body.requires_grad_(False)

    def state_dict(self):
        return {name: values for name, values in super().state_dict().items() if "body" not in name}


class Estimating(Classifier):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Manual(LightningModule):
    """Steps every third batch, also across epochs."""

    def __init__(self, network, held_out):
        super().__init__()
        self.network, self.held_out, self.automatic_optimization = network, held_out, False
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def training_step(self, batch, batch_idx):
        images, targets = batch
        loss = F.cross_entropy(self.network(images), targets)
        self.manual_backward(loss)
        self.batches += 1
        if self.batches % 3 == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()
        self.log("train/loss", loss)

    def validation_step(self, batch, batch_idx):
        images, targets = batch
        self.log(f"{self.held_out}/loss", F.cross_entropy(self.network(images), targets))

    def test_step(self, batch, batch_idx):
        images, targets = batch
        self.log("test/loss", F.cross_entropy(self.network(images), targets))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class OwnBatches(Classifier):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class Untested(Manual):
    test_step = LightningModule.test_step


class Lazy(Classifier):
    def __init__(self, *parts, **more):
        super().__init__(*parts, **more)
        self.projection = torch.nn.LazyLinear(2)


class Remembers(Classifier):
    def __init__(self, *parts, **more):
        super().__init__(*parts, **more)
        self.save_hyperparameters({"of": Net})


class Marked(torch.optim.SGD):
    """Needs a mark on every weight."""

    def __init__(self, params, lr: float = 0.1):
        super().__init__(params, lr)
        assert all(weight.mark for group in self.param_groups for weight in group["params"])


class Named(Net):
    def parameter_groups(self):
        for weight in self.parameters():
            weight.mark = True
        return [{"params": self.named_parameters()}]


class TwoSteps(torch.optim.Optimizer):
    """As sharpness-aware minimization: has an optimizer within, and evaluates every batch twice."""

    def __init__(self, params, lr: float = 0.1):
        super().__init__(params, {"lr": lr})
        self.within = [torch.optim.SGD(self.param_groups, lr, momentum=0.9)]
        self.param_groups = self.within[0].param_groups

    def step(self, closure):
        closure()
        weights = [weight for group in self.param_groups for weight in group["params"]]
        moves = [0.05 * weight.grad.sign() for weight in weights]
        with torch.no_grad():
            torch._foreach_add_(weights, moves)
        loss = closure()
        with torch.no_grad():
            torch._foreach_sub_(weights, moves)
        self.within[0].step()
        return loss


class Hooked(torch.optim.SGD):
    calls = {}

    def __init__(self, params, lr: float = 0.1):
        super().__init__(params, lr)
        for weight in (weight for group in self.param_groups for weight in group["params"]):
            weight.register_post_accumulate_grad_hook(self.count)

    def count(self, weight):
        self.calls[weight] = self.calls.get(weight, 0) + 1


class Rateless(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {"speed": 0.1})


class Freeze(Callback):
    def on_train_epoch_start(self, trainer, module):
        module.network.body.requires_grad_(trainer.current_epoch != 1)
        module.network.body.train(trainer.current_epoch != 1)


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, module):
        self.freeze(module.network.body)

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.network.body, optimizer)


class Average(Callback):
    """An average of its own, whose age is seen in the tests."""

    tested = []

    def __init__(self):
        self.epochs = 0

    def on_validation_epoch_end(self, trainer, module):
        self.epochs += 1
        module.log("val/fresh", 1 / self.epochs)

    def on_test_start(self, trainer, module):
        self.tested.append(self.epochs)

    def on_save_checkpoint(self, trainer, module, checkpoint):
        checkpoint["age"] = self.epochs

    def on_load_checkpoint(self, trainer, module, checkpoint):
        self.epochs = checkpoint["age"]


class Another:
    def __init__(self, num_train: int, num_test: int):
        pass


class Shapely(Another):
    shape, digest, load = (1, 16, 16), len, len


class OfBatches(MeanMetric):
    higher_is_better = True

    def update(self, outputs, targets):
        super().update(outputs.max())
'''

FILES = {
    "model/net": "_target_: parts.Net\nnum_classes: data.num_classes\n",
    **{
        f"model/{name.lower()}": f"_target_: parts.{name}\nnum_classes: data.num_classes\n"
        for name in ("Auxiliary", "Fits", "Uneven", "Named")
    },
    **{
        f"module/{name.lower()}": f"_target_: parts.{name}\n"
        for name in ("Teacher", "Annealed", "Estimating", "Manual")
    },
    **{
        f"module/{name.lower()}": f"_target_: parts.{name}\n"
        for name in ("OwnBatches", "Remembers", "Untested", "Lazy", "Rarely", "Lean")
    },
    "optim/twosteps": "_target_: parts.TwoSteps\n_partial_: true\nlr: 0.05\n",
    "optim/marked": "_target_: parts.Marked\n_partial_: true\nlr: 0.1\n",
    "optim/hooked": "_target_: parts.Hooked\n_partial_: true\nlr: 0.1\n",
    "optim/rateless": "_target_: parts.Rateless\n_partial_: true\n",
    **{
        f"callbacks/{name.lower()}": f"# @package callbacks.{name.lower()}\n_target_: parts.{name}\n"
        for name in ("Freeze", "Unfreeze", "Average")
    },
    "callbacks/again": "# @package callbacks.again\n_target_: parts.Unfreeze\n",
    "metrics/ofbatches": "# @package metrics.ofbatches\n_target_: parts.OfBatches\n",
    "data/shapely": "_target_: parts.Shapely\nnum_train: 20\nnum_test: 10\n",
    "data/another": "_target_: parts.Another\nnum_train: 20\nnum_test: 10\n",
}
SMALL = ("data=shapes", "data.num_train=60", "data.num_test=20", "batch_size=10", "norm=standard", "model=net")
LOSS = ("metrics=none", "select_on=val/loss")
SMALL = (*SMALL, "trainer.precision=32-true", "trainer.max_epochs=3")


@pytest.fixture(autouse=True)
def parts(own_options):
    own_options("parts", PARTS, FILES)


@pytest.mark.parametrize(
    ("options", "step"),
    [
        pytest.param(("module=teacher",), 7, id="a teacher that follows after every step"),
        pytest.param(("module=annealed",), 7, id="what is set when an epoch begins"),
        pytest.param(("module=rarely",), 7, id="values that are logged before the interruption only"),
        pytest.param(("module=lean",), 7, id="weights that are left out of checkpoints"),
        pytest.param(("model=named", "optim=marked"), 7, id="groups of named weights, with marks"),
        pytest.param(("module=estimating",), 7, id="a schedule of the estimated length"),
        pytest.param(("module=manual", *LOSS), 1, id="gradients that wait for their step"),
        pytest.param(("optim=twosteps",), 7, id="an optimizer within another"),
        pytest.param(("model=uneven",), 7, id="a buffer that is not saved with the weights"),
        pytest.param(("callbacks=freeze",), 7, id="a body that is frozen for an epoch"),
        pytest.param(("callbacks=unfreeze",), 7, id="a body that is trained from an epoch on, in this epoch"),
        pytest.param(("callbacks=unfreeze",), 12, id="a body that is trained from an epoch on, later"),
    ],
)
@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
def test_it_is_stopped_within_an_epoch_and_resumed_bit_for_bit(options, step):
    testing.check_resumes(*options, *SMALL, step=step)


def test_the_state_of_a_callback_is_tested_with_the_weights_of_its_epoch(tmp_path):
    own = ("callbacks=average", "module=manual", "metrics=none", "select_on=val/fresh", "select_mode=max")
    run = cnnlab.train(testing.words(*own, *SMALL, folder=str(tmp_path)))
    assert run.summary["best_epoch"] == 1
    assert sys.modules["parts"].Average.tested == [3, 1]


def test_gradients_are_clipped_for_any_module_and_optimizer(tmp_path):
    """In bfloat16, where Lightning refuses to clip gradients for a fused optimizer."""
    words = testing.words("module=annealed", *(w for w in SMALL if "precision" not in w), folder=str(tmp_path))
    for own in ("trainer.precision=bf16-mixed", "trainer.precision=32-true"):
        run = cnnlab.train([*words, "+trainer.gradient_clip_val=0.01", own])
        assert run.summary["status"] == "done"


def test_an_optimizer_is_made_once_for_the_weights_that_are_trained(tmp_path):
    run = cnnlab.train(testing.words("optim=hooked", *SMALL, folder=str(tmp_path)))
    calls = sys.modules["parts"].Hooked.calls
    assert len(calls) == 8
    assert set(calls.values()) == {5 * run.summary["epochs_done"]}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("model=auxiliary",), "Auxiliary returns a tuple in training, where one tensor is needed"),
        (("callbacks=[again,unfreeze]",), "callbacks=again and unfreeze have the same state_key"),
        (("model=fits",), "parts.Fits.fit takes images, targets"),
        (("module=ownbatches",), "parts.OwnBatches has on_after_batch_transfer, which would not be called"),
        (("module=remembers",), "would contain parts Net, and could not be loaded again.*save_hyperparameters"),
        (("module=untested", *LOSS), "parts.Untested has no test_step"),
        (("module=lazy",), "parts.Lazy: projection.weight has no size yet"),
        (("optim=rateless",), "Rateless has no learning rate called lr"),
        (("metrics=[acc,ofbatches]",), "metrics.ofbatches depends on how images are divided into batches"),
        (("data=shapely",), "parts.Shapely: shape is no Shape of cnnlab.config.shape"),
        (("data=another",), "parts.Another has no digest.. and load.."),
    ],
)
def test_it_is_refused_in_one_sentence(options, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        cnnlab.train(testing.words(*options, *SMALL, folder=str(tmp_path)))


def test_values_logged_before_one_interruption_survive_the_next():
    """Those that have not been logged since; the largest of two processes, and the sum of others."""
    trainer = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(_results={})))
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    before = {"step.a": (one, one, "sum", "a"), "step.b": (two, one, "max", "b")}
    assert epoch_state(trainer, LightningModule(), before)["logged"] == before
    both = merged(
        [before, {"step.a": (two, one), "step.b": (one, one, "max", "b")}]
    )  # the former from an old checkpoint
    assert both == {"step.a": (3.0, 2.0, "sum", "a"), "step.b": (2.0, 2.0, "max", "b")}
