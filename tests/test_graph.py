"""A graph of the step trains as the steps themselves do, and Lightning cannot tell.

Without a GPU all but the recording is real: its replay is the recorded function, called again (see faults.py).
"""

import pytest
from test_resume import differences, left_by, said, zygote  # noqa: F401

COMMON = (
    *("data=shapes", "data.num_train=800", "data.num_test=60", "batch_size=10", "model.channels=[8,8,8]"),
    *("model.hidden=32", "norm=standard", "trainer.max_epochs=3", "trainer.accelerator=auto"),
)
RUNS = {
    "plain SGD": (),
    "momentum, noise, CutMix, dropout, a schedule by steps": (
        *("optim=sgd_momentum", "optim.nesterov=true", "optim.weight_decay=0.001", "aug=[crop_flip,noise,cutmix]"),
        *("model.dropout=0.5", "model.batch_norm=true", "sched=onecycle", "decay_all=false"),
    ),
    "Adam, clipped, a moving average, a schedule by epochs": (
        *("optim=adam", "trainer.gradient_clip_val=0.1", "callbacks=ema", "sched=exponential", "aug=mixup"),
    ),
    "warm-up, cosine, AdamW, early stopping": (
        *("optim=adamw", "sched=cosine", "warmup_epochs=1.5", "callbacks=early_stopping", "aug=[pad_crop_flip,color]"),
    ),
}
GRAPH = [("", 0, "graph")]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "killed"])
def test_bit_for_bit(zygote, tmp_path, name, killed):  # noqa: F811
    command = COMMON + RUNS[name]
    assert zygote.run(tmp_path / "plain", command=command)["status"] == 0, said(tmp_path / "plain")
    output, words = tmp_path / "graph", ("cuda_graph=true", "checkpoint.every_n_minutes=0.0001")
    if killed:  # in the middle of the second epoch
        step = 100 if "moving average" in name else 5
        faults = [*GRAPH, ("step", step, "SIGKILL")]
        assert zygote.run(output, *words, command=command, faults=faults)["status"] == -9, said(output)
    result = zygote.run(output, *words, command=command, faults=GRAPH)
    assert result["status"] == 0, said(output)
    assert result["counts"]["step"] < 240 or "moving average" in name  # many steps at once
    assert "No CUDA graph" not in said(output)
    assert differences(left_by(tmp_path / "plain"), left_by(output)) == []
