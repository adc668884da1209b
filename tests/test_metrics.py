"""Loss and metrics of an epoch: whenever somebody looks at them, and however many processes had counted them."""

import pytest
import torch
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MultilabelAccuracy,
)
from torchmetrics.regression import CosineSimilarity, MeanSquaredError
from torchmetrics.wrappers import MinMaxMetric

from cnnlab.config.options import UserError
from cnnlab.config.shape import Shape
from cnnlab.metrics import Accuracy, EpochMetrics, restore, scalar, states_of
from cnnlab.train.parts import Parts, make_metrics
from cnnlab.use.bounded import bounded

CPU = torch.device("cpu")
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def batches(*sizes: int) -> list[Batch]:
    """Loss, logits, labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.rand((), generator=generator) * 10.0**-k,
            torch.randn(num, 5, generator=generator),
            torch.randint(5, (num,), generator=generator),
        )
        for k, num in enumerate(sizes)
    ]


def metrics() -> dict[str, Metric]:
    return {"acc": Accuracy(), "f1": MulticlassF1Score(5), "auroc": MulticlassAUROC(5)}


def counted(some: list[Batch]) -> EpochMetrics:
    sums = EpochMetrics(metrics(), "multiclass", CPU)
    for batch in some:
        sums.add(*batch)
    return sums


def test_a_metric_has_the_outputs_that_were_there_though_the_next_replay_overwrites_them():
    buffer, generator = torch.zeros(10, 2), torch.Generator().manual_seed(0)
    sums = EpochMetrics({"cosine": CosineSimilarity("mean")}, "regression", CPU)
    for _ in range(5):
        targets = torch.rand(10, 2, generator=generator)
        buffer.copy_(targets)
        sums.add_batches(torch.zeros(1), buffer, targets)
    assert sums.compute()["cosine"] == pytest.approx(1)


def test_thousands_of_classes_take_little_memory():
    shape = Shape(20_000, channels=3, height=32, width=32)
    node = {"acc": {"_target_": "cnnlab.metrics.Accuracy"}}
    with bounded(0):
        assert list(make_metrics(node, shape)) == ["acc"]


EPOCH = batches(7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 3)


def test_they_do_not_depend_on_when_they_were_looked_at_or_saved():
    whole, looked_at = counted(EPOCH), counted([])
    for place, batch in enumerate(EPOCH):
        looked_at.add(*batch)
        if place % 3 == 1:
            looked_at.mean_loss()
        if place == 5:
            state, looked_at = looked_at.state_dict(), counted([])
            looked_at.load_state_dicts([state], CPU)
    found = whole.compute()
    assert found == looked_at.compute()
    correct = sum(int((logits.argmax(1) == labels).sum()) for _, logits, labels in EPOCH)
    loss = sum(float(loss) * len(labels) for loss, _, labels in EPOCH)
    assert found["acc"] == correct / 80
    assert found["loss"] == pytest.approx(loss / 80)
    _, logits, labels = (torch.stack([b[0] for b in EPOCH]), *(torch.cat([b[k] for b in EPOCH]) for k in (1, 2)))
    assert found["f1"] == MulticlassF1Score(5)(logits, labels).item()
    assert found["auroc"] == MulticlassAUROC(5)(logits, labels).item()


def test_what_two_processes_had_counted_goes_on_in_one():
    halves = [counted(EPOCH[:3]), counted(EPOCH[3:6])]
    together = counted([])
    together.load_state_dicts([half.state_dict() for half in halves], CPU)
    for batch in EPOCH[6:]:
        together.add(*batch)
    assert together.compute() == pytest.approx(counted(EPOCH).compute())
    assert together.compute()["acc"] == counted(EPOCH).compute()["acc"]


def test_a_metric_that_cannot_be_put_together_says_so():
    class Rank(Metric):
        full_state_update = True
        higher_is_better = True

        def __init__(self) -> None:
            super().__init__()
            self.add_state("seen", torch.tensor(0.0))

        def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
            self.seen += 1

        def compute(self) -> torch.Tensor:
            return self.seen

    sums = EpochMetrics({"rank": Rank()}, "regression", CPU)
    sums.add(torch.ones(()), torch.rand(4, 1), torch.rand(4, 1))
    state = sums.state_dict()
    with pytest.raises(UserError, match="with the number of processes that the run began with"):
        sums.load_state_dicts([state, state], CPU)


def test_mixed_labels_count_as_the_one_with_the_largest_share():
    sums = EpochMetrics({"acc": Accuracy()}, "multiclass", CPU)
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    sums.add(torch.ones(()), logits, torch.tensor([[0.4, 0.6], [0.3, 0.7]]))
    assert sums.compute() == {"loss": 1.0, "acc": 0.5}


@pytest.mark.parametrize(
    ("task", "metric", "targets"),
    [
        ("multilabel", MultilabelAccuracy(3), torch.ones(20, 3)),
        ("multiclass", MulticlassCalibrationError(3), torch.arange(20) % 3),
    ],
)
def test_logits_from_0_to_1_are_not_taken_for_probabilities(task, metric, targets):
    """As torchmetrics does where all logits of an update are in that range."""
    logits = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    sums = EpochMetrics({"m": metric}, task, CPU)
    sums.add(torch.ones(()), logits, targets)
    found = sums.compute()["m"]
    metric.reset()
    metric.update(logits.sigmoid() if task == "multilabel" else logits.softmax(1), targets.long())
    assert found == pytest.approx(metric.compute().item())


SHAPES = {task: Shape(3, 3, 8, 8, task) for task in ("multiclass", "multilabel", "regression")}


def option(target: str, **arguments: object) -> dict[str, dict[str, object]]:
    return {"m": {"_target_": target, **arguments}}


@pytest.fixture(autouse=True)
def any_target(monkeypatch):
    monkeypatch.setattr("cnnlab.config.objects.check_targets", lambda *_: None)


F1 = "torchmetrics.classification.MulticlassF1Score"


@pytest.mark.parametrize(
    ("task", "node", "said"),
    [
        ("multiclass", option(F1, num_classes="data.num_classes", average=None), "computes 3 numbers"),
        ("multiclass", option("torchmetrics.classification.MultilabelF1Score", num_labels=3), "cannot be computed"),
        ("multilabel", option("cnnlab.metrics.Accuracy"), "is for data that are multiclass, and these are multilabel"),
        (
            "regression",
            option("torchmetrics.classification.MultilabelF1Score", num_labels=3),
            "cannot be computed for data that",
        ),
        ("multiclass", option(F1, num_classes="data.classes"), "data.classes is not known"),
    ],
)
def test_a_metric_that_does_not_fit_the_data_is_refused(task, node, said):
    with pytest.raises(UserError, match=said):
        make_metrics(node, SHAPES[task])


@pytest.mark.parametrize(
    ("task", "node"),
    [
        ("multiclass", option(F1, num_classes="data.num_classes", average="macro")),
        ("multilabel", option("torchmetrics.classification.MultilabelAUROC", num_labels="data.num_classes")),
        ("regression", option("torchmetrics.regression.MeanSquaredError")),
    ],
)
def test_one_that_does_has_seen_nothing_yet(task, node):
    [metric] = make_metrics(node, SHAPES[task]).values()
    assert not metric.update_called


def test_which_values_of_a_metric_are_better():
    metrics = {"acc": Accuracy(), "mse": MeanSquaredError(), "mean": MeanMetric()}  # the last does not know
    assert Parts(None, None, None, metrics, "val/acc", higher=True).modes == {"acc": "max", "mse": "min"}


def test_one_number():
    metric = MeanSquaredError()
    metric.update(torch.ones(2), torch.zeros(2))
    assert scalar("mse", metric) == 1


class Memory(Metric):
    """Its values are in a plain attribute, which nothing saves."""

    higher_is_better = True

    def update(self, outputs, targets):
        self.values = [*getattr(self, "values", []), (outputs.argmax(1) == targets).float().mean()]

    def compute(self):
        return torch.stack(self.values).mean()


def test_a_metric_without_state_is_refused(monkeypatch):
    monkeypatch.setattr("cnnlab.train.parts.instantiate", lambda node: Memory())
    with pytest.raises(UserError, match=r"metrics\.memory has no state that was declared with add_state"):
        make_metrics({"memory": {}}, Shape(3, 8, 8, 3))


def test_the_states_of_metrics_within_metrics_are_kept():
    def made() -> Metric:
        return MinMaxMetric(MulticlassAccuracy(3))

    outputs, targets = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    whole, first, second = made(), made(), made()
    whole.update(outputs, targets)
    first.update(outputs[:12], targets[:12])
    weights = dict(first.state_dict())
    kept = states_of({"one": first})
    assert dict(first.state_dict()).keys() == weights.keys()  # no weights of a module that has the metric
    restore({"one": second}, [kept], torch.device("cpu"))
    second.update(outputs[12:], targets[12:])
    assert second.compute()["raw"].equal(whole.compute()["raw"])
