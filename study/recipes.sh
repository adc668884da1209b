#!/usr/bin/env bash
# What the recipes of experiment=fast, best, resnet18 and speednet reach, and what each part of them adds: for a GPU, where all
# of it takes minutes. Finished runs are returned at once, so it can be stopped and started again.
#
#     study/recipes.sh                                          # on CIFAR-10, fetched
#     study/recipes.sh data=image_folder data.root=FOLDER       # on images of yours
#
# The tables that it prints go into the heads of conf/experiment/{fast,best,resnet18,speednet}.yaml, with the device's name.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python}"

train() { "$python" train.py -m name="$1" "${@:2}"; }

# The recipes, three seeds each.
train recipes 'experiment=best,fast,resnet18,speednet' 'seed=range(3)' "$@"

# The lab's network: each part of experiment=fast is changed by itself; chosen on held-out images.
fast=(experiment=fast val_fraction=0.2 'seed=range(3)')
train fast_parts "${fast[@]}" "$@"
for part in aug.pad_crop_flip.alternating_flips=false loss.label_smoothing=0 sched.anneal_strategy=cos test_flips=false \
  test_shifts=0 aug.pad_crop_flip.padding=2 model.dropout=0.2 norm=zca; do
  train fast_parts "${fast[@]}" "$part" "$@"
done
train fast_parts "${fast[@]}" callbacks=ema callbacks.ema.decay=0.99 "$@"
train fast_parts "${fast[@]}" optim.lr=0.0025,0.01 optim.weight_decay=0.5,1 "$@"
sgd=(optim=sgd_momentum optim.nesterov=true optim.weight_decay=5e-4 batch_size=128)
train fast_parts "${fast[@]}" "${sgd[@]}" optim.lr=0.05,0.1,0.2 "$@"

# The fast network: its rate, and its length.
train speednet_parts experiment=speednet val_fraction=0.1 'seed=range(3)' optim.lr=0.75,1.5,3 "$@"
train speednet_parts experiment=speednet val_fraction=0.1 'seed=range(3)' trainer.max_epochs=10,20,40 "$@"

# A pretrained network beside the same one from scratch, where its weights are at hand: WEIGHTS=FILE study/recipes.sh
if [ -n "${WEIGHTS:-}" ]; then
  tuned=(model=timm model.model_name=resnet18 norm=standard aug=pad_crop_flip optim=sgd_momentum sched=cosine
    trainer.max_epochs=10 'seed=range(3)')
  train tuned "${tuned[@]}" "$@"
  train tuned "${tuned[@]}" weights="\"$WEIGHTS\"" 'lr_scale=[fc:10]' "$@"
fi

for name in recipes fast_parts speednet_parts; do
  "$python" -m cnnlab report "outputs/$name"
done
