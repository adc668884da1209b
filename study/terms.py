"""What the study's page says in words: how to read it, what its terms mean, notes on the figures."""

from study.measures import CHANCE, CRAWL, FLAT, GAP, RISING, TARGET, WINDOW
from study.variants import ADAM_RATES, CALIBRATED, LARGE
from study.verdicts import SAME
from study.ways import MUCH, MUCH_LATER, NEAR

QUICK = "**The quick form: few images and epochs. It shows that everything works; its verdicts mean nothing.**"
READING = f"""\
trains the runs that are missing and writes this page; with `--page` it trains nothing. Every result here is computed
from [runs.csv](runs.csv), a row for every run, and [epochs.csv](epochs.csv), a row for every epoch; all runs are of the
same code. n is the number of seeds. Figures 1 to 13 follow the report's protocol: nothing held out, the test images
evaluated after every epoch. On this page, "the report" is the lab report.

fig03 is the run of `experiment=fig03`, figure 3 as the report states it, and fig03+{CALIBRATED} the same with
{CALIBRATED}: [all settings](#all-settings). "fig04 minus fig03" is the number for fig04 minus that for fig03; where
the baseline is {CALIBRATED}, both have it. "Nothing to measure" means that the runs do not show what a claim is about,
such as overfitting that could be reduced.
"""
NOTES = {
    "fig03": "The report names neither the number of its epochs (here 20) nor a momentum. Its observations about this "
    "figure, and its claims about crops, a falling rate and dropout, are about a network that overfits; hence the "
    "calibrated baseline, and the baseline for 60 epochs.",
    "fig05": "The report does not say what is whitened, and there are three ways to read it. As stated, all values of "
    "an image are one vector, and PCA whitening replaces the image by its components; norm=zca turns them back into an "
    "image; norm.per=channel whitens the three values of every pixel. Each is fitted and applied once, before the "
    "first epoch, and what was fitted is cached: that may be what the report found to take twice the time, and no run "
    "records how long it takes.",
    "fig06": "The pixel values range from 0 to 1 already, so scaling them to that range changes nothing: this is "
    "figure 3 once more.",
    "fig08": "The report shows this figure without a comment; the questions about CutMix are ours.",
    "fig09": "The report does not say how fast the rate falls: here it is multiplied by 0.95 after every epoch. It "
    "says that the rate starts relatively high, and also that all comparisons start at 0.01; so 0.02 is run, too.",
    "fig10": f"Adam is also run with rates of {' and '.join(ADAM_RATES)}.",
    "fig13": "Adam, CutMix and whitening are left out, as each would replace another of the improvements.",
}
NOT_MEASURED = """\
Not measured: what the report gives as the cause of the unsteady curves of figures 7 (small images) and 12 (statistics
of the first batches), what else it expects of small learning rates (more precise convergence, less overfitting), and
that a dropout of 0.5 would underfit in figure 13.
"""
TERMS = f"""## Terms and formulas

a(e) is the test accuracy after epoch e, in points (percent of the images); s(e) is a smoothed: at every epoch, the
parabola fitted to the {WINDOW} epochs around it (Savitzky and Golay, 1964).

Formulas and thresholds marked † were changed after the first results had been seen (from 24 to 25 November 2026), those
marked ‡ on 26 November 2026, after 81 runs had been seen; those without a mark are older than all results. So a marked
verdict is exploratory unless the runs are newer than the change.

- **Calibrated baseline**‡: see above; it replaces a baseline with momentum 0.9†, which overfits much earlier.
- **Faster**: fewer epochs until s† reaches the target, {TARGET:g} times the smaller best s of the two settings, seed by
  seed, so that both reach it; interpolated between epochs.
- **Steadier**†: less rough in the second half of the epochs, where neither setting crawls. Roughness is the mean over
  epochs of |a(e) - s(e)|: small for a smooth curve, whether it rises or not. Unsteady early†: rougher in the first half
  of the epochs than the baseline. Unlike its training curve†: rougher there than the training accuracy. Settles†: less
  rough in the second half.
- **Batch sizes**‡: a least-squares line over log2 of the batch size, for every seed; the slope's mean over seeds is
  below 0. Epochs and steps are counted until s reaches {TARGET:g} times the best s of the same run. The report
  speaks of the steadiness of training steps; measured here is that of epochs.
- **Overfits**†: a gap above {GAP:g} points, training minus test accuracy of the last weights, both on unchanged images,
  without crops, flips, mixed labels or dropout. Less†: a smaller gap than the baseline, if the baseline overfits. With
  more epochs‡: after 60, a mean gap above {GAP:g}.
- **Begins to overfit**: the first epoch whose training accuracy, measured during training, is more than {GAP:g} points
  above the test accuracy, as unchanged images are evaluated only at the end; a little before epoch 20: at 17 ± {NEAR}†.
  **Much later**†: the lowest test loss is more than {MUCH_LATER} epochs later than the baseline's, if that rises again
  before the last {RISING} epochs.
- **Has flattened**: from the first epoch after which a gains less than {FLAT:g} point; if that is one of the last
  {RISING}, the curve is still rising. Near epoch 15: within {NEAR}.
- **Keeps rising**†: the training accuracy gains more than {FLAT:g} point from epochs 14 to 16 until the last three, as
  means.
- **Averaged over the epoch**: the share of the difference between training and test loss in epoch 1 that disappears
  when the training images are evaluated with the epoch's last weights; above 0.5. The same for the accuracy†.
- **Better**: a higher a at the last epoch, which is not chosen by the test images, as the best one is. **By much**†: by
  more than {MUCH:g} points. **Lower held-out loss**†: at the last epoch.
- **Alike**: a difference within {SAME:g} point.
- **Takes nearly twice the time**‡: not comparable, since no run records the time of fitting and applying. Shown is the
  ratio of the fastest† epochs on the same device: other processes on a machine make epochs slower, never faster.
- **Diverges**: fails because its loss is not finite, or ends with a below {CHANCE:g} (guessing has 10). Too large a
  rate diverges‡ if all seeds do at {", ".join(LARGE[:-1])} or {LARGE[-1]}. **Crawls**, or does not converge: ends below
  {CRAWL:g} times the a of the setting that it is compared with.

Intervals are 95%, by Student's t over seeds; differences are taken seed by seed. A claim **holds** if the whole
interval is on its side, **does not hold** if it is all on the other side, and otherwise **cannot be told**. p is that
of the two-sided t-test against the claim's threshold‡; for "alike" that of two one-sided tests (Schuirmann, 1987) or,
where the mean difference is above {SAME:g} point, of the t-test against {SAME:g}. What is seen in a run holds if every
seed shows it, does not hold if none does, and has no p. With one seed, nothing can be told‡. BH (Benjamini and
Hochberg, 1995) and Holm (1979) correct‡ the p-values of all the report's claims together, against both baselines; the
further questions are not corrected.
"""
