"""The lab report's claims in its order: what each says, how it is measured, what comes out. Does not import torch."""

from dataclasses import dataclass, replace

from study import measures, ways
from study.measures import FLAT, GAP
from study.results import Results
from study.variants import BASELINE, BY_CHANNEL, CALIBRATED, CURVES, HIGHER, LONGER, ONE_EPOCH, STATED, ZCA, calibrated
from study.verdicts import Finding, corrected

AS_STATED = "as stated"
OURS = ""  # the place of what the report does not say, and is asked here


@dataclass(frozen=True)
class Claim:
    """A statement of the report.

    Attributes:
        figure: whose runs it is about.
        place: where the report says it; empty for a question of ours.
        says: what, in our words.
    """

    figure: str
    place: str
    says: str
    way: ways.Way

    @property
    def asked_here(self) -> bool:
        return not self.place


@dataclass(frozen=True)
class Judgment:
    """A claim, and what came out against one of the two baselines."""

    claim: Claim
    baseline: str
    finding: Finding


OTHERS = [figure for figure in CURVES if "fig02" < figure < "fig13"]
CLAIMS = (
    Claim("fig01", "question 16", "too large a learning rate diverges", ways.diverges_somewhere()),
    Claim(
        "fig01", "question 16", "too small a learning rate (here 0.0001) crawls", ways.crawls("lr=0.0001", "lr=0.01")
    ),
    Claim(
        "fig02",
        "question 16",
        "large batches are steadier, small ones noisier",
        ways.falls_with_size(measures.ROUGHNESS.name, lambda run, size: measures.ROUGHNESS.of(run), "points"),
    ),
    Claim(
        "fig02",
        "question 16",
        "small batches may need more epochs",
        ways.falls_with_size(
            "epochs to its own target", lambda run, size: measures.epochs_to_own_target(run), "epochs"
        ),
    ),
    Claim(
        "fig02",
        OURS,
        "small batches need more training steps",
        ways.falls_with_size("steps to its own target", measures.steps_to_own_target, "steps"),
    ),
    Claim(
        "fig02",
        "question 17",
        "in epoch 1 the test loss is below the training loss",
        ways.exceeds(measures.EXCESS, ONE_EPOCH),
    ),
    Claim(
        "fig02",
        "question 17",
        "... as training loss is averaged over the whole epoch",
        ways.exceeds(measures.AVERAGING, ONE_EPOCH, 0.5),
    ),
    Claim(
        "fig02",
        "question 17",
        "... and the same for the accuracy",
        ways.exceeds(measures.AVERAGING_ACCURACY, ONE_EPOCH, 0.5),
    ),
    Claim(
        "fig03",
        "question 17",
        "with more epochs, overfitting is evident",
        ways.exceeds(measures.OVERFITTING, LONGER, GAP),
    ),
    Claim("fig03", "question 19", "... and begins a little before epoch 20", ways.begins_to_overfit_near(17, BASELINE)),
    Claim("fig03", "question 17", "test accuracy has flattened near epoch 15", ways.flattens_near(15, BASELINE)),
    Claim(
        "fig03", "question 17", "... and training accuracy keeps rising", ways.exceeds(measures.GOES_ON, BASELINE, FLAT)
    ),
    Claim("fig03", OURS, "overfitting is evident after 20 epochs", ways.exceeds(measures.OVERFITTING, BASELINE, GAP)),
    Claim(
        "fig03",
        OURS,
        "over 60 epochs, overfitting begins a little before epoch 20",
        ways.begins_to_overfit_near(17, LONGER),
    ),
    Claim("fig03", OURS, "over 60 epochs, test accuracy has flattened near epoch 15", ways.flattens_near(15, LONGER)),
    Claim("fig04", "question 19", "normalization makes training faster", ways.faster("fig04")),
    Claim("fig04", "question 19", "... and steadier", ways.steadier("fig04")),
    Claim("fig05", "question 21", "PCA whitening can make convergence better", ways.faster("fig05")),
    Claim("fig05", "question 21", "... and takes nearly twice the time", ways.same_speed("fig05", "fig06")),
    Claim("fig05", OURS, "ZCA whitening makes convergence faster", ways.faster(ZCA)),
    Claim("fig05", OURS, "PCA whitening of every pixel's channels makes convergence faster", ways.faster(BY_CHANNEL)),
    Claim("fig06", "question 21", "PCA whitening and min-max scaling perform alike", ways.within("fig05", "fig06")),
    Claim("fig06", "question 21", "PCA whitening is the steadier of the two", ways.steadier("fig05", "fig06")),
    Claim("fig06", OURS, "ZCA whitening performs like min-max scaling", ways.within(ZCA, "fig06")),
    Claim("fig06", OURS, "ZCA whitening is steadier than min-max scaling", ways.steadier(ZCA, "fig06")),
    Claim(
        "fig06",
        OURS,
        "PCA whitening of every pixel's channels performs like min-max scaling",
        ways.within(BY_CHANNEL, "fig06"),
    ),
    Claim(
        "fig06",
        OURS,
        "PCA whitening of every pixel's channels is steadier than min-max scaling",
        ways.steadier(BY_CHANNEL, "fig06"),
    ),
    Claim("fig07", "question 22", "crops and flips give better results", ways.better("fig07")),
    Claim("fig07", "question 22", "... with less overfitting", ways.overfits_less("fig07")),
    Claim("fig07", "question 22", "... and a less steady test curve", ways.less_steady("fig07")),
    Claim("fig08", OURS, "CutMix gives better results", ways.better("fig08")),
    Claim("fig08", OURS, "CutMix overfits less", ways.overfits_less("fig08")),
    Claim("fig09", "question 26", "a falling learning rate converges faster", ways.faster("fig09")),
    Claim("fig09", "question 26", "... and more steadily", ways.steadier("fig09")),
    Claim("fig09", "questions 26, 27", "... to a better accuracy", ways.better("fig09")),
    Claim("fig09", OURS, "a rate that starts higher and falls converges faster", ways.faster(HIGHER)),
    Claim("fig09", OURS, "... and more steadily", ways.steadier(HIGHER)),
    Claim("fig09", OURS, "... to a better accuracy", ways.better(HIGHER)),
    Claim(
        "fig10", "question 28", "Adam does not converge at 0.01, unlike at 0.0001", ways.crawls("adam-lr=0.01", "fig10")
    ),
    Claim("fig10", OURS, "Adam does not converge at 0.001", ways.crawls("adam-lr=0.001", "fig10")),
    Claim("fig11", "question 29", "dropout reduces overfitting", ways.overfits_less("fig11")),
    Claim("fig11", "question 29", "... delays it much", ways.delays_overfitting("fig11")),
    Claim("fig11", "question 29", "... and does not end it", ways.still_overfits("fig11")),
    Claim("fig12", "question 34", "batch normalization converges faster", ways.faster("fig12")),
    Claim("fig12", "question 34", "... to a better accuracy", ways.better("fig12")),
    Claim("fig12", "question 34", "... and a lower held-out loss", ways.less(measures.LAST_LOSS, "fig12")),
    Claim("fig12", "question 34", "its test curve is unsteady early", ways.more(measures.EARLY_ROUGHNESS, "fig12")),
    Claim("fig12", "question 34", "... unlike its training curve", ways.exceeds(measures.UNSTEADIER, "fig12")),
    Claim("fig12", "question 34", "... and it settles", ways.exceeds(measures.SETTLES, "fig12")),
    Claim(
        "fig13", "section 3.6", "all improvements together are best", ways.best_of("fig13", OTHERS, "figures 3 to 12")
    ),
    Claim("fig13", "section 3.6", "... by much against the baseline", ways.by_much("fig13")),
)


def with_calibrated_baseline(results: Results) -> Results:
    """The runs with the calibrated baseline's change, under the names of those without it."""
    return {key: results[calibrated(key)] for key in STATED if calibrated(key) in results}


def judge(results: Results) -> list[Judgment]:
    """What became of every claim: against the baseline as stated and, from figure 4 on, against the calibrated one.

    The p-values of what the report claims are corrected together, over both baselines.
    """
    views = {AS_STATED: results, CALIBRATED: with_calibrated_baseline(results)}
    made = [
        Judgment(claim, baseline, claim.way.find(view))
        for claim in CLAIMS
        for baseline, view in views.items()
        if baseline == AS_STATED or claim.figure > BASELINE
    ]
    family = corrected([judged.finding for judged in made if not judged.claim.asked_here])
    findings = iter(family)
    return [judged if judged.claim.asked_here else replace(judged, finding=next(findings)) for judged in made]
